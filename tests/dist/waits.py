"""One rank of a run that prints, as JSON, where steps between two log lines wait for the device, and Python's collections.

    python -m tests.dist.waits fused CONFIG.yaml [key=value ...]    (or `plain`: AdamW as it is on a CPU)

On a CPU nothing is waited for, but the calls are the same: a tensor is read on the host, its content decides a shape, or a
collective is waited for. Each is told with the nearest line of a caller that is not torch's.
"""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import engine, pretrain, session
from pipeline.command import run_rank_command

ROOT = Path(__file__).parents[2]
FIRST, LAST = 3, 9
"""Calls of `prepare`, two a step, between which is counted: all of steps 2 to 4."""
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.equal}
SHAPES = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive}
COPIES = {"tolist", "numpy", "cpu"}
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "barrier", "all_gather_object", "broadcast_object_list")

waits: Counter[str] = Counter()
collections: list[int] = []
calls = 0


def note(what: str) -> None:
    if not FIRST <= calls < LAST:
        return
    frame = sys._getframe(2)
    while frame is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    if frame is None:
        return
    name = frame.f_code.co_filename
    owner = name.rsplit("site-packages/", 1)[-1] if "site-packages" in name else os.path.relpath(name, ROOT)
    waits[f"{owner}:{frame.f_code.co_qualname}: {what}"] += 1


class Functions(TorchFunctionMode):
    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in COPIES or (name in ("tensor", "as_tensor") and (kwargs or {}).get("device") is not None):
            note(name)  # the latter copies Python's numbers from memory that is not page-locked
        return function(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = function.overloadpacket
        is_masked = packet in (aten.index, aten.index_put_) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if packet in READS or packet in SHAPES or is_masked:
            note(packet.__name__)
        return function(*args, **(kwargs or {}))


def watch_collectives() -> None:
    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not kwargs.get("async_op"):
                note(name)
            return call(*args, **kwargs)

        return noted

    for name in COLLECTIVES:
        setattr(dist, name, watched(name, getattr(dist, name)))


def watch_steps() -> None:
    prepare_of = session._preparation

    def preparation(*arguments: Any) -> Any:
        prepare = prepare_of(*arguments)

        def counted(batch: Any) -> Any:
            global calls
            calls += 1
            return prepare(batch)

        return counted

    session._preparation = preparation


def fuse() -> None:
    """As on a GPU."""
    build = engine.build_adamw

    def fused(*arguments: Any) -> Any:
        plain = build(*arguments)
        groups = [{"params": group["params"], "weight_decay": group["weight_decay"]} for group in plain.param_groups]
        first = plain.param_groups[0]
        return torch.optim.AdamW(groups, lr=first["lr"], betas=first["betas"], eps=first["eps"], fused=True)

    engine.build_adamw = fused


def main(_: list[str] | None = None) -> int:
    if sys.argv[1] == "fused":
        fuse()
    watch_steps()
    watch_collectives()
    gc.callbacks.append(lambda phase, _about: collections.append(calls) if phase == "start" and calls else None)
    with Functions(), Operators():
        code = pretrain.main(sys.argv[2:])
    print(json.dumps({"rank": int(os.environ["RANK"]), "waits": waits, "collections": collections}), flush=True)
    return code


if __name__ == "__main__":
    run_rank_command(main)
