"""`python -m benchmarks.gpu`: a training step of ours on one CUDA card, beside the card's limits and two rivals.

First what this very card does at best (a copy, a product of bf16 matrices). Then Fus-MAE with the XAttnEncoder: ViT-S,
B and L, at 120 px with patches of 8 and 224 px with patches of 16, for each attention backend, eager and compiled;
ViT-B with a varying number of visible patches (packed by xformers, padded for sdpa), through the engines of training,
and beside a plain MAE of timm-style blocks with equal FLOPs and Fus-MAE as its equations read
(benchmarks/model_rivals.py). Weights, activations and AdamW's moments are bf16, but for the engines, which keep fp32
masters.

A step is forward, backward and AdamW. MFU is the model's own FLOPs (three times the forward pass, matrix products only)
over the datasheet's dense bf16 figure. What does not fit into the time is said to be missing; the most telling rows
come first. A batch that does not fit into memory is halved.

Ratios: `mfu_vit_b` is the best MFU among ours; `vs_timm_mae` compares operations a second and `vs_naive` samples a
second, eager with eager and (`_compiled`) compiled with compiled, ours with the better of xformers and sdpa.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.model import QUICK, XAE
from benchmarks.stream_report import Entry, better, ratio, render_entries
from benchmarks.table import write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.gpu_rows import Bench
    from benchmarks.model_contenders import Contender

    Make = Callable[..., Contender]

BACKENDS = ("xformers", "sdpa")


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and the batch to begin with; what takes more memory is halved."""

    name: str
    config: dict[str, Any]
    batch: int

    @property
    def title(self) -> str:
        return f"{self.name} {self.config['image_size']}/{self.config['patch_size']}"


def _vit(name: str, width: int, depth: int, heads: int, image_size: int, patch_size: int, batch: int) -> Size:
    shape = {"width": width, "depth": depth, "heads": heads, "image_size": image_size, "patch_size": patch_size}
    return Size(name=name, config={**XAE, **shape}, batch=batch)


SIZES = tuple(
    _vit(name, *shape, *image, batch)
    for image in ((120, 8), (224, 16))
    for name, shape, batch in (
        ("ViT-B", (768, 12, 12), 512),
        ("ViT-S", (384, 12, 6), 1024),
        ("ViT-L", (1024, 24, 16), 256),
    )
)
"""The first is the one that all is compared at."""
QUICK_SIZES = (
    Size(name="tiny", config={**XAE, **QUICK}, batch=4),
    Size(name="tiny", config={**XAE, **QUICK, "patch_size": 8}, batch=4),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only with --quick")
    parser.add_argument("--minutes", type=float, default=7.5, help="time for all rows (default: 7.5)")
    parser.add_argument(
        "--compiler", metavar="NAME", help="torch.compile's backend (default: inductor; on the CPU eager, which traces)"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    if arguments.device == "cpu" and not arguments.quick:
        raise ConfigError("the sizes for a GPU would take hours on the CPU; add --quick, or run benchmarks.model")

    import torch

    from benchmarks.gpu_rows import Bench, Clock, datasheet_tflops

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU; write --device cpu --quick to try the command on the CPU")
    on_gpu = arguments.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    name = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    bench = Bench(
        device=device,
        clock=Clock(arguments.minutes),
        compiler=arguments.compiler or ("inductor" if on_gpu else "eager"),
        repetitions=2 if arguments.quick else 5,
        warm_up=1 if arguments.quick else 3,
        least_s=0.0 if arguments.quick else 0.3,
        datasheet=datasheet_tflops(name),
    )
    with contextlib.redirect_stdout(sys.stderr):  # what compilers and DeepSpeed have to say is not the result
        show = measure(bench, QUICK_SIZES if arguments.quick else SIZES, name, arguments.quick)
    print(show(arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "gpu", show(False))
    return 0


def measure(bench: "Bench", sizes: tuple[Size, ...], device_name: str, quick: bool) -> Callable[[bool], str]:
    """Measure all rows, the most telling first; returns what shows the result."""
    import torch

    from benchmarks import gpu_rows as rows
    from benchmarks.model_contenders import NAIVE, TIMM, make_naive, make_ours, make_timm_mae

    ceilings = rows.measure_ceilings(
        bench, copy_bytes=1 << 22 if quick else 1 << 31, matmul_size=256 if quick else 8192
    )
    entries: dict[str, Entry] = {}

    def contender(size: Size, who: str, make: "Make", mode: str, latency: bool = False, **changes: Any) -> None:
        from fusmae import FusMAEConfig

        entry = entries[f"{who}, {mode}, {size.title}"] = Entry(name=f"{size.title}, {who}, {mode}")
        _say(entry.name)
        config = FusMAEConfig(**{**size.config, **changes})

        def with_batch(batch: int) -> None:
            made = make(config, batch, bench.device, torch.bfloat16)
            rows.measure_contender(bench, entry, made, compiled=mode == "compiled", latency=latency)

        key = f"{size.title}, {who}"
        rows.attempt(bench, entry, mode, lambda: rows.with_fitting_batch(bench, key, size.batch, with_batch))

    def ours(size: Size, backend: str, mode: str, latency: bool = False) -> None:
        contender(size, f"ours, {backend}", make_ours, mode, latency, attention_backend=backend)

    first, *others = sizes
    ours(first, "xformers", "eager", latency=True)
    contender(first, TIMM, make_timm_mae, "eager", latency=True)
    contender(first, NAIVE, make_naive, "eager", latency=True)
    ours(first, "sdpa", "eager", latency=True)
    ours(first, "math", "eager", latency=True)
    for who, backend in (("packed", "xformers"), ("padded", "sdpa")):
        changes = {"attention_backend": backend, "masking": "dirichlet"}
        contender(first, f"ours, {backend}, varying, {who}", make_ours, "eager", **changes)
    for backend in BACKENDS[-1:] if quick else BACKENDS:
        ours(first, backend, "compiled")
    contender(first, TIMM, make_timm_mae, "compiled")
    _engine_rows(bench, first, entries)
    for size in others:
        for backend in BACKENDS:
            ours(size, backend, "eager")
    if not quick:
        contender(first, NAIVE, make_naive, "compiled")
        ours(first, "math", "compiled")
        for size in others:
            for backend in BACKENDS:
                ours(size, backend, "compiled")

    titles = [size.title for size in sizes]
    shown = sorted(entries.values(), key=lambda entry: titles.index(entry.name.split(", ")[0]))
    about = {"device": device_name, "torch": torch.__version__, "compiler": bench.compiler}
    about["datasheet"] = f"{bench.datasheet:,.0f} TFLOP/s" if bench.datasheet else "unknown"
    copied, reached = ceilings[0].median(rows.COPY), ceilings[1].median(rows.MATMUL)
    about["copy"], about["bf16 matmul"] = f"{copied:,.1f} GB/s", f"{reached:,.3g} TFLOP/s"
    units = (rows.RATE, rows.STEP, rows.MFU, rows.MFU_MEASURED, rows.MEMORY, rows.BATCH, rows.ONE)
    found = ratios(entries, first.title)

    def show(as_json: bool) -> str:
        if as_json:
            every = (*units, rows.COPY, rows.MATMUL)
            return render_entries([*ceilings, *shown], every, found, True, about=about)
        return render_entries(shown, units, found, False, about=about)

    return show


def ratios(entries: dict[str, Entry], title: str) -> dict[str, float | None]:
    """What the goals are about, at one size; what was not measured is missing."""
    from benchmarks.gpu_rows import MEMORY, MFU, MFU_MEASURED, RATE, STEP
    from benchmarks.model_contenders import NAIVE, TIMM

    def entry(who: str, mode: str = "eager") -> Entry:
        return entries.get(f"{who}, {mode}, {title}", Entry(name="missing"))

    def best(unit: str, modes: Iterable[str]) -> float | None:
        found = better((entry(f"ours, {backend}", mode) for backend in BACKENDS for mode in modes), unit)
        return found.median(unit) if found else None

    def share(value: float | None) -> float | None:
        return None if value is None else value / 100

    modes = ("eager", "compiled")
    found = {"mfu_vit_b": share(best(MFU, modes)), "mfu_vit_b_of_measured": share(best(MFU_MEASURED, modes))}
    for mode in modes:
        suffix = "" if mode == "eager" else "_compiled"
        found[f"vs_timm_mae{suffix}"] = ratio(best(MFU_MEASURED, [mode]), entry(TIMM, mode).median(MFU_MEASURED))
        found[f"vs_naive{suffix}"] = ratio(best(RATE, [mode]), entry(NAIVE, mode).median(RATE))
        found[f"xformers_vs_sdpa_step{suffix}"] = ratio(
            entry("ours, xformers", mode).median(STEP), entry("ours, sdpa", mode).median(STEP)
        )
    packed, padded = entry("ours, xformers, varying, packed"), entry("ours, sdpa, varying, padded")
    found["packed_vs_padded_step"] = ratio(packed.median(STEP), padded.median(STEP))
    found["packed_vs_padded_memory"] = ratio(packed.median(MEMORY), padded.median(MEMORY))
    return found


def _engine_rows(bench: "Bench", size: Size, entries: dict[str, Entry]) -> None:
    from benchmarks import gpu_engines
    from benchmarks import gpu_rows as rows
    from fusmae import FusMAEConfig

    config = FusMAEConfig(**size.config)
    with contextlib.ExitStack() as stack:
        joined = False
        for kind in gpu_engines.KINDS:
            entry = entries[f"engine {kind.title}, {size.title}"] = Entry(name=f"{size.title}, {kind.title}")
            _say(entry.name)

            def measure_kind(kind: Any = kind, entry: Entry = entry) -> None:
                nonlocal joined
                if not joined:
                    stack.enter_context(gpu_engines.lone_rank(bench.device))
                    joined = True
                batch = size.batch if kind.precision == "bf16" else max(1, size.batch // 2)
                rows.with_fitting_batch(
                    bench,
                    entry.name,
                    batch,
                    lambda batch: gpu_engines.measure_engine(bench, entry, kind, config, batch),
                )

            rows.attempt(bench, entry, "engine", measure_kind)


def _say(name: str) -> None:
    """Which row is being measured."""
    print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
