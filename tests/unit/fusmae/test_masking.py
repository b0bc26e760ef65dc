import pytest
import torch

from fusmae.config import count_visible
from fusmae.masking import MaskingConfig, sample_masks

NAMES = ("s1", "s2")


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"),
    [
        (225, 0.75, 56),
        (64, 0.75, 16),
        (196, 0.75, 49),
        (100, 0.75, 25),
        (10, 0.75, 2),
        (14, 0.75, 4),
        (10, 0.9, 1),
    ],
)
def test_the_number_of_visible_patches_is_rounded_halves_to_even(patches, ratio, visible):
    assert count_visible(ratio, patches) == visible


@pytest.mark.parametrize("strategy", ["independent", "consistent"])
def test_every_mask_has_the_exact_count_and_its_parts_make_the_whole(draw, strategy):
    masks = sample_masks(MaskingConfig(strategy=strategy), 225, NAMES, draw(range(50)))
    assert list(masks) == list(NAMES)
    for visible, masked, mask in masks.values():
        assert visible.shape == (50, 56) and masked.shape == (50, 169) and mask.shape == (50, 225)
        assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(225).expand(50, -1))
        assert (visible.diff(dim=1) > 0).all() and (masked.diff(dim=1) > 0).all()
        assert torch.equal(mask.nonzero()[:, 1].view(50, 169), masked)


def test_consistent_masks_are_equal_and_independent_ones_differ(draw):
    consistent = sample_masks(MaskingConfig(strategy="consistent"), 225, NAMES, draw(range(20)))
    assert torch.equal(consistent["s1"].mask_BN, consistent["s2"].mask_BN)
    independent = sample_masks(MaskingConfig(), 225, NAMES, draw(range(20)))
    assert (independent["s1"].mask_BN != independent["s2"].mask_BN).any(1).all()


def test_masks_are_uniform_and_modalities_are_drawn_apart(draw):
    masks = sample_masks(MaskingConfig(), 225, NAMES, draw(range(4000)))
    first, second = (~masks[name].mask_BN for name in NAMES)
    share = first.double().mean(0)
    assert (share - 56 / 225).abs().max() < 0.035  # 5 deviations of 0.0068
    both = (first & second).sum(1).double().mean().item()
    assert both == pytest.approx(56 * 56 / 225, abs=0.25)  # 13.94 positions visible in both


def test_a_mask_does_not_depend_on_the_batch_around_its_sample(draw):
    whole = sample_masks(MaskingConfig(), 225, NAMES, draw([10, 11, 12, 13]))
    part = sample_masks(MaskingConfig(), 225, NAMES, draw([13, 11]))
    for name in NAMES:
        assert torch.equal(part[name].mask_BN, whole[name].mask_BN[[3, 1]])


def test_a_mask_from_a_process_wide_generator_would_depend_on_the_batch():
    def stateful(batch):  # the negative twin: how masks are usually drawn
        return torch.rand(batch, 225, generator=torch.Generator().manual_seed(7)).argsort(1)[:, :56].sort(1).values

    last_of_four, last_of_two = stateful(4)[3], stateful(2)[1]
    assert not torch.equal(last_of_four, last_of_two)


@pytest.mark.parametrize("change", [{"seed": 8}, {"epoch": 1}, {"positions": [4]}], ids=str)
def test_another_seed_epoch_or_position_gives_another_mask(draw, change):
    here = sample_masks(MaskingConfig(), 225, NAMES, draw([3]))
    there = sample_masks(MaskingConfig(), 225, NAMES, draw(**{"positions": [3], **change}))
    assert all(not torch.equal(here[name].mask_BN, there[name].mask_BN) for name in NAMES)


def test_torch_s_own_seed_has_no_part_in_it(draw):
    torch.manual_seed(1)
    here = sample_masks(MaskingConfig(), 225, NAMES, draw([3]))
    torch.manual_seed(2)
    assert torch.equal(here["s2"].mask_BN, sample_masks(MaskingConfig(), 225, NAMES, draw([3]))["s2"].mask_BN)


@pytest.mark.parametrize(("ratio", "patches"), [(0.75, 2), (0.01, 16), (1.0, 16), (0.0, 16), (-0.1, 16)])
def test_a_ratio_that_hides_all_or_nothing_is_refused(draw, ratio, patches):
    with pytest.raises(ValueError, match=f"mask_ratio {ratio}"):
        sample_masks(MaskingConfig(mask_ratio=ratio), patches, NAMES, draw([0]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_draws_the_same_masks(draw):
    here = sample_masks(MaskingConfig(), 225, NAMES, draw(range(500)))
    there = sample_masks(MaskingConfig(), 225, NAMES, draw(range(500)).to("cuda"))
    for name in NAMES:
        for ours, theirs in zip(here[name], there[name], strict=True):
            assert torch.equal(ours, theirs.cpu())
