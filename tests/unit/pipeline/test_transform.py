from dataclasses import replace
from itertools import islice

import pytest
import torch

from fusmae.random import CounterRandom
from pipeline.stream.exact import Stream, StreamConfig
from pipeline.transform import ImageTransform, dihedral
from sharding.errors import ConfigError
from tests.unit.pipeline.small_shards import BANDS_L2A, make

S2 = tuple(band for band in BANDS_L2A if band.startswith("B"))
BOTH = [("s1", ("VV", "VH")), ("s2", S2)]


def draws(batch, seed=5) -> CounterRandom:
    return CounterRandom(seed, batch.epoch, batch.position)


def first_batch(made, size=20):
    with Stream(StreamConfig(url=made.url, global_batch=size)) as stream:
        return next(iter(stream)).copy()


def test_an_epoch_has_mean_0_and_deviation_1_in_each_band(tmp_path):
    made = make(tmp_path / "pairs", offset_every=3)
    images, valid = ImageTransform(made.manifest, BOTH, 12)(first_batch(made), None)
    for name, bands in BOTH:
        assert images[name].shape == (20, len(bands), 12, 12) and images[name].dtype == torch.float32
        assert valid[name].all()
        assert images[name].mean(dim=(0, 2, 3)).abs().max() < 1e-4
        assert (images[name].std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_without_the_radiometric_offset_the_mean_is_not_0(tmp_path):
    made = make(tmp_path / "pairs", offset_every=3)
    batch = first_batch(made)
    batch.radiometric_offset.zero_()
    images, _ = ImageTransform(made.manifest, BOTH, 12)(batch, None)
    assert images["s2"].mean().abs() > 0.1


def test_denormalise_gives_the_values_in_units(tmp_path):
    made = make(tmp_path / "pairs", offset_every=1)
    batch = first_batch(made)
    transform = ImageTransform(made.manifest, BOTH, 12)
    images, _ = transform(batch, None)
    back = transform.denormalise("s2", images["s2"])
    place = S2.index("B08")
    expected = batch.arrays["s2_10m"][:, 3].float() - 1000
    assert torch.allclose(back[:, place], expected, atol=1e-2)
    assert torch.allclose(transform.denormalise("s1", images["s1"]), batch.arrays["s1"], atol=1e-4)


def test_nearest_repeats_each_20_m_and_60_m_pixel(made):
    batch = first_batch(made)
    transform = ImageTransform(made.manifest, [("s2", ("B01", "B05"))], 12)
    values = transform.denormalise("s2", transform(batch, None)[0]["s2"])
    for place, (array, plane, factor) in enumerate([("s2_60m", 0, 6), ("s2_20m", 0, 2)]):
        stored = batch.arrays[array][:, plane].float()
        repeated = stored.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        assert torch.equal(values[:, place].round(), repeated)


def test_bilinear_differs_from_nearest_and_keeps_the_mean(made):
    batch = first_batch(made)
    near, linear = (
        ImageTransform(made.manifest, BOTH, 12, upsample=how)(batch, None)[0]["s2"] for how in ("nearest", "bilinear")
    )
    ten_metre = [S2.index(band) for band in ("B02", "B03", "B04", "B08")]
    assert torch.equal(near[:, ten_metre], linear[:, ten_metre])
    assert not torch.equal(near, linear)
    assert abs(near.mean() - linear.mean()) < 0.05


def test_bands_come_in_the_order_asked_for(made):
    batch = first_batch(made)
    forth, back = (ImageTransform(made.manifest, [("s2", bands)], 12)(batch, None)[0]["s2"] for bands in (S2, S2[::-1]))
    assert torch.equal(forth, back.flip(1))


def test_absent_bands_are_0_and_invalid(tmp_path):
    made = make(tmp_path / "pairs", subset_every=2, offset_every=1)
    batch = first_batch(made)
    images, valid = ImageTransform(made.manifest, BOTH, 12)(batch, draws(batch))
    for row, key in enumerate(batch.keys):
        for name, bands in BOTH:
            has = torch.tensor([band in made.bands[key] for band in bands])
            assert torch.equal(valid[name][row], has)
            assert (images[name][row][~has] == 0).all()
            assert (images[name][row][has] != 0).any()


def test_the_eight_elements_are_the_symmetries_of_the_square():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    turned = dihedral(image.repeat(8, 1, 1, 1), torch.arange(8))
    assert torch.equal(turned[0], image[0])
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert {tuple(t[0, [0, 0, 2, 2], [0, 2, 0, 2]].sort().values.tolist()) for t in turned} == {(0.0, 2.0, 6.0, 8.0)}


def test_all_modalities_are_turned_and_cut_alike(made):
    batch = first_batch(made)
    batch.arrays["s1"].copy_(batch.arrays["s2_10m"][:, :2].float())
    transform = ImageTransform(made.manifest, [("s1", ("VV",)), ("s2", ("B02",))], 8)
    images, _ = transform(batch, draws(batch))
    plain, _ = transform(batch, None)
    values = {name: transform.denormalise(name, image) for name, image in images.items()}
    assert torch.equal(values["s1"].round(), values["s2"].round())
    assert not torch.equal(images["s2"], plain["s2"])


def test_a_sample_is_turned_and_cut_the_same_in_any_batch(made):
    with Stream(StreamConfig(url=made.url, global_batch=20)) as stream:
        batch = [b.copy() for b in islice(stream, 2)][1]
    transform = ImageTransform(made.manifest, BOTH, 8)
    whole, _ = transform(batch, draws(batch))
    for number, part in enumerate(batch.split(10)):
        images, _ = transform(part, draws(part))
        for name in images:
            assert torch.equal(images[name], whole[name][2 * number : 2 * number + 2])
    other, _ = transform(batch, draws(batch, seed=6))
    assert not torch.equal(other["s2"], whole["s2"])


def test_every_turn_and_window_occurs(made):
    epoch, position = torch.zeros(2000, dtype=torch.int64), torch.arange(2000)
    transform = ImageTransform(made.manifest, BOTH, 10)
    random = CounterRandom(0, epoch, position)
    counts = transform._elements(random).bincount(minlength=8)
    assert counts.min() > 180 and counts.max() < 320
    batch = first_batch(made, 20)
    rows, columns = transform._windows(batch, CounterRandom(0, epoch, position))
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [0, 1, 2]


def test_without_random_numbers_the_window_is_the_central_one(made):
    batch = first_batch(made)
    whole, _ = ImageTransform(made.manifest, BOTH, 12)(batch, None)
    centre, _ = ImageTransform(made.manifest, BOTH, 8)(batch, None)
    assert torch.equal(centre["s2"], whole["s2"][:, :, 2:10, 2:10])


def test_flips_can_be_left_out(made):
    batch = first_batch(made)
    transform = ImageTransform(made.manifest, BOTH, 12, flips=False)
    assert torch.equal(transform(batch, draws(batch))[0]["s2"], transform(batch, None)[0]["s2"])


def test_a_band_that_the_data_set_lacks_is_refused_with_those_it_has(made):
    with pytest.raises(ConfigError, match=r"band B10, .* has VV, VH, B02, .*B09$"):
        ImageTransform(made.manifest, [("s2", ("B02", "B10"))], 12)


def test_an_image_larger_than_the_patch_is_refused(made):
    with pytest.raises(ConfigError, match=r"image size is 16, .* 12 pixels"):
        ImageTransform(made.manifest, BOTH, 16)


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_a_pixel_that_is_no_finite_number_is_0_as_one_without_data(made, odd, upsample):
    batch = first_batch(made)
    transform = ImageTransform(made.manifest, BOTH, 12, upsample=upsample)
    before, _ = transform(batch, None)
    batch.arrays["s1"][3, 1, 2, 4] = odd
    batch.arrays["s2_20m"] = batch.arrays["s2_20m"].float()
    batch.arrays["s2_20m"][3, 0, 1, 1] = odd
    after, valid = transform(batch, None)
    assert all(image.isfinite().all() for image in after.values()) and all(has.all() for has in valid.values())
    changed = (after["s1"] != before["s1"]).nonzero().tolist()
    assert changed == [[3, 1, 2, 4]] and after["s1"][3, 1, 2, 4].abs() < 1e-5
    place = S2.index("B05")
    assert after["s2"][3, place, 2, 2].abs() < 1 and torch.equal(after["s2"][2], before["s2"][2])
    if upsample == "nearest":
        assert after["s2"][3, place, 2:4, 2:4].abs().max() < 1e-5


def lacking(made, *bands):
    arrays = tuple(replace(a, bands=tuple(b for b in a.bands if b not in bands)) for a in made.manifest.arrays)
    return replace(made.manifest, arrays=tuple(array for array in arrays if array.bands))


def test_bands_that_the_data_set_lacks_can_be_absent_from_all_samples(made):
    batch = first_batch(made)
    full, _ = ImageTransform(made.manifest, BOTH, 8)(batch, draws(batch))
    part = replace(batch, radiometric_offset=batch.radiometric_offset[:, 1:])
    transform = ImageTransform(lacking(made, "VV", "VH", "B08"), BOTH, 8, absent_bands=True)
    images, valid = transform(part, draws(batch))
    assert images["s1"].shape == full["s1"].shape and (images["s1"] == 0).all() and not valid["s1"].any()
    place = S2.index("B08")
    there = [number for number in range(len(S2)) if number != place]
    assert (images["s2"][:, place] == 0).all() and not valid["s2"][:, place].any()
    assert torch.equal(images["s2"][:, there], full["s2"][:, there]) and valid["s2"][:, there].all()
    assert torch.equal(transform.denormalise("s1", images["s1"]), images["s1"])


def test_a_data_set_with_none_of_the_bands_is_refused_even_so(made):
    with pytest.raises(ConfigError, match=r"no band that the model asks for is there, only B02, .*B09; leave"):
        ImageTransform(lacking(made, "VV", "VH"), BOTH[:1], 12, absent_bands=True)
