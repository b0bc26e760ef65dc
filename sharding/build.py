"""`python -m sharding.build`: archives of Sentinel-1/2 pairs -> a data set of shards; here is its command line."""

import argparse

from sharding.build_options import (
    S1_KINDS,
    SOURCES_HELP,
    add_sources,
    add_work,
    check,
    command_line,
    means_of,
    print_figures,
    settings_of,
)
from sharding.command import run_command

_CODECS = ("lz4", "none", "zstd")
_EXAMPLES = """\
{sources}

examples:
  python -m sharding.build --source bigearthnet-v1 --root /data/ben1 --source reben --root /data/ben2 --out /data/shards
  python -m sharding.build --source folder --root pairs.parquet --out s3://bucket/shards --splits geographic
  python -m sharding.build --source terramesh --root /data/TerraMesh --out s3://bucket/tm --slurm 64 --workers 16

An interrupted build goes on when the same command is given again; a finished one is left as it is. Pairs that cannot
be built are listed in OUT/bad.jsonl with their reasons. Check the result with: python -m sharding.verify OUT
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.build",
        description="Build shards, an index and a manifest from archives of co-registered Sentinel-1 and -2 patches.",
        epilog=_EXAMPLES.format(sources=SOURCES_HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sources(parser)
    parser.add_argument(
        "--out", required=True, metavar="URL", help="where the data set goes: a new folder, s3://…, gs://…, az://…"
    )
    parser.add_argument(
        "--codec",
        choices=_CODECS,
        default="lz4",
        help="lossless compression: lz4 is quick, zstd smallest, none needs no decoding (default: lz4)",
    )
    parser.add_argument(
        "--s1",
        choices=S1_KINDS,
        default="float32",
        help="how S1 is stored: as it came, or rounded to float16 or to steps of 0.005 dB (int16); the worst error in "
        "dB is in the manifest (default: float32)",
    )
    add_work(parser)
    parser.add_argument(
        "--recheck",
        action="store_true",
        help="of a finished data set, also compare all files of the archives with those that it was built from",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Build; 0 when the data set is finished, also when it was already."""
    arguments = parse_arguments(argv)
    check(arguments)
    from sharding.builder import build
    from sharding.report import build_table

    settings = settings_of(arguments, codec=arguments.codec, s1=arguments.s1)
    figures, finished_before = build(
        settings,
        arguments.out,
        means=means_of(arguments),
        max_bad=arguments.max_bad,
        command=command_line("sharding.build", argv),
        recheck=arguments.recheck,
    )
    lines = (
        [f"{arguments.out} is finished already; nothing to do"]
        if finished_before
        else [build_table(figures), f"finished: {arguments.out}"]
    )
    print_figures({**figures, "out": arguments.out, "finished_before": finished_before}, lines, arguments.json)
    return 0


if __name__ == "__main__":
    run_command(main)
