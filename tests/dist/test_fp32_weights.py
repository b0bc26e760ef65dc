"""The fp32 weights that a checkpoint holds, put together from the pieces of two ranks."""

import json
import os
import subprocess
import sys

import pytest

from pipeline.distributed import free_port
from tests.dist.conftest import ROOT
from tests.dist.weights_by_engine import ENGINES

pytestmark = pytest.mark.dist


def test_pieces_of_all_ranks_are_the_weights_under_every_engine() -> None:
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.dist.weights_by_engine"],
            cwd=ROOT,
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][1] + said[1][1]
    assert [tuple(engine) for engine in json.loads(said[0][0].splitlines()[-1])] == ENGINES
