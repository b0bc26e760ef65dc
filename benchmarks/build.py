"""`python -m benchmarks.build`: what a build costs beside reading the rasters, against two rivals.

The archive is the demo's real pairs, written under other names as uncompressed GeoTIFFs in reBEN's layout. Each
contender is a process of its own, pinned to one core or two, and all take turns.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_pairs import write_archive
from benchmarks.table import Row, render, write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError, StorageError

RIVALS = Path(".rivals")
_MDS = ("mosaicml-streaming==0.13.0", "xxhash<4", "zstd<2", "Brotli", "python-snappy<1", "cramjam", "catalogue<3")
_NAMES = {"sharding.build": "sharding.build", "webdataset": "webdataset.ShardWriter", "mds": "MDSWriter"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1200, help="pairs of the archive (default: 1200)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--codec", default="lz4", choices=("lz4", "none", "zstd"))
    parser.add_argument("--quick", action="store_true", help="100 pairs, once")
    parser.add_argument("--without-mds", action="store_true", help="leave out MosaicML's writer")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    pairs, rounds = (100, 1) if arguments.quick else (arguments.pairs, arguments.rounds)
    contenders = ["sharding.build", "webdataset"]
    if not arguments.without_mds:
        install_mds()
        contenders.append("mds")

    folder = Path(tempfile.mkdtemp(prefix="build-", dir="."))
    try:
        archive_bytes = write_archive(folder / "archive", pairs)
        one = _take_turns(folder, ("copy", *contenders), arguments.codec, 1, rounds)
        two = _take_turns(folder, contenders, arguments.codec, 2, rounds)
    finally:
        shutil.rmtree(folder)
    rows = _rows(one, two, contenders, archive_bytes, pairs)
    print(render(rows, _ratios(one, two, contenders), arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "build", render(rows, _ratios(one, two, contenders), as_json=False))
    return 0


def _take_turns(
    folder: Path, contenders: Sequence[str], codec: str, cores: int, rounds: int
) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in contenders:
            runs[name].append(_run(folder, name, codec, cores))
    return runs


def install_mds() -> None:
    """MosaicML's writer into a folder of its own: it pins other versions than ours."""
    if (RIVALS / "streaming").is_dir():
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(RIVALS), *_MDS]
    if subprocess.run(pip, check=False).returncode:
        raise ConfigError("MosaicML's writer cannot be installed; give --without-mds")


def _run(folder: Path, contender: str, codec: str, cores: int) -> dict[str, float]:
    """One run on that many cores: ours with as many workers, the others as as many processes with a share each."""
    available = sorted(os.sched_getaffinity(0))[:cores]
    if len(available) < cores:
        raise ConfigError(f"{cores} cores are needed, there are {len(available)}")
    out = folder / "out"
    shares = [(0, cores)] if contender in ("sharding.build", "copy") else [(i, cores) for i in range(cores)]
    children = []
    for share, of in shares:
        command = ["benchmarks.build_contender", contender, folder / "archive", out, codec, share, of, RIVALS.resolve()]
        children.append(
            subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=lambda: os.sched_setaffinity(0, available),
            )
        )
    said = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise StorageError(f"{contender} failed; it says why above")
    told: list[dict[str, Any]] = [json.loads(text) for text in said]
    shutil.rmtree(out, ignore_errors=True)
    return {
        "pairs": sum(part["pairs"] for part in told),
        "seconds": max(part["seconds"] for part in told),
        "reading": sum(part["reading"] for part in told),
        "bytes": max(part["bytes"] for part in told),
    }


def _row(name: str, values: list[float], unit: str) -> Row:
    return Row(name=name, value=statistics.median(values), unit=unit, low=min(values), high=max(values))


def _per_pair_us(runs: list[dict[str, float]], what: str) -> list[float]:
    amounts = {
        "all": lambda run: run["seconds"],
        "reading": lambda run: run["reading"],
        "other": lambda run: run["seconds"] - run["reading"],
    }[what]
    return [1e6 * amounts(run) / run["pairs"] for run in runs]


def _rows(
    one: dict[str, list[dict[str, float]]],
    two: dict[str, list[dict[str, float]]],
    contenders: list[str],
    archive_bytes: int,
    pairs: int,
) -> list[Row]:
    rows = [_row("plain copy of the rasters' bytes, 1 core", _per_pair_us(one["copy"], "all"), "us a pair")]
    for name in contenders:
        label = _NAMES[name]
        rows += [
            _row(f"{label}, 1 core, all", _per_pair_us(one[name], "all"), "us a pair"),
            _row(f"{label}, 1 core, reading rasters", _per_pair_us(one[name], "reading"), "us a pair"),
            _row(f"{label}, 1 core, all else", _per_pair_us(one[name], "other"), "us a pair"),
        ]
    rows += [
        _row(f"{_NAMES[name]}, 2 cores", [run["pairs"] / run["seconds"] for run in two[name]], "pairs/s")
        for name in contenders
    ]
    rows.append(_row("GeoTIFF tree", [archive_bytes / pairs / 1000], "kB a pair"))
    rows += [_row(f"{_NAMES[n]}", [one[n][0]["bytes"] / pairs / 1000], "kB a pair") for n in contenders]
    return rows


def _ratios(
    one: dict[str, list[dict[str, float]]], two: dict[str, list[dict[str, float]]], contenders: list[str]
) -> dict[str, float]:
    def median(name: str, what: str) -> float:
        return statistics.median(_per_pair_us(one[name], what))

    ours = "sharding.build"
    ratios = {"reading_share": median(ours, "reading") / median(ours, "all")}
    for name in contenders[1:]:
        ratios[f"vs_{name}"] = median(name, "all") / median(ours, "all")
        ratios[f"other_time_vs_{name}"] = median(ours, "other") / median(name, "other")
        faster = [a["seconds"] / b["seconds"] for a, b in zip(two[name], two[ours], strict=True)]
        ratios[f"vs_{name}_2_cores"] = statistics.median(faster)
    return ratios


if __name__ == "__main__":
    run_command(main)
