"""How long training stands still for a save, for `benchmarks.engine`: ours in the background and waiting, DeepSpeed's.

All save the same state, in turns, onto the same disk; what the disk still holds back is written before each. The
limits are one copy of as many bytes between memory that is in use already, and one write of them with fsync.
"""

import os
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine_ranks import measure_as_rank
from pipeline.distributed import Ranks

BACKGROUND, BLOCKING = "ours, background", "ours, waiting"
THEIRS = "DeepSpeed's save_checkpoint"
THEIRS_SYNCED = THEIRS + ", then fsync"
COPY, WRITE = "limit: copy in memory", "limit: write and fsync"
BUSY_STEP, FREE_STEP = "a step while a save is written", "a step without a save"
FIRST = "ours, background, first save"
GATHER = "ours, background, of which fp32 weights"
WHOLE = "ours, background, until committed"
EXCESS = "ours, background, stall and what the steps lost"
_PIECE = 16 * 2**20


def measure(spec: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Seconds of each save, by contender; `spec`: model, rounds, batch, steps (at most, while a save is written)."""
    import torch
    import torch.distributed as dist

    from benchmarks.model_contenders import make_ours
    from fusmae import FusMAEConfig
    from pipeline import checkpoint
    from pipeline.distributed import cpu_group, join, leave
    from sharding.store import Store

    cpu = torch.device("cpu")
    join(cpu, timeout_s=600)
    folder = Path(spec["folder"])
    config = FusMAEConfig(**spec["model"])
    contender = make_ours(config, spec["batch"], cpu)
    ours, theirs = (_engine(model, spec["precision"]) for model in (contender.model, make_ours(config, 1, cpu).model))
    deepspeed = theirs._engine
    deepspeed._configure_checkpointing()
    assert type(deepspeed.checkpoint_engine).__name__ == "TorchCheckpointEngine"

    def step() -> float:
        began = time.perf_counter()
        ours.backward(contender.loss(ours), is_last=True)
        ours.step(1e-4)
        return time.perf_counter() - began

    step()
    theirs.backward(contender.loss(theirs), is_last=True)
    theirs.step(1e-4)

    places = {}
    for name, is_background in ((BACKGROUND, True), (BLOCKING, False)):
        root = folder / f"run-{is_background}"
        root.mkdir(exist_ok=True)
        fence = checkpoint.Fence(store=Store(str(root)), token="one", owner="the benchmark")
        if ranks.is_first:
            fence.take()
        place = checkpoint.FolderPlace(root / "checkpoints", fence)
        places[name] = checkpoint.Saver(
            place, cpu_group(600), checkpoint.Retention(keep=2), is_background=is_background
        )
    gather_s = [0.0]
    _time_call(ours, "weights", gather_s)
    seconds: dict[str, list[float]] = defaultdict(list)
    number = [0]

    def background() -> None:
        number[0] += 1
        saver, free = places[BACKGROUND], [step() for _ in range(2)]
        dist.barrier()
        began = time.perf_counter()
        saver.begin(number[0], ours, {}, {"model": {}})
        stall = time.perf_counter() - began
        is_first = number[0] == 1
        seconds[FIRST if is_first else BACKGROUND].append(stall)
        busy = []
        while saver._thread is not None and saver._thread.is_alive() and len(busy) < spec["steps"]:
            busy.append(step())
        saved = saver.finish()
        if is_first:
            return
        seconds[GATHER].append(gather_s[0])
        seconds[WHOLE].append(saved.seconds)
        free.append(step())
        seconds[FREE_STEP] += free
        # The last one ended after the save did.
        seconds[BUSY_STEP] += busy[:-1] or busy
        seconds[EXCESS].append(stall + sum(busy) - len(busy) * statistics.median(free))

    def blocking() -> None:
        number[0] += 1
        began = time.perf_counter()
        places[BLOCKING].begin(number[0], ours, {}, {"model": {}})
        places[BLOCKING].finish()
        seconds[BLOCKING].append(time.perf_counter() - began)

    def of_deepspeed() -> None:
        number[0] += 1
        root = folder / "deepspeed"
        began = time.perf_counter()
        deepspeed.save_checkpoint(str(root), tag=f"step{number[0]}", save_latest=True)
        seconds[THEIRS].append(time.perf_counter() - began)
        for path in (root / f"step{number[0]}").glob("*.pt"):
            _sync(path)
        dist.barrier()
        seconds[THEIRS_SYNCED].append(time.perf_counter() - began)
        dist.barrier()
        if ranks.is_first and (root / f"step{number[0] - 4}").exists():
            shutil.rmtree(root / f"step{number[0] - 4}")

    def limits() -> None:
        held = places[BACKGROUND]._copies.nbytes
        # zeros() would be given memory that no page backs yet
        source, target = torch.ones(held // 4), torch.ones(held // 4)
        dist.barrier()
        began = time.perf_counter()
        target.copy_(source)
        seconds[COPY].append(time.perf_counter() - began)
        del target
        path = folder / f"plain-{ranks.rank}"
        dist.barrier()
        began = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            view = memoryview(source.numpy()).cast("B")
            for at in range(0, len(view), _PIECE):
                file.write(view[at : at + _PIECE])
            os.fsync(file.fileno())
        seconds[WRITE].append(time.perf_counter() - began)
        path.unlink()

    contenders: list[Callable[[], None]] = [background, blocking, of_deepspeed, limits]
    for run in contenders:  # the first of each warms up; that of the background is a row of its own
        _settle(dist)
        run()
    for name in [name for name in seconds if name != FIRST]:
        del seconds[name]
    for turn in range(spec["rounds"]):
        for index in range(len(contenders)):
            _settle(dist)
            contenders[(turn + index) % len(contenders)]()
    newest = max((folder / "run-True" / "checkpoints").glob("step-*"))
    sizes = {
        "parameters": sum(p.numel() for p in contender.model.parameters()),
        "ours": _bytes(newest),
        "theirs": _bytes(max((folder / "deepspeed").glob("step*"), key=lambda path: path.stat().st_mtime)),
    }
    dist.barrier()
    leave()
    return {"seconds": seconds, "bytes": sizes}


def _engine(model: Any, precision: Any) -> Any:
    import torch

    from pipeline.data_settings import DataSettings
    from pipeline.engine import build_engine
    from pipeline.settings import EngineSettings, RunSettings, Settings, TrainSettings

    settings = Settings(
        data=DataSettings(url="."),  # never read: the batch is random
        train=TrainSettings(steps=1, global_batch=1),
        run=RunSettings(dir="."),
        engine=EngineSettings(name="deepspeed", zero_stage=1, precision=precision),
    )
    return build_engine(model, settings, torch.device("cpu"), accumulation=1, universal=False)


def _time_call(owner: Any, name: str, seconds: list[float]) -> None:
    call = getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            seconds[0] = time.perf_counter() - began

    setattr(owner, name, timed)


def _settle(dist: Any) -> None:
    dist.barrier()
    os.sync()
    dist.barrier()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    measure_as_rank(measure)
