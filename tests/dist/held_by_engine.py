"""One rank of a job that trains two steps of one sample and prints, as JSON, what its engine held of the model.

    python -m tests.dist.held_by_engine deepspeed 1 bf16 2    (engine, stage, precision, micro-batches of a step)

`most` is the most that was allocated during the second step's forward and backward passes, by torch's profiler, which
sees what hides in C++ (DDP's buckets). The optimiser's step is left out: on the CPU it is not fused and needs memory
that it does not need on a GPU.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fusmae import FusMAE, FusMAEConfig
from fusmae.random import CounterRandom
from pipeline.data_settings import DataSettings
from pipeline.distributed import join
from pipeline.engine import build_engine, import_deepspeed
from pipeline.settings import EngineSettings, RunSettings, Settings, TrainSettings

# Few tokens and wide blocks: activations are nothing beside 4.7 million weights.
CONFIG = FusMAEConfig(
    **{"image_size": 24, "patch_size": 12, "width": 256, "depth": 3, "heads": 4},
    **{"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2},
)


class Allocated:
    """Bytes allocated by what was done through it: now, and at the most in the last call."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __call__(self, does: Callable[[], None]) -> None:
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            does()
        self.most = self.now
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            self.now += event.nbytes()
            self.most = max(self.most, self.now)


def tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor) and value.ndim:
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors(inner)


def num_bytes(values: Iterator[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def main(name: str, zero_stage: int, precision: str, accumulation: int) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    join(device, 60)
    settings = Settings(
        data=DataSettings(url="."),
        train=TrainSettings(steps=1),
        run=RunSettings(dir="."),
        engine=EngineSettings(name=name, zero_stage=zero_stage, precision=precision, device="cpu"),
    )
    if name == "deepspeed":
        import_deepspeed(device)
    images = {m.name: torch.randn(1, len(m.bands), 24, 24) for m in CONFIG.modalities}
    position_B = torch.arange(1)
    draws = CounterRandom(0, torch.zeros_like(position_B), position_B)
    made = {}

    def build() -> None:
        model = FusMAE(CONFIG)
        made["parameters"] = sum(p.numel() for p in model.parameters())
        made["engine"] = build_engine(model, settings, device, accumulation, universal=False)

    def accumulate() -> None:
        for number in range(accumulation):
            loss = made["engine"](images, draws, None).loss
            made["engine"].backward(loss, is_last=number == accumulation - 1)

    allocated = Allocated()
    allocated(build)
    engine = made["engine"]
    allocated(lambda: (accumulate(), engine.step(1e-4)))
    allocated(accumulate)
    most = allocated.most
    engine.step(1e-4)
    optimiser = engine._optimiser if name == "ddp" else engine._engine.optimizer
    state = getattr(optimiser, "optimizer", optimiser).state
    said = {
        "parameters": made["parameters"],
        "most": most,
        "masters": num_bytes(tensors(dict(enumerate(state)))),
        "moments": num_bytes(tensors(dict(state))),
    }
    if os.environ["RANK"] == "0":
        print(json.dumps(said), flush=True)
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
