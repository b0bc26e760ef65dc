"""The options that `sharding.build` and `sharding.extend` share: which archives, which pairs of them, who works."""

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from sharding.errors import ConfigError
from sharding.sources import SOURCES

if TYPE_CHECKING:
    from sharding.builder import Means
    from sharding.plan import Settings

S1_KINDS: Final = ("float32", "float16", "int16")
SOURCES_HELP: Final = "sources:\n" + "\n".join(f"  {name:<16}{text}" for name, (_, text) in SOURCES.items())


def add_sources(parser: argparse.ArgumentParser) -> None:
    """`--source`, `--root`, and what is taken from them."""
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        choices=SOURCES,
        help="layout of an archive; again for more archives",
    )
    parser.add_argument(
        "--root", action="append", required=True, metavar="DIR_OR_URL", help="where it lies, one for each --source"
    )
    parser.add_argument(
        "--splits",
        default="official",
        metavar="official|geographic|FILE",
        help="the archive's own splits (pairs that these leave out go to a split 'unlisted', which is not trained on; "
        "without any splits all go to train), or 80/10/10 by cells of the earth, or a CSV of key,split "
        "(default: official)",
    )
    parser.add_argument(
        "--cell-km",
        type=float,
        default=25.0,
        metavar="KM",
        help="side of the cells of --splits geographic; what touches a cell of val or test is not trained on "
        "(default: 25)",
    )
    parser.add_argument(
        "--s2-level", choices=("L1C", "L2A"), default="", help="where an archive has both (default: L2A)"
    )
    parser.add_argument(
        "--max-days",
        type=float,
        default=None,
        metavar="DAYS",
        help="pairs whose S1 and S2 were taken further apart are refused; where halves are matched by date, they are "
        "no pair (default: no limit)",
    )
    parser.add_argument(
        "--max-cloud",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="where a source has a cloud mask: the largest share of clouds, 0 to 1 (default: 1)",
    )
    parser.add_argument(
        "--patch-pixels",
        type=int,
        default=256,
        metavar="N",
        help="side at 10 m of the patches that are cut out of cubes (default: 256)",
    )
    parser.add_argument(
        "--no-riders", action="store_true", help="leave out elevation, label rasters and all that is neither S1 nor S2"
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    """Who builds, and what a bad pair means."""
    parser.add_argument(
        "--shard-mib", type=int, default=256, metavar="MIB", help="size of a shard, about (default: 256)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="shuffles the samples over the shards (default: 0)"
    )
    parser.add_argument(
        "--max-bad",
        type=int,
        default=0,
        metavar="N",
        help="how many pairs may be refused before the build fails; they are left out (default: 0)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes that build shards, on this machine or in each element of --slurm (default: one a CPU core, "
        "fewer for little data; 8 an element)",
    )
    parser.add_argument(
        "--slurm", type=int, default=None, metavar="N", help="build in a SLURM job array of N elements, by submitit"
    )
    parser.add_argument(
        "--slurm-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of sbatch for --slurm, such as partition=cpu, account=me, time=240 (minutes), mem=16GB; "
        "again for more",
    )
    parser.add_argument(
        "--slurm-logs",
        default="sharding-logs",
        metavar="DIR",
        help="folder on a shared file system for the job array's scripts and logs (default: sharding-logs)",
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        default="slurm",
        help="submitit's executor for --slurm: local runs the array as processes of this machine (default: slurm)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def check(arguments: argparse.Namespace) -> None:
    """ConfigError for values that cannot work."""
    if len(arguments.source) != len(arguments.root):
        raise ConfigError(
            f"{len(arguments.source)} --source and {len(arguments.root)} --root were given; give one --root a --source"
        )
    for name in ("workers", "shard_mib", "slurm", "patch_pixels"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; give 1 or more")
    for name in ("cell_km", "max_days"):
        value = getattr(arguments, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name.replace('_', '-')} is {value:g}; give more than 0")
    if not 0 <= arguments.max_cloud <= 1:
        raise ConfigError(f"--max-cloud is {arguments.max_cloud:g}; give a share from 0 to 1")
    if arguments.max_bad < 0:
        raise ConfigError(f"--max-bad is {arguments.max_bad}; give 0 or more")
    if not -(2**63) <= arguments.seed < 2**63:
        raise ConfigError(f"--seed is {arguments.seed}; give a number of 64 bits")
    for option in arguments.slurm_option:
        if "=" not in option.strip("="):
            raise ConfigError(f"--slurm-option is '{option}'; write NAME=VALUE, such as partition=cpu")
    if arguments.slurm is None and (arguments.slurm_option or arguments.cluster != "slurm"):
        raise ConfigError("--slurm-option and --cluster say how --slurm N submits; give --slurm too")


def settings_of(arguments: argparse.Namespace, *, codec: str, s1: str) -> "Settings":
    """What determines the data set."""
    from sharding.plan import Settings
    from sharding.sources.base import SourceOptions

    return Settings(
        sources=tuple(zip(arguments.source, arguments.root, strict=True)),
        splits=arguments.splits,
        codec=codec,
        s1=s1,
        shard_mib=arguments.shard_mib,
        seed=arguments.seed,
        cell_km=arguments.cell_km,
        max_days=arguments.max_days,
        options=SourceOptions(
            s2_level=arguments.s2_level,
            riders=not arguments.no_riders,
            max_days=arguments.max_days,
            max_cloud=arguments.max_cloud,
            patch_pixels=arguments.patch_pixels,
        ),
    )


def means_of(arguments: argparse.Namespace) -> "Means":
    """Who builds."""
    from sharding.array_job import ArrayJob
    from sharding.builder import Means

    if arguments.slurm is None:
        return Means(workers=arguments.workers)
    array = ArrayJob(
        elements=arguments.slurm,
        workers=arguments.workers or 8,
        cluster=arguments.cluster,
        parameters=dict(option.split("=", 1) for option in arguments.slurm_option),
        logs=os.path.abspath(arguments.slurm_logs),
    )
    return Means(array=array)


def command_line(module: str, argv: list[str] | None) -> list[str]:
    """As `build.json` keeps it."""
    return ["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]


def print_figures(figures: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """A table for people, or the same figures as JSON."""
    print(json.dumps(figures, indent=1) if as_json else "\n".join(lines))
