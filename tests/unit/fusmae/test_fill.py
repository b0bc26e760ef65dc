"""Hidden patches are filled under masks of anybody's choice, from what is visible and nothing else."""

import pytest
import torch

from fusmae import FusMAE
from fusmae.patch import patchify

VARIANTS = [
    {},
    {"decoder_fusion": "xad"},
    {"encoder_fusion": "none", "decoder_fusion": "multimae"},
    {"decoder_attention": "cross"},
    {"masking": "dirichlet"},
]


@pytest.fixture
def made(tiny, randomise):
    """Makes a model in float64 whose weights are all random."""
    return lambda **changes: randomise(FusMAE(tiny(**changes)).double(), 0.1).eval()


def double(batch):
    return {name: image.double() for name, image in batch.items()}


def some_mask(num_hidden: int, batch: int = 3) -> torch.Tensor:
    mask_BN = torch.zeros(batch, 16, dtype=torch.bool)
    for row in range(batch):
        mask_BN[row, torch.randperm(16, generator=torch.Generator().manual_seed(row))[:num_hidden]] = True
    return mask_BN


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_under_the_masks_of_training_it_fills_as_reconstruct_does(made, images, draw, changes):
    model = made(**changes)
    batch = double(images(model.config, 3))
    drawn = model.reconstruct(batch, draw(range(3)))
    filled = model.fill(batch, {name: mask.mask_BN for name, mask in drawn.masks.items()})
    for name in batch:
        torch.testing.assert_close(filled[name], drawn.images[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_visible_patches_stay_and_what_is_hidden_is_not_looked_at(made, images, changes):
    model = made(**changes)
    batch = double(images(model.config, 3))
    mask_BN = some_mask(5)
    filled = model.fill(batch, {"s2": mask_BN})["s2"]
    is_kept_BN = (patchify(filled, 4) == patchify(batch["s2"], 4)).all(2)
    assert torch.equal(is_kept_BN, ~mask_BN)
    inside = mask_BN.reshape(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = batch | {"s2": batch["s2"].where(~inside, 7.0)}
    assert torch.equal(model.fill(other, {"s2": mask_BN})["s2"], filled)


def test_the_other_sensor_is_seen_whole_and_may_be_left_out(made, images):
    model = made()
    batch = double(images(model.config, 3))
    mask_BN = some_mask(5)
    with_s1 = model.fill(batch, {"s2": mask_BN})["s2"]
    for patch in range(16):
        changed = batch["s1"].clone()
        row, column = divmod(patch, 4)
        changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
        assert not torch.equal(model.fill(batch | {"s1": changed}, {"s2": mask_BN})["s2"], with_s1)
    alone = model.fill({"s2": batch["s2"]}, {"s2": mask_BN})["s2"]
    assert alone.shape == with_s1.shape and not torch.equal(alone, with_s1)


def test_a_sample_is_filled_as_it_is_alone_whatever_the_others_hide(made, images):
    model = made()
    batch = double(images(model.config, 3))
    mask_BN = some_mask(5)
    mask_BN[1] = some_mask(11)[1]
    together = model.fill(batch, {"s2": mask_BN})["s2"]
    for row in range(3):
        one = {name: image[row : row + 1] for name, image in batch.items()}
        torch.testing.assert_close(
            model.fill(one, {"s2": mask_BN[row : row + 1]})["s2"], together[row : row + 1], rtol=0, atol=1e-10
        )


def test_what_cannot_be_filled_is_refused(made, images):
    model = made()
    batch = double(images(model.config, 3))
    with pytest.raises(ValueError, match="relative to their own mean"):
        made(target_norm="per_patch").fill(batch, {"s2": some_mask(5)})
    with pytest.raises(ValueError, match="masks of s1 were given, and images of s2"):
        model.fill({"s2": batch["s2"]}, {"s1": some_mask(5)})
    with pytest.raises(ValueError, match="masks of no modality"):
        model.fill(batch, {})
    with pytest.raises(ValueError, match=r"takes bool \(3, 16\)"):
        model.fill(batch, {"s2": some_mask(5).long()})
    mask_BN = some_mask(5)
    mask_BN[1] = some_mask(11)[1]
    with pytest.raises(ValueError, match="the same number of patches"):
        made(decoder_attention="cross").fill(batch, {"s2": mask_BN})
