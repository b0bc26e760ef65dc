"""Weights put together from the pieces of one rank; those of several are in tests/dist."""

from typing import Any

import pytest
import torch

from pipeline.fp32_weights import Piece, WeightShare, put_together


def test_pieces_in_any_order_become_weights_in_the_model_s(group: Any) -> None:
    values = torch.arange(6.0)
    pieces = [Piece("b", 2, values[2:]), Piece("a", 0, torch.ones(1)), Piece("b", 0, values[:2])]
    found = put_together(WeightShare(shapes={"a": (), "b": (2, 3)}, pieces=pieces), group)
    assert list(found) == ["a", "b"] and found["a"].shape == ()
    assert torch.equal(found["b"], values.view(2, 3))


def test_whole_weight_is_not_copied(group: Any) -> None:
    values = torch.arange(6.0)
    found = put_together(WeightShare(shapes={"a": (2, 3)}, pieces=[Piece("a", 0, values)]), group)
    assert found["a"].data_ptr() == values.data_ptr()


def test_missing_values_are_told(group: Any) -> None:
    share = WeightShare(shapes={"a": (2, 3)}, pieces=[Piece("a", 0, torch.ones(4))])
    with pytest.raises(AssertionError, match="the ranks hold 4 of the 6 values of a"):
        put_together(share, group)
