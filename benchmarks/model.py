"""`python -m benchmarks.model`: a training step of ours on the CPU, beside two rivals of the same size.

Ours with each attention backend, with a fixed number of visible patches (independent masks) and a varying one
(Dirichlet masks: packed by xformers, padded for sdpa), a plain MAE of timm-style blocks with equal FLOPs, and Fus-MAE
as its equations read (benchmarks/model_rivals.py). All take turns in one process; float32. A step is the forward and
the backward pass. Activations are the bytes that the forward pass keeps for the backward pass.

Ratios: `vs_timm_mae` compares operations a second, `vs_naive` samples a second (higher is better for ours); the others
divide times or bytes of the first by those of the second (lower is better for the first).
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.stream_report import Entry, ratio, render_entries
from benchmarks.table import write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.model_contenders import Contender

SIZE: dict[str, Any] = {"width": 192, "depth": 12, "heads": 3, "decoder_width": 128, "decoder_heads": 4}
QUICK: dict[str, Any] = {
    **{"image_size": 32, "patch_size": 4, "width": 64, "depth": 4, "heads": 2},
    **{"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2},
}
XAE: dict[str, Any] = {"encoder_fusion": "xae", "decoder_fusion": "none"}

STEP, RATE, KEPT, FLOPS, ONE = "step, ms", "samples/s", "activations, MiB", "GFLOP/s", "one pair, ms"
TOLERANCE = 1e-3
"""Largest relative difference of the backends' losses on the same weights, images and masks."""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, help="samples of a step (default: 8; 4 with --quick)")
    parser.add_argument("--rounds", type=int, help="how often each is timed (default: 5; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads (default: the cores, two at most)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, fewer rounds")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    batch = arguments.batch or (4 if arguments.quick else 8)
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    threads = arguments.threads or min(2, len(os.sched_getaffinity(0)))
    if min(batch, rounds, threads) < 1:
        raise ConfigError("--batch, --rounds and --threads must be at least 1")

    from benchmarks.model_contenders import torch_threads

    with torch_threads(threads):
        show = measure(QUICK if arguments.quick else SIZE, batch, rounds, threads)
    print(show(arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "model", show(False))
    return 0


def measure(size: dict[str, Any], batch: int, rounds: int, threads: int) -> Callable[[bool], str]:
    """Run all contenders in turn; returns what shows the result."""
    import torch

    from benchmarks.model_contenders import NAIVE, TIMM, activation_bytes, make_naive, make_ours, make_timm_mae
    from fusmae import FusMAEConfig

    cpu = torch.device("cpu")

    def ours(backend: str, masking: str) -> "Contender":
        config = FusMAEConfig(**{**XAE, **size, "attention_backend": backend, "masking": masking})
        return make_ours(config, batch, cpu)

    config = FusMAEConfig(**{**XAE, **size})
    contenders = {f"ours, {backend}": ours(backend, "independent") for backend in ("xformers", "sdpa", "math")}
    contenders["ours, xformers, varying, packed"] = ours("xformers", "dirichlet")
    contenders["ours, sdpa, varying, padded"] = ours("sdpa", "dirichlet")
    contenders["ours, math, varying, one by one"] = ours("math", "dirichlet")
    contenders[TIMM] = make_timm_mae(config, batch, cpu)
    contenders[NAIVE] = make_naive(config, batch, cpu)
    entries = {name: Entry(name=name) for name in contenders}
    for names in (list(contenders)[:3], list(contenders)[3:6]):
        _compare_losses({name: contenders[name] for name in names}, entries)
    for name, contender in contenders.items():
        entries[name].add(KEPT, activation_bytes(contender) / 2**20)
    for number in range(rounds + 1):
        for name, contender in contenders.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr, flush=True)
            seconds, latency = _step_seconds(contender), _latency_seconds(contender)
            if number:
                entries[name].add(STEP, 1000 * seconds)
                entries[name].add(RATE, contender.batch / seconds)
                entries[name].add(FLOPS, contender.batch * contender.train_flops / seconds / 1e9)
                entries[name].add(ONE, 1000 * latency)
    rivals = ratios({name: entries[name] for name in contenders}, TIMM, NAIVE)
    shape = f"{config.image_size} px, patches {config.patch_size}, width {config.width}, depth {config.depth}"
    about = {"model": shape, "batch": str(batch), "threads": str(threads), "torch": torch.__version__}
    about["GFLOP a sample"] = f"{contenders['ours, xformers'].train_flops / 1e9:.3g}"
    about[f"the same of {TIMM}"] = f"{contenders[TIMM].train_flops / 1e9:.3g}"
    shown = list(entries.values())
    return lambda as_json: render_entries(shown, (STEP, RATE, FLOPS, KEPT, ONE), rivals, as_json, about=about)


def ratios(entries: dict[str, Entry], timm: str, naive: str) -> dict[str, float | None]:
    """Of the default, xformers, over the others."""

    def of(first: str, second: str, unit: str) -> float | None:
        return ratio(entries[first].median(unit), entries[second].median(unit))

    default, packed, padded = "ours, xformers", "ours, xformers, varying, packed", "ours, sdpa, varying, padded"
    return {
        "vs_timm_mae": of(default, timm, FLOPS),
        "vs_naive": of(default, naive, RATE),
        "xformers_vs_sdpa_step": of(default, "ours, sdpa", STEP),
        "xformers_vs_math_step": of(default, "ours, math", STEP),
        "xformers_vs_sdpa_memory": of(default, "ours, sdpa", KEPT),
        "xformers_vs_math_memory": of(default, "ours, math", KEPT),
        "packed_vs_padded_step": of(packed, padded, STEP),
        "packed_vs_padded_memory": of(packed, padded, KEPT),
        "vs_timm_mae_memory": of(default, timm, KEPT),
        "vs_naive_memory": of(default, naive, KEPT),
        "vs_timm_mae_one_pair": of(default, timm, ONE),
        "vs_naive_one_pair": of(default, naive, ONE),
    }


def _compare_losses(contenders: dict[str, "Contender"], entries: dict[str, Entry]) -> None:
    """Say of those whose loss is not that of the last, the written-out reference."""
    losses = {name: float(contender.loss(contender.model).detach()) for name, contender in contenders.items()}
    expected = list(losses.values())[-1]
    for name, loss in losses.items():
        if not abs(loss - expected) <= TOLERANCE * abs(expected):
            entries[name].note = f"its loss is {loss:.6g}, that of the reference {expected:.6g}"


def _step_seconds(contender: "Contender") -> float:
    contender.model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    contender.loss(contender.model).backward()
    return time.perf_counter() - began


def _latency_seconds(contender: "Contender") -> float:
    """The median of a few."""
    import torch

    contender.model.eval()
    times = []
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            contender.features()
            times.append(time.perf_counter() - began)
    contender.model.train()
    return statistics.median(times)


if __name__ == "__main__":
    run_command(main)
