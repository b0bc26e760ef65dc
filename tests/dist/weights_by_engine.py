"""One rank of a job that says, for each engine, whether the pieces of all ranks are the fp32 weights, `==`.

The truth is what DeepSpeed gathers by itself, or DDP's masters. Rank 0 prints the engines for which it is so, as JSON.
"""

import json
import os

import torch

from pipeline.data_settings import DataSettings
from pipeline.distributed import cpu_group, join
from pipeline.engine import build_engine, import_deepspeed
from pipeline.fp32_weights import put_together
from pipeline.settings import EngineSettings, RunSettings, Settings, TrainSettings

ENGINES = [
    *(("deepspeed", stage, "bf16") for stage in (1, 2, 3)),
    *(("deepspeed", stage, "fp32") for stage in (0, 1, 2, 3)),
    ("ddp", 0, "bf16"),
]


class Model(torch.nn.Module):
    """Weights that two ranks cannot share equally, one of them a single value."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(7, 13)
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.last = torch.nn.Linear(13, 3, bias=False)

    def forward(self, inputs_BI: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(inputs_BI) * self.scale).float().pow(2).mean()

    def no_weight_decay(self) -> set[str]:
        return set()


def _gathered(engine: object, name: str) -> dict[str, torch.Tensor]:
    if name == "ddp":
        names = [name for name, _ in engine._model.module.named_parameters()]
        return {name: master.detach() for name, master in zip(names, engine._masters, strict=True)}
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for parameter_name, parameter in engine._engine.module.named_parameters():
        value = safe_get_full_fp32_param(parameter)
        found[parameter_name] = (parameter if value is None else value).detach().clone()
    return found


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    join(device, 60)
    group = cpu_group(60)
    import_deepspeed(device)
    equal = []
    for name, stage, precision in ENGINES:
        settings = Settings(
            data=DataSettings(url="."),
            train=TrainSettings(steps=1),
            run=RunSettings(dir="."),
            engine=EngineSettings(name=name, zero_stage=stage, precision=precision, device="cpu"),
        )
        torch.manual_seed(0)
        engine = build_engine(Model(), settings, device, accumulation=1, universal=False)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        engine.backward(engine(torch.randn(4, 7).to(dtype)), is_last=True)
        engine.step(1e-2)
        expected = _gathered(engine, name)
        found = put_together(engine.weights(lambda held: held.clone()), group)
        if os.environ["RANK"] == "0":
            assert list(found) == list(expected), (name, stage, list(found), list(expected))
            assert all(value.is_contiguous() and value.dtype == torch.float32 for value in found.values())
            if all(torch.equal(found[key], expected[key]) for key in expected):
                equal.append([name, stage, precision])
        else:
            assert found == {}
    if os.environ["RANK"] == "0":
        print(json.dumps(equal), flush=True)
    torch.distributed.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
