from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pipeline.small_shards import Made, make


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """20 pairs in three shards, Blosc lz4."""
    return make(tmp_path / "pairs")


@pytest.fixture
def group() -> Iterator[Any]:
    """A process group of one."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
