from pathlib import Path

import pytest

from tests.unit.pipeline.small_shards import Made, make


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """20 pairs in three shards, Blosc lz4."""
    return make(tmp_path / "pairs")
