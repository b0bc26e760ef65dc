from dataclasses import replace

import pytest
import torch

from fusmae import FusMAE, FusMAEConfig
from fusmae.random import CounterRandom, Purpose
from pipeline.stream.mixture import MixtureConfig, MixtureMember, MixtureStream
from pipeline.transform import ImageTransform, MixtureTransform
from sharding.errors import ConfigError
from tests.unit.pipeline.small_shards import BANDS_L2A, Made, make

S2 = tuple(band for band in BANDS_L2A if band.startswith("B"))
BOTH = [("s1", ("VV", "VH")), ("s2", S2)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Made]:
    """Pairs of 12 and of 24 pixels, the second ones with an offset, and some with few bands."""
    root = tmp_path_factory.mktemp("mixture")
    return {"ben": make(root / "ben"), "ssl": make(root / "ssl", (9, 4), pixels=24, subset_every=3, offset_every=1)}


@pytest.fixture(scope="module")
def batch(sets):
    members = tuple(MixtureMember(url=made.url, weight=1) for made in sets.values())
    with MixtureStream(MixtureConfig(datasets=members, global_batch=24, groups=2)) as stream:  # parts interleave
        return next(iter(stream)).copy()


def manifests(sets):
    return {name: made.manifest for name, made in sets.items()}


def draws(batch, seed=5) -> CounterRandom:
    return CounterRandom(seed, batch.epoch, batch.position)


def without(manifest, *bands):
    """The manifest of a data set that never had these bands."""
    arrays = tuple(replace(a, bands=tuple(b for b in a.bands if b not in bands)) for a in manifest.arrays)
    return replace(manifest, arrays=tuple(array for array in arrays if array.bands))


def test_each_sample_is_normalised_with_the_statistics_of_its_own_data_set(sets, batch):
    images, valid = MixtureTransform(manifests(sets), BOTH, 12)(batch, None)
    for name, part, rows in zip(batch.names, batch.parts, batch.rows, strict=True):
        alone, own_valid = ImageTransform(sets[name].manifest, BOTH, 12)(part, None)
        for modality, bands in BOTH:
            assert images[modality].shape == (24, len(bands), 12, 12) and valid[modality].shape == (24, len(bands))
            assert torch.equal(images[modality][rows], alone[modality])
            assert torch.equal(valid[modality][rows], own_valid[modality])


def test_with_the_statistics_of_another_data_set_the_images_differ(sets, batch):
    mine = MixtureTransform(manifests(sets), BOTH, 12)(batch, None)[0]["s2"]
    statistics = sets["ben"].manifest.statistics
    exchanged = {"ben": sets["ben"].manifest, "ssl": replace(sets["ssl"].manifest, statistics=statistics)}
    other = MixtureTransform(exchanged, BOTH, 12)(batch, None)[0]["s2"]
    ben, ssl = batch.rows
    assert torch.equal(mine[ben], other[ben]) and not torch.equal(mine[ssl], other[ssl])


def test_a_sample_is_made_the_same_in_whatever_micro_batch_it_comes(sets, batch):
    transform = MixtureTransform(manifests(sets), BOTH, 8)
    whole, _ = transform(batch, draws(batch))
    for num in (2, 3, 8):
        parts = [transform(part, draws(part))[0]["s2"] for part in batch.split(num)]
        assert torch.equal(torch.cat(parts), whole["s2"])


def test_flips_and_windows_are_drawn_by_the_samples_own_position(sets, batch):
    images, _ = MixtureTransform(manifests(sets), BOTH, 8)(batch, draws(batch))
    for number, (name, part, rows) in enumerate(zip(batch.names, batch.parts, batch.rows, strict=True)):
        own = CounterRandom(5, part.epoch, part.position + (number << 32))
        assert torch.equal(images["s1"][rows], ImageTransform(sets[name].manifest, BOTH, 8)(part, own)[0]["s1"])


def test_samples_at_the_same_place_of_two_data_sets_have_masks_of_their_own(batch):
    ids = draws(batch).permutation(100, Purpose.MASK)
    ben, ssl = (rows.tolist() for rows in batch.rows)
    first, second = batch.parts
    same = [
        (ben[i], ssl[j])
        for i, place in enumerate(first.position.tolist())
        for j, other in enumerate(second.position.tolist())
        if place == other and first.epoch[i] == second.epoch[j]
    ]
    assert len(same) > 5
    assert not any(torch.equal(ids[i], ids[j]) for i, j in same)


def test_a_band_that_a_data_set_lacks_is_zero_and_not_valid(sets, batch):
    lacking = manifests(sets) | {"ssl": without(sets["ssl"].manifest, "B08", "B12")}
    images, valid = MixtureTransform(lacking, BOTH, 12)(batch, None)
    full, full_valid = MixtureTransform(manifests(sets), BOTH, 12)(batch, None)
    ben, ssl = batch.rows
    absent = [S2.index("B08"), S2.index("B12")]  # the last planes of their arrays
    there = [place for place in range(len(S2)) if place not in absent]
    assert (images["s2"][ssl][:, absent] == 0).all() and not valid["s2"][ssl][:, absent].any()
    assert torch.equal(valid["s2"][ssl][:, there], full_valid["s2"][ssl][:, there])
    assert torch.equal(images["s2"][ben], full["s2"][ben]) and torch.equal(images["s1"], full["s1"])


def test_a_modality_that_a_data_set_lacks_is_zero_and_not_valid(sets, batch):
    lacking = manifests(sets) | {"ssl": without(sets["ssl"].manifest, "VV", "VH")}
    parts = tuple(
        part if name == "ben" else replace(part, radiometric_offset=part.radiometric_offset[:, 1:])
        for name, part in zip(batch.names, batch.parts, strict=True)
    )
    images, valid = MixtureTransform(lacking, BOTH, 12)(replace(batch, parts=parts), draws(batch))
    ben, ssl = batch.rows
    assert (images["s1"][ssl] == 0).all() and not valid["s1"][ssl].any()
    assert valid["s1"][ben].all() and valid["s2"][ssl].any()


def test_the_model_trains_on_a_batch_of_several_data_sets(sets, batch):
    torch.manual_seed(0)
    shape = {"image_size": 12, "patch_size": 4, "width": 48, "depth": 2, "heads": 3}
    model = FusMAE(FusMAEConfig(**shape, decoder_width=32, decoder_depth=1, decoder_heads=2))
    modalities = [(modality.name, modality.bands) for modality in model.config.modalities]
    images, valid = MixtureTransform(manifests(sets), modalities, 12)(batch, draws(batch))
    output = model(images, draws(batch), valid)
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_a_band_that_no_data_set_has_is_refused(sets):
    with pytest.raises(ConfigError, match="asks for band B10, which no data set of the mixture has"):
        MixtureTransform(manifests(sets), [("s2", ("B02", "B10"))], 12)


def test_a_data_set_without_any_band_asked_for_is_refused_by_name(sets):
    lacking = manifests(sets) | {"ssl": without(sets["ssl"].manifest, "VV", "VH")}
    with pytest.raises(ConfigError, match="data set ssl of the mixture: no band that the model asks for"):
        MixtureTransform(lacking, [("s1", ("VV", "VH"))], 12)


def test_a_data_set_whose_patches_are_too_small_is_refused_by_name(sets):
    with pytest.raises(ConfigError, match="data set ben of the mixture: the image size is 24"):
        MixtureTransform(manifests(sets), BOTH, 24)
