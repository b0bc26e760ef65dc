"""The fp32 weights that a checkpoint holds, put together from the pieces of two ranks."""


import pytest

from tests.dist.conftest import said_by_ranks
from tests.dist.weights_by_engine import ENGINES

pytestmark = pytest.mark.dist


def test_pieces_of_all_ranks_are_the_weights_under_every_engine() -> None:
    (equal,) = said_by_ranks("tests.dist.weights_by_engine")
    assert [tuple(engine) for engine in equal] == ENGINES
