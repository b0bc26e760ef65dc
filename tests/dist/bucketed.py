"""One rank of two that trains with large and small buckets and prints, as JSON, in how many pieces gradients went.

    python -m tests.dist.bucketed ddp zero2 zero3
"""

import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from tests.dist.engine_program import CONFIG, build_model, join_ranks, make_engine, settings_of, train

WIDE = replace(CONFIG, width=192, heads=4)
"""2.3 million weights, 4.3 MiB of gradients in bf16."""
WEIGHTS = {name: weight.detach() for name, weight in build_model(WIDE).named_parameters()}
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter_single", "reduce_scatter")
pieces: list[int] = []


def watch(name: str) -> None:
    call = getattr(dist, name, None)
    if call is None:
        return

    def watched(*args: Any, **named: Any) -> Any:
        tensors = [tensor for tensor in (*args, *named.values()) if isinstance(tensor, torch.Tensor)]
        pieces.append(max((tensor.numel() for tensor in tensors), default=0))
        return call(*args, **named)

    setattr(dist, name, watched)


def run(name: str, rank: int, **engine: Any) -> tuple[list[int], dict[str, Any]]:
    """Sizes of what was reduced in two steps, and the weights."""
    made = make_engine(settings_of(name, **engine), WIDE)
    pieces.clear()
    train(made, rank)
    if name == "ddp":
        told = made._model._get_ddp_logging_data()
        pieces[:] = [int(size) // 2 for size in told["rebuilt_bucket_sizes"].split(",")]  # bytes of bf16
    weights = {key: torch.zeros(weight.shape) for key, weight in WEIGHTS.items()}
    made.copy_weights(weights)
    return [size for size in pieces if size > 1000], weights


def main(*names: str) -> None:
    ranks, _ = join_ranks()
    for name in REDUCTIONS:
        watch(name)
    said = {}
    for name in names:
        kinds = {"large": {}, "small": {"bucket_mib": 1}}
        if name != "ddp":
            kinds["overlapping"] = {"bucket_mib": 1, "overlap": True}
        told, weights = {}, {}
        for kind, engine in kinds.items():
            told[kind], weights[kind] = run(name, ranks.rank, **engine)
        equal = [all(torch.equal(own[key], weights["large"][key]) for key in own) for own in weights.values()]
        trained = any(not torch.equal(own.bfloat16().float(), weights["large"][key]) for key, own in WEIGHTS.items())
        said[name] = {"equal": equal, "trained": trained} | told
    print(json.dumps({"rank": ranks.rank, "said": said}), flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
