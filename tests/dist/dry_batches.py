"""One rank of two that tries a micro-batch before training, or asks which fits, and prints what came of it as JSON.

    python -m tests.dist.dry_batches leaves-nothing ddp zero1 ...    (engines)
    python -m tests.dist.dry_batches search 12,24,6,3 ...            (micro-batch, a rank's samples, what fits each rank)
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from pipeline.distributed import Ranks
from pipeline.dry_batch import DryBatch, Memory, check_memory
from pipeline.errors import ConfigError
from pipeline.fp32_weights import put_together
from tests.dist.engine_program import CONFIG, MICRO_BATCH, build_model, join_ranks, make_engine, settings_of, train


def state(engine: object) -> dict[str, object]:
    """What must be as it was: random numbers, counters, gradients."""
    inner = getattr(engine, "_engine", None)
    counters = [] if inner is None else [inner.micro_steps, inner.global_steps, inner.global_samples, inner.skipped_steps]
    gradients = sum(p.grad is not None and bool(p.grad.any()) for p in engine.module.parameters())
    return {"random": torch.get_rng_state().tolist()[:64], "counters": counters, "gradients": gradients}


def leaves_nothing(name: str, ranks: Ranks) -> dict[str, bool]:
    weights = {}
    is_same = True
    for kind in ("without", "with", "accumulated")[: 3 if name == "ddp" else 2]:
        settings = settings_of(name)
        engine = make_engine(settings)
        attempt = DryBatch(settings, CONFIG, engine, build_model, ranks.world_size)
        before = state(engine)
        if kind == "with":
            for size in (MICRO_BATCH, 1):
                attempt(size)
            is_same = state(engine) == before
        elif kind == "accumulated":  # what a trial through the engine itself would do
            loss = engine(*attempt._inputs(MICRO_BATCH)).loss
            engine.backward(loss, is_last=False)
        train(engine, ranks.rank)
        weights[kind] = put_together(engine.weights(lambda weight: weight.clone()), None)
    if ranks.rank:
        return {}

    def equal(kind: str) -> bool:
        return all(torch.equal(weight, weights["without"][key]) for key, weight in weights[kind].items())

    said = {"state": is_same, "weights": equal("with"), "any": bool(weights["with"])}
    return said | ({"accumulated": equal("accumulated")} if name == "ddp" else {})


def search(micro_batch: int, own_samples: int, fit: list[int], ranks: Ranks, group: object) -> dict[str, object]:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > fit[ranks.rank]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    memory = Memory(total=(80 + ranks.rank) << 30, free=(40 + ranks.rank) << 30)
    try:
        check_memory(attempt, micro_batch, own_samples, ranks, group, memory)
    except ConfigError as error:
        return {"tried": tried, "error": str(error)}
    return {"tried": tried, "error": ""}


def main(command: str, *arguments: str) -> None:
    ranks, group = join_ranks()
    if command == "leaves-nothing":
        said: object = {name: leaves_nothing(name, ranks) for name in arguments}
    else:
        cases = [[int(number) for number in case.split(",")] for case in arguments]
        said = [search(micro_batch, own, fit, ranks, group) for micro_batch, own, *fit in cases]
    print(json.dumps({"rank": ranks.rank, "said": said}), flush=True)
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
