import pytest
import torch

from fusmae.losses import masked_mse


def test_without_validity_it_is_the_mean_of_all_squares():
    pred, target = torch.randn(3, 5, 12).double(), torch.randn(3, 5, 12).double()
    assert masked_mse(pred, target).item() == pytest.approx(((pred - target) ** 2).mean().item(), abs=1e-12)


def test_absent_bands_are_left_out_as_if_by_hand():
    pred, target = torch.randn(3, 5, 12).double(), torch.randn(3, 5, 12).double()
    valid = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    by_hand = 0.0
    for sample in range(3):
        squares = [
            (pred[sample, m, e] - target[sample, m, e]).item() ** 2
            for m in range(5)
            for e in range(12)
            if valid[sample, e % 3]
        ]
        by_hand += sum(squares) / len(squares) / 3
    assert masked_mse(pred, target, valid).item() == pytest.approx(by_hand, abs=1e-12)


def test_validity_by_element_equals_validity_by_band():
    pred, target = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    bands = torch.tensor([[True, False, True], [False, True, True]])
    elements = bands[:, None].expand(2, 4, 3).repeat(1, 1, 4)
    assert torch.equal(masked_mse(pred, target, bands), masked_mse(pred, target, elements))


def test_all_bands_valid_changes_nothing():
    pred, target = torch.randn(2, 4, 12), torch.randn(2, 4, 12)
    torch.testing.assert_close(masked_mse(pred, target, torch.ones(2, 3)), masked_mse(pred, target))


def test_a_batch_without_valid_bands_is_exactly_0_with_gradient_0():
    pred = torch.randn(2, 4, 12, requires_grad=True)
    loss = masked_mse(pred, torch.full((2, 4, 12), float("nan")), torch.zeros(2, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(pred.grad, torch.zeros(2, 4, 12))


def test_what_stands_in_an_absent_band_has_no_effect():
    pred = torch.randn(2, 4, 12, requires_grad=True)
    target, valid = torch.randn(2, 4, 12), torch.tensor([[True, False, True], [True, True, True]])
    clean = masked_mse(pred, target, valid)
    (clean_gradient,) = torch.autograd.grad(clean, pred)
    target[0, :, 1::3] = float("nan")
    dirty = masked_mse(pred, target, valid)
    (dirty_gradient,) = torch.autograd.grad(dirty, pred)
    assert torch.equal(clean, dirty) and torch.equal(clean_gradient, dirty_gradient)
    assert masked_mse(pred, target).isnan()  # the negative twin: without validity it spoils the loss


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_parts():
    pred, target = torch.randn(4, 5, 12).double(), torch.randn(4, 5, 12).double()
    valid = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    parts = [masked_mse(pred[i : i + 1], target[i : i + 1], valid[i : i + 1]) for i in range(4)]
    assert masked_mse(pred, target, valid).item() == pytest.approx(sum(parts).item() / 4, abs=1e-12)


def test_bfloat16_predictions_are_compared_in_float32():
    pred, target = torch.randn(2, 4, 12).bfloat16(), torch.randn(2, 4, 12)
    assert torch.equal(masked_mse(pred, target), (pred.float() - target).square().mean())


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4, 12), (2, 4, 11), None), r"\(2, 4, 11\)"),
        (((2, 4, 12), (2, 4, 12), (2, 5)), r"\(2, 5\)"),
        (((2, 4, 12), (2, 4, 12), (3, 3)), r"\(3, 3\)"),
        (((2, 4, 12), (2, 4, 12), (2, 3, 12)), r"\(2, 3, 12\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, message):
    pred, target, valid = (None if shape is None else torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        masked_mse(pred, target, valid)
