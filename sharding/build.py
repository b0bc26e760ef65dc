"""`python -m sharding.build`: archives of Sentinel-1/2 pairs -> a data set of shards; here is its command line."""

import argparse
import json
import sys

from sharding.command import run_command
from sharding.errors import ConfigError
from sharding.sources import SOURCES

_CODECS = ("lz4", "none", "zstd")
_EXAMPLES = """\
sources:
{sources}

examples:
  python -m sharding.build --source bigearthnet-v1 --root /data/ben1 --source reben --root /data/ben2 --out /data/shards
  python -m sharding.build --source folder --root pairs.csv --out s3://bucket/shards --splits geographic --workers 16

An interrupted build goes on when the same command is given again; a finished one is left as it is. Pairs that cannot
be built are listed in OUT/bad.jsonl with their reasons. Check the result with: python -m sharding.verify OUT
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    sources = "\n".join(f"  {name:<16}{text}" for name, (_, text) in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="python -m sharding.build",
        description="Build shards, an index and a manifest from archives of co-registered Sentinel-1 and -2 patches.",
        epilog=_EXAMPLES.format(sources=sources),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
        "--out", required=True, metavar="URL", help="where the data set goes: a new folder, s3://…, gs://…, az://…"
    )
    parser.add_argument(
        "--splits",
        default="official",
        metavar="official|geographic|FILE",
        help="the archive's own splits (pairs that these leave out go to a split 'unlisted', which is not trained on; "
        "without any splits all go to train), or 80/10/10 by cells of 25 km, or a CSV of key,split (default: official)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes that build shards (default: one a CPU core, fewer for little data)",
    )
    parser.add_argument(
        "--codec",
        choices=_CODECS,
        default="lz4",
        help="lossless compression: lz4 is quick, zstd smallest, none needs no decoding (default: lz4)",
    )
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
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build; 0 when the data set is finished, also when it was already."""
    arguments = parse_arguments(argv)
    if len(arguments.source) != len(arguments.root):
        raise ConfigError(
            f"{len(arguments.source)} --source and {len(arguments.root)} --root were given; give one --root a --source"
        )
    for name, value in (("--workers", arguments.workers), ("--shard-mib", arguments.shard_mib)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; give 1 or more")
    if arguments.max_bad < 0:
        raise ConfigError(f"--max-bad is {arguments.max_bad}; give 0 or more")
    if not -(2**63) <= arguments.seed < 2**63:
        raise ConfigError(f"--seed is {arguments.seed}; give a number of 64 bits")
    from sharding.builder import build
    from sharding.plan import Settings
    from sharding.report import build_table

    settings = Settings(
        sources=tuple(zip(arguments.source, arguments.root, strict=True)),
        splits=arguments.splits,
        codec=arguments.codec,
        shard_mib=arguments.shard_mib,
        seed=arguments.seed,
    )
    command = ["python", "-m", "sharding.build", *(sys.argv[1:] if argv is None else argv)]
    figures, finished_before = build(
        settings, arguments.out, workers=arguments.workers, max_bad=arguments.max_bad, command=command
    )
    if arguments.json:
        print(json.dumps({**figures, "out": arguments.out, "finished_before": finished_before}, indent=1))
        return 0
    if finished_before:
        print(f"{arguments.out} is finished already; nothing to do")
    else:
        print(build_table(figures))
        print(f"finished: {arguments.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
