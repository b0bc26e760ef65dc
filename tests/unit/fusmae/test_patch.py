import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusmae.patch import (
    FixedPositions,
    PatchProjection,
    denormalise_patches,
    gather_patches,
    normalise_patches,
    patch_statistics,
    patchify,
    sincos_positions,
    unpatchify,
)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    bands=st.integers(1, 13),
    patch=st.integers(1, 9),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
)
def test_unpatchify_undoes_patchify(batch, bands, patch, rows, columns):
    shape = (batch, bands, rows * patch, columns * patch)
    image = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    patches = patchify(image, patch)
    assert patches.shape == (batch, rows * columns, patch * patch * bands)
    assert torch.equal(unpatchify(patches, patch, *shape[2:]), image)


def test_patches_go_row_by_row_and_the_band_is_fastest():
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    patches = patchify(image, 2)
    for patch in range(6):
        for element in range(12):
            pixel, band = divmod(element, 3)
            row, column = 2 * (patch // 3) + pixel // 2, 2 * (patch % 3) + pixel % 2
            assert patches[1, patch, element] == image[1, band, row, column]


def test_projection_is_the_convolution_of_equation_1():
    image = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    projection, positions = PatchProjection(48, 16).double(), FixedPositions(3, 16).double()
    ids = torch.tensor([[0, 4, 8], [1, 2, 7]])
    tokens = projection(gather_patches(patchify(image, 4), ids), positions(ids))
    kernel = projection.linear.weight.unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)
    grid = F.conv2d(image, kernel, projection.linear.bias, stride=4).flatten(2).transpose(1, 2)
    expected = gather_patches(grid + sincos_positions(3, 3, 16, torch.float64), ids)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-12)


def test_positions_are_sines_and_cosines_of_row_and_column():
    table = sincos_positions(3, 5, 8)
    for row in range(3):
        for column in range(5):
            expected = [
                wave(index / 10000 ** (i / 2))
                for index in (row, column)
                for wave in (math.sin, math.cos)
                for i in range(2)
            ]
            assert table[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-7)
    assert torch.unique(table, dim=0).shape[0] == 15


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_positions_keep_their_precision_when_the_module_is_cast(dtype, kept):
    positions = FixedPositions(15, 64).to(dtype)
    assert torch.equal(positions.table_ND, sincos_positions(15, 15, 64, kept))
    assert not positions.state_dict()


def test_positions_survive_the_meta_device():
    with torch.device("meta"):
        positions = FixedPositions(5, 16)
    assert torch.equal(positions.to_empty(device="cpu").table_ND, sincos_positions(5, 5, 16))


def test_tokens_have_the_dtype_of_the_weights_and_are_rounded_once():
    projection = PatchProjection(8, 4).bfloat16()
    patches, positions = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    tokens = projection(patches, positions)
    linear = projection.linear(patches.bfloat16())
    assert torch.equal(tokens, (linear.float() + positions).bfloat16())


def test_normalised_patches_have_mean_0_and_variance_1_and_come_back():
    patches = torch.randn(2, 9, 48, dtype=torch.float64) * 3000 + 1000
    statistics = patch_statistics(patches)
    normal = normalise_patches(patches, statistics)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 9).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(normal.var(-1, unbiased=True), torch.ones(2, 9).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(denormalise_patches(normal, statistics), patches, rtol=0, atol=1e-9)


def test_a_constant_patch_is_normalised_to_0():
    patches = torch.full((1, 1, 48), 7.0)
    statistics = patch_statistics(patches)
    assert statistics.std_BNE.item() == pytest.approx(1e-3)
    assert torch.equal(normalise_patches(patches, statistics), torch.zeros(1, 1, 48))


def test_absent_bands_do_not_count_in_the_statistics():
    image = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True], [True, True, True, True]])
    image[0, 1] = float("nan")
    mean, deviation = patch_statistics(patchify(image, 4), valid)
    present = patch_statistics(patchify(image[:1, [0, 2, 3]], 4))
    torch.testing.assert_close(mean[:1], present.mean_BNE, rtol=0, atol=1e-12)
    torch.testing.assert_close(deviation[:1], present.std_BNE, rtol=0, atol=1e-12)
    whole = patch_statistics(patchify(image[1:], 4))
    torch.testing.assert_close(deviation[1:], whole.std_BNE, rtol=0, atol=1e-12)


def test_a_patch_without_any_band_has_finite_statistics():
    mean, deviation = patch_statistics(torch.full((1, 2, 8), float("nan")), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(mean, torch.zeros(1, 2, 1))
    assert deviation.flatten().tolist() == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patchify(torch.zeros(3, 8, 8), 4), r"\(3, 8, 8\)"),
        (lambda: patchify(torch.zeros(1, 3, 8, 9), 4), "8 x 9 pixels"),
        (lambda: unpatchify(torch.zeros(1, 5, 48), 4, 8, 8), "5 patches of 48"),
        (lambda: unpatchify(torch.zeros(1, 4, 47), 4, 8, 8), "4 patches of 47"),
        (lambda: sincos_positions(2, 2, 6), "not 6"),
        (lambda: patch_statistics(torch.zeros(1, 4, 48), torch.ones(1, 5)), r"\(1, 5\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
