"""`python -m benchmarks.engine`: what training costs beside the model's own work, on the CPU.

--part instruments: `pipeline.loop.train` on two ranks, blocks of steps with every instrument (watchdog, clock, loss
watch, means and stragglers, progress and metrics lines, TensorBoard, events, stop flag) and with none in turns.
--part saves: how long training stands still for a save of a ViT-B (ZeRO-1, one rank and two): written
in the background, waited for, and by DeepSpeed's own save_checkpoint; beside a copy in memory and a plain write of as
many bytes. --part steps: every ZeRO stage against DDP on two ranks, of a model and of one as deep but tiny.
The first two are in bf16 where the CPU can, in fp32 where it would emulate it.

Ratios: `instruments_overhead` is the processor time of all instruments over the time of a step (goal: below 0.01),
`..._blocks_...` the difference that blocks show; `stall_vs_...` and `vs_ddp_...` divide times (lower is better for us).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.table import write_section
from pipeline.command import run_command

PARTS = ("instruments", "saves", "steps")
XAE: dict[str, Any] = {"encoder_fusion": "xae", "decoder_fusion": "none"}
QUICK: dict[str, Any] = {
    **{"image_size": 120, "patch_size": 20, "width": 64, "depth": 2, "heads": 2},
    **{"decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, **XAE},
}
SMALL: dict[str, Any] = {
    **{"image_size": 120, "patch_size": 8, "width": 192, "depth": 12, "heads": 3},
    **{"decoder_width": 128, "decoder_depth": 2, "decoder_heads": 4, **XAE},
}
NARROW: dict[str, Any] = SMALL | {"patch_size": 60, "width": 16, "heads": 2, "decoder_width": 16, "decoder_heads": 2}
VIT_B: dict[str, Any] = {
    **{"image_size": 120, "patch_size": 8, "width": 768, "depth": 12, "heads": 12},
    **{"decoder_width": 384, "decoder_depth": 6, "decoder_heads": 6, **XAE},
}
"""The decoder is larger than the recipe's, for 110 M parameters."""
ENGINES = {
    "DDP fp32": ("ddp", 0, "fp32"),
    "ZeRO 0 fp32": ("deepspeed", 0, "fp32"),
    "ZeRO 1 fp32": ("deepspeed", 1, "fp32"),
    "ZeRO 2 fp32": ("deepspeed", 2, "fp32"),
    "ZeRO 3 fp32": ("deepspeed", 3, "fp32"),
    "DDP bf16": ("ddp", 0, "bf16"),
    "ZeRO 1 bf16": ("deepspeed", 1, "bf16"),
    "ZeRO 2 bf16": ("deepspeed", 2, "bf16"),
    "ZeRO 3 bf16": ("deepspeed", 3, "bf16"),
}
"""Stage 0 trains in fp32 only."""
TWIN = {name: f"DDP {name.split()[-1]}" for name in ENGINES if name.startswith("ZeRO")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="measure one part only")
    parser.add_argument("--folder", help="where run folders and checkpoints go (default: the system's temporary one)")
    parser.add_argument("--quick", action="store_true", help="tiny models, few steps")
    parser.add_argument("--into", metavar="FILE", help="also write the tables into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args(argv)

    from benchmarks.engine_report import Report, together

    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory(prefix="bench-engine-", dir=arguments.folder) as folder:
        for part in [arguments.part] if arguments.part else PARTS:
            measure = {"instruments": _instruments, "saves": _saves, "steps": _steps}[part]
            reports[part] = measure(folder, arguments.quick)
            if not arguments.json:
                print(reports[part].render(as_json=False), end="\n\n", flush=True)
            if arguments.into:
                write_section(Path(arguments.into), f"engine-{part}", reports[part].render(as_json=False))
    if arguments.json:
        print(together(list(reports.values())).render(as_json=True))
    return 0


def _instruments(folder: str, is_quick: bool) -> Any:
    from benchmarks import stream_data
    from benchmarks.engine_instruments import EMPTY
    from benchmarks.engine_ranks import measured_by_ranks
    from benchmarks.engine_report import Report, add_instruments

    for name in ("index", "lz4"):
        stream_data.make(name, Path(folder), 64 if is_quick else 512)
    batch = 4
    settings = {
        "data": {"url": str(Path(folder) / "lz4")},
        "model": QUICK if is_quick else SMALL,
        "train": {"steps": 1, "global_batch": batch},
        "engine": {"device": "cpu", "precision": (precision := _precision())},
        "optim": {"warmup_steps": 10},
        "run": {"dir": folder, "num_processes": 2, "threads": 1},
    }
    spec = {"under": folder, "threads": 1, "settings": settings, "warm_up": 10, "block": 10, "num_blocks": 100}
    if is_quick:
        spec |= {"warm_up": 4, "block": 10, "num_blocks": 8}
    _say(f"instruments: {spec['num_blocks']} blocks of {spec['block']} steps")
    report = Report()
    report.about |= {"model": _shape(settings["model"]), "ranks": "2 of 1 thread", "engine": f"ZeRO 1 {precision}"}
    report.about |= {"batch": str(batch), "steps": str(spec["block"] * spec["num_blocks"]), "log.every": "10"}
    add_instruments(report, measured_by_ranks("benchmarks.engine_instruments", spec, 2), EMPTY)
    return report


def _saves(folder: str, is_quick: bool) -> Any:
    from benchmarks.engine_ranks import measured_by_ranks
    from benchmarks.engine_report import Report, add_saves

    report = Report()
    for num_ranks in (1, 2):
        spec = {"under": folder, "threads": 1, "model": VIT_B, "rounds": 5, "batch": 1, "steps": 100}
        spec["precision"] = _precision()
        if is_quick:
            spec |= {"model": QUICK, "rounds": 2}
        _say(f"saves on {num_ranks} rank(s)")
        add_saves(report, measured_by_ranks("benchmarks.engine_saves", spec, num_ranks), num_ranks)
    report.about |= {"model": _shape(spec["model"]), "engine": f"ZeRO 1 {spec['precision']}", "threads a rank": "1"}
    return report


def _steps(folder: str, is_quick: bool) -> Any:
    from benchmarks.engine_ranks import measured_by_ranks
    from benchmarks.engine_report import Report, add_steps

    models = {"model": SMALL, "host": NARROW}
    spec: dict[str, Any] = {"under": folder, "threads": 1, "models": models, "batch": 2, "warm_up": 3, "steps": 8}
    rounds, engines = 3, ENGINES
    if is_quick:
        spec |= {"models": {"model": QUICK, "host": NARROW | {"depth": 2}}, "steps": 4}
        rounds, engines = 1, {name: ENGINES[name] for name in ("DDP bf16", "ZeRO 1 bf16")}
    measured: dict[str, list[Any]] = {name: [] for name in engines}
    for turn in range(rounds):
        for name, (engine, stage, precision) in engines.items():
            _say(f"steps: launch {turn + 1} of {rounds}, {name}")
            own = spec | {"name": engine, "zero_stage": stage, "precision": precision}
            measured[name].append(measured_by_ranks("benchmarks.engine_steps", own, 2))
    report = Report()
    report.about |= {"model": _shape(spec["models"]["model"]), "host": _shape(spec["models"]["host"])}
    report.about |= {"ranks": "2 of 1 thread", "batch": str(2 * spec["batch"]), "launches": str(rounds)}
    add_steps(report, measured, {name: ddp for name, ddp in TWIN.items() if name in engines})
    return report


def _precision() -> str:
    from pipeline.distributed import cpu_multiplies_bf16

    return "bf16" if cpu_multiplies_bf16() else "fp32"


def _shape(model: dict[str, Any]) -> str:
    return f"{model['image_size']} px, patches {model['patch_size']}, width {model['width']}, depth {model['depth']}"


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
