"""Steps of one engine on two ranks, for `benchmarks.engine`: of the model, and of one as deep but tiny.

The second is what the host does for a step: as many tensors, hooks, collectives and calls, but narrow.
"""

import gc
import time
from typing import Any

from benchmarks.engine_ranks import measure_as_rank
from pipeline.distributed import Ranks


def measure(spec: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Per step of each model: wall and processor seconds. `spec`: name, zero_stage, precision, models, batch, steps."""
    import torch
    import torch.distributed as dist

    from benchmarks.model_contenders import make_ours
    from fusmae import FusMAEConfig
    from pipeline.data_settings import DataSettings
    from pipeline.distributed import join, leave
    from pipeline.engine import build_engine
    from pipeline.settings import EngineSettings, RunSettings, Settings, TrainSettings

    cpu = torch.device("cpu")
    join(cpu, timeout_s=600)
    settings = Settings(
        data=DataSettings(url="."),  # never read: the batch is random
        train=TrainSettings(steps=1, global_batch=spec["batch"] * ranks.world_size),
        run=RunSettings(dir="."),
        engine=EngineSettings(name=spec["name"], zero_stage=spec["zero_stage"], precision=spec["precision"]),
    )
    found: dict[str, Any] = {}
    for title, model in spec["models"].items():
        contender = make_ours(FusMAEConfig(**model), spec["batch"], cpu)
        engine = build_engine(contender.model, settings, cpu, accumulation=1, universal=False)
        wall_s, cpu_s = [], []
        for number in range(spec["warm_up"] + spec["steps"]):
            dist.barrier()
            wall, used = time.perf_counter(), time.process_time()
            engine.backward(contender.loss(engine), is_last=True)
            engine.step(1e-4)
            if number >= spec["warm_up"]:
                wall_s.append(time.perf_counter() - wall)
                cpu_s.append(time.process_time() - used)
        found[title] = {"wall_s": wall_s, "cpu_s": cpu_s}
        del engine, contender
        gc.collect()
    dist.barrier()
    leave()
    return found


if __name__ == "__main__":
    measure_as_rank(measure)
