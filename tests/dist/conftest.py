"""Runs of several processes on a small data set that is built once."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

ROOT = Path(__file__).parents[2]
SAVES_EVERY = 4

CONFIG = """
train: {steps: 14, global_batch: 8, micro_batch: 2, seed: 3}
optim: {lr: 1e-3, warmup_steps: 3, clip: 1.0}
engine: {device: cpu, precision: fp32}
checkpoint: {every: 4}
log: {every: 1, trace: true, tensorboard: false}
run: {num_processes: 2, threads: 1}
model: {image_size: 120, patch_size: 12, width: 48, depth: 2, heads: 3, decoder_width: 32, decoder_depth: 1,
        decoder_heads: 2}
"""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """27 pairs in the layout of BigEarthNet v1, of which 25 are in the split train: no multiple of the batch."""
    from sharding.build import main
    from tests.trees import make_bigearthnet_v1

    folder = tmp_path_factory.mktemp("data")
    make_bigearthnet_v1(folder / "tree", 27)
    splits = folder / "splits.csv"
    names = sorted(p.name for p in (folder / "tree" / "BigEarthNet-v1.0").iterdir())
    splits.write_text("".join(f"{name},{'train' if i < 25 else 'test'}\n" for i, name in enumerate(names)))
    source = ["--source", "bigearthnet-v1", "--root", str(folder / "tree")]
    assert main([*source, "--out", str(folder / "set"), "--splits", str(splits), "--workers", "1"]) == 0
    return str(folder / "set")


def two_ranks(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as two ranks."""
    code = f"import sys; from pipeline.launch import start_ranks; sys.exit(start_ranks('{module}', sys.argv[1:], 2))"
    return [sys.executable, "-c", code, *arguments]


def said_by_ranks(module: str, *arguments: str) -> list[Any]:
    """What two ranks of `module` print as JSON, in the order in which it came."""
    command = two_ranks(module, *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    decoder, said = json.JSONDecoder(), []
    for line in done.stdout.splitlines():
        while line.startswith(("{", "[")):  # what two ranks print at the same time may come before the ends of lines
            value, end = decoder.raw_decode(line)
            said.append(value)
            line = line[end:]
    return said


@dataclass
class Run:
    """A run of pipeline.pretrain in a folder of its own."""

    dir: Path
    command: list[str]

    def start(self, *overrides: str, program: str = "") -> subprocess.Popen[str]:
        """Start the ranks, in a process group of their own; each of two runs `program` where one is given."""
        command = self.command
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        if program:
            folder = self.dir.parent / f"program-{google_crc32c.value(program.encode()):08x}"
            folder.mkdir(exist_ok=True)
            (folder / "program.py").write_text(program)
            command = two_ranks("program", *self.command[3:])
            environment["PYTHONPATH"] = f"{folder}:{ROOT}"
        return subprocess.Popen(
            [*command, *overrides],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=environment,
        )

    def finish(self, *overrides: str, code: int = 0, program: str = "") -> str:
        """Run to the end; returns what was said."""
        process = self.start(*overrides, program=program)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == code, said
        return said

    def kill_at(self, step: int, number: int = signal.SIGKILL) -> None:
        """Send `number` to the launcher as soon as every rank has reached `step`, and wait for the end of all."""
        process = self.start()
        deadline = time.monotonic() + 240
        while not self.has_reached(step):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"ended before step {step}: {process.communicate()[0]}")
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=120)
        self.wait_until_left()

    def wait_until_left(self) -> None:
        """Wait until no process holds the run folder."""
        deadline = time.monotonic() + 60
        while not _unlocked(self.dir / "lock"):
            assert time.monotonic() < deadline, "the ranks outlived their launcher"
            time.sleep(0.02)

    def has_reached(self, step: int) -> bool:
        """Whether every rank has traced `step`, and the save before it, which goes on behind the steps, is done."""
        saved = self.dir / "checkpoints" / f"step-{step // SAVES_EVERY * SAVES_EVERY:08d}"
        return min(len(self.trace(rank)) for rank in (0, 1)) >= step and (step < SAVES_EVERY or saved.exists())

    def trace(self, rank: int = 0) -> list[dict[str, Any]]:
        """What this rank trained on, step by step."""
        from pipeline.metrics import read_lines

        return read_lines(self.dir / f"trace-rank{rank:05d}.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        """Rank 0's logged steps."""
        from pipeline.metrics import read_lines

        return read_lines(self.dir / "metrics.jsonl")

    def events(self) -> list[dict[str, Any]]:
        """What happened, in order."""
        return [json.loads(line) for line in (self.dir / "events-rank00000.jsonl").read_text().splitlines()]

    def checkpoints(self) -> list[str]:
        """Names of what lies in the checkpoints' folder."""
        return sorted(p.name for p in (self.dir / "checkpoints").iterdir())

    def weights(self) -> bytes:
        """The newest checkpoint's fp32 weights."""
        newest = max(p for p in (self.dir / "checkpoints").iterdir() if p.name.startswith("step-"))
        return (newest / "model.safetensors").read_bytes()


def ranks_of(launcher: "subprocess.Popen[str]") -> dict[int, int]:
    """The processes of a launcher's ranks."""
    return ranks_of_pid(launcher.pid)


def ranks_of_pid(launcher: int) -> dict[int, int]:
    """As `ranks_of`, by the launcher's number."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(v[5:]): int(pid) for v in variables if v.startswith(b"RANK=")}
    return found


def _unlocked(path: Path) -> bool:
    import fcntl

    if not path.exists():
        return True
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def runs_in(folder: Path, dataset: str) -> Callable[..., Run]:
    """Makes runs on a data set, each in a folder of its own: `make("name", "key=value", ...)`."""
    config = folder / "config.yaml"
    config.write_text(CONFIG + f"data: {{url: {dataset}, threads: 1}}\n")

    def make(name: str, *overrides: str) -> Run:
        command = [sys.executable, "-m", "pipeline.pretrain", str(config), f"run.dir={folder / name}", *overrides]
        return Run(dir=folder / name, command=command)

    return make


@pytest.fixture
def new_run(tmp_path: Path, dataset: str) -> Callable[..., Run]:
    """Makes a run: `new_run("name", "key=value", ...)`."""
    return runs_in(tmp_path, dataset)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, dataset: str) -> Callable[..., Run]:
    """`undisturbed("key=value", ...)`: a finished run with these settings, made once; to compare with, not to touch."""

    @functools.cache
    def finished(*overrides: str) -> Run:
        run = runs_in(tmp_path_factory.mktemp("undisturbed"), dataset)("run", *overrides)
        run.finish()
        return run

    return finished
