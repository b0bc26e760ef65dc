"""The engines of `pipeline.engine` on one device, as rows of `benchmarks.gpu`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch

from benchmarks.gpu_rows import Bench, measure_step
from benchmarks.model_contenders import make_ours
from benchmarks.stream_report import Entry
from fusmae import FusMAEConfig
from pipeline.data_settings import DataSettings
from pipeline.distributed import free_port, join, leave
from pipeline.engine import build_engine, import_deepspeed
from pipeline.settings import EngineSettings, RunSettings, Settings, TrainSettings


class Kind(NamedTuple):
    """An engine, under the name of its row."""

    title: str
    name: Literal["deepspeed", "ddp"]
    zero_stage: Literal[0, 1, 2, 3]
    precision: Literal["bf16", "fp32"]


KINDS = (
    Kind("DDP bf16", "ddp", 0, "bf16"),
    Kind("ZeRO 1 bf16", "deepspeed", 1, "bf16"),
    Kind("ZeRO 2 bf16", "deepspeed", 2, "bf16"),
    Kind("DDP fp32", "ddp", 0, "fp32"),
    Kind("ZeRO 0 fp32", "deepspeed", 0, "fp32"),
)
"""ZeRO 0 trains in float32 only, so DDP is there a second time for it."""


@contextmanager
def lone_rank(device: torch.device) -> Iterator[None]:
    """A process group of this process alone."""
    described = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    described["MASTER_PORT"] = str(free_port())
    before = {name: os.environ.get(name) for name in described}
    os.environ.update(described)
    try:
        join(device, timeout_s=60)
        yield
    finally:
        if torch.distributed.is_initialized() and "deepspeed" in sys.modules:
            import deepspeed.comm

            # It keeps the groups that it was given, which must not outlive them.
            if deepspeed.comm.is_initialized():
                deepspeed.comm.destroy_process_group()
        leave()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def measure_engine(bench: Bench, entry: Entry, kind: Kind, config: FusMAEConfig, batch: int) -> None:
    """Forward, backward and step through an engine, fp32 masters and moments included."""
    settings = Settings(
        data=DataSettings(url="."),  # never read: the batch is random
        train=TrainSettings(steps=1, global_batch=batch),
        run=RunSettings(dir="."),
        engine=EngineSettings(name=kind.name, zero_stage=kind.zero_stage, precision=kind.precision),
    )
    if kind.name == "deepspeed":
        import_deepspeed(bench.device)
    contender = make_ours(config, batch, bench.device)
    engine = build_engine(contender.model, settings, bench.device, accumulation=1, universal=False)

    def step() -> None:
        engine.backward(contender.loss(engine), is_last=True)
        engine.step(1e-4)

    measure_step(bench, entry, step, batch, contender.train_flops)
