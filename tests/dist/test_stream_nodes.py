"""Two nodes, each a network namespace with two ranks, in step over a link between them."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stream.exact import Stream, StreamConfig
from tests.unit.pipeline.small_shards import make, take

ROOT = Path(__file__).resolve().parents[2]
G = 12
STEPS = 6

RANK = """
import hashlib, json, os, signal, sys
import torch.distributed as dist
from pipeline.stream.exact import Stream, StreamConfig
url, out, begin, die_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
with Stream(StreamConfig(url=url, global_batch=12, window_gib=1e-4), rank, world) as stream:
    state = stream.state_dict()
    stream.load_state_dict(state | {"samples_seen": begin * 12})
    for step, batch in zip(range(begin, 6), stream):
        if step == die_at and rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        digest = [hashlib.sha256(b"".join(a[i].numpy().tobytes() for a in batch.arrays.values())).hexdigest()
                  for i in range(len(batch))]
        steps = [None] * world
        dist.all_gather_object(steps, (step, stream.samples_seen))
        assert set(steps) == {(step, (step + 1) * 12)}, steps
        with open(f"{out}/{step}-{rank}-of-{world}", "w") as file:
            json.dump(list(zip(batch.keys, digest)), file)
dist.destroy_process_group()
"""


def ip(*arguments: str, check: bool = True) -> bool:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def nodes():
    """The names of two namespaces that are 10.77.0.1 and 10.77.0.2 to each other."""
    names = [f"fusmae-{os.getpid()}-{letter}" for letter in "ab"]
    if os.geteuid() != 0 or shutil.which("ip") is None or not ip("netns", "add", names[0], check=False):
        pytest.skip("needs network namespaces: root and iproute2")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "link0")
            ip("-n", name, "link", "set", "link0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def start(nodes, ranks_of_node, url, out, begin=0, die_at=-1) -> list[subprocess.Popen]:
    world = len(nodes) * ranks_of_node
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "10.77.0.1",
        "MASTER_PORT": "29511",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(ranks_of_node),
        "GLOO_SOCKET_IFNAME": "link0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", RANK, url, str(out), str(begin), str(die_at)]
    return [
        subprocess.Popen(
            ["ip", "netns", "exec", nodes[rank // ranks_of_node], *command], env=environment | {"RANK": str(rank)}
        )
        for rank in range(world)
    ]


def gathered(out: Path, step: int, world: int) -> list[tuple[str, str]]:
    parts = [json.loads((out / f"{step}-{rank}-of-{world}").read_text()) for rank in range(world)]
    return [tuple(pair) for part in parts for pair in part]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("nodes") / "pairs", (17, 5, 23, 8), subset_every=4)


@pytest.fixture(scope="module")
def expected(made):
    with Stream(StreamConfig(url=made.url, global_batch=G, window_gib=1e-4)) as stream:
        batches = take(stream, STEPS)

    def digest(batch, i):
        return hashlib.sha256(b"".join(a[i].numpy().tobytes() for a in batch.arrays.values())).hexdigest()

    return [[(key, digest(batch, i)) for i, key in enumerate(batch.keys)] for batch in batches]


@pytest.mark.dist
def test_two_nodes_read_the_batches_of_one_process(nodes, made, expected, tmp_path):
    ranks = start(nodes, 2, made.url, tmp_path)
    assert [rank.wait(120) for rank in ranks] == [0, 0, 0, 0]
    assert [gathered(tmp_path, step, 4) for step in range(STEPS)] == expected


@pytest.mark.dist
def test_after_a_killed_rank_one_node_goes_on_with_the_same_batches(nodes, made, expected, tmp_path):
    ranks = start(nodes, 2, made.url, tmp_path, die_at=3)
    codes = [rank.wait(120) for rank in ranks]
    assert codes[3] == -signal.SIGKILL
    assert all(codes[:3])  # their collective fails: nobody goes on alone
    assert [gathered(tmp_path, step, 4) for step in range(3)] == expected[:3]
    ranks = start(nodes[:1], 2, made.url, tmp_path, begin=3)
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert [gathered(tmp_path, step, 2) for step in range(3, STEPS)] == expected[3:]
