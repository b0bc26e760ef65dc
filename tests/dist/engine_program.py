"""What programs of one rank share that build engines by themselves, as `held_by_engine` does."""

import os
from typing import Any

import torch

from fusmae import FusMAE, FusMAEConfig
from fusmae.random import CounterRandom
from pipeline.data_settings import DataSettings
from pipeline.distributed import Ranks, join
from pipeline.engine import Engine, build_engine, import_deepspeed
from pipeline.settings import EngineSettings, OptimSettings, RunSettings, Settings, TrainSettings

CONFIG = FusMAEConfig(
    **{"image_size": 24, "patch_size": 12, "width": 48, "depth": 2, "heads": 3},
    **{"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
)
MICRO_BATCH, ACCUMULATION = 2, 2
CPU = torch.device("cpu")


def join_ranks() -> tuple[Ranks, Any]:
    torch.set_num_threads(1)
    group = join(CPU, 60)
    import_deepspeed(CPU)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Ranks(rank=rank, world_size=world_size, local_rank=rank), group


def settings_of(name: str, **engine: Any) -> Settings:
    """`ddp`, or `zero1` and so on."""
    engine |= {"name": "ddp"} if name == "ddp" else {"name": "deepspeed", "zero_stage": int(name[-1])}
    return Settings(
        data=DataSettings(url="."),
        train=TrainSettings(steps=9, global_batch=2 * MICRO_BATCH * ACCUMULATION, micro_batch=MICRO_BATCH),
        optim=OptimSettings(lr=1e-3, clip=1.0),
        run=RunSettings(dir="."),
        engine=EngineSettings(device="cpu", **engine),
    )


def build_model(config: FusMAEConfig = CONFIG) -> FusMAE:
    torch.manual_seed(7)
    return FusMAE(config)


def make_engine(settings: Settings, config: FusMAEConfig = CONFIG) -> Engine:
    return build_engine(build_model(config), settings, CPU, ACCUMULATION, universal=False)


def train(engine: Engine, rank: int, num_steps: int = 2, spoilt: int | None = None) -> None:
    """Steps on batches of this rank's own; step `spoilt` has a sample that is not finite."""
    generator = torch.Generator().manual_seed(rank)
    for step in range(num_steps):
        for number in range(ACCUMULATION):
            images = {
                m.name: torch.randn(MICRO_BATCH, len(m.bands), 24, 24, generator=generator) for m in CONFIG.modalities
            }
            if step == spoilt and rank == 1:
                images["s2"][0] = float("nan")
            position_B = torch.arange(MICRO_BATCH)
            loss = engine(images, CounterRandom(step, torch.zeros_like(position_B), position_B), None).loss
            engine.backward(loss, is_last=number == ACCUMULATION - 1)
        engine.step(1e-3)
