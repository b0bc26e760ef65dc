"""`python -m sharding.extend`: add archives to a data set, as new shards under a new version of its manifest."""

import argparse

from sharding.build_options import (
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
from sharding.errors import ConfigError

_EXAMPLES = """\
{sources}

examples:
  python -m sharding.extend /data/shards --source reben --root /data/ben2
  python -m sharding.extend s3://bucket/shards --source folder --root more.csv --splits geographic --slurm 16

Nothing that is there is written again: the new samples lie in shards of their own, and the version before stays
readable as URL@NUMBER. Pairs whose key, or whose place and day, the data set has already are left out. The same
command again does nothing.
"""


def main(argv: list[str] | None = None) -> int:
    """Extend; 0 when the new version is finished, also when there is nothing new."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.extend",
        description="Add the pairs of archives to a finished data set.",
        epilog=_EXAMPLES.format(sources=SOURCES_HELP),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the data set: a folder, s3://…, gs://…, az://…")
    add_sources(parser)
    add_work(parser)
    arguments = parser.parse_args(argv)
    check(arguments)
    from sharding.builder import extend
    from sharding.dataset import read_manifest, split_version
    from sharding.report import build_table

    if split_version(arguments.url)[1]:
        raise ConfigError(f"{arguments.url} is a version or a subset; only the newest version can be extended")
    manifest = read_manifest(arguments.url)
    if any(shard.parts for shard in manifest.shards):
        raise ConfigError(
            f"{arguments.url} is an index over an archive as it lies, which cannot be extended; build the archive with "
            "python -m sharding.build, or run python -m sharding.index again when the archive has grown"
        )
    s1 = next((spec.dtype for spec in manifest.arrays if spec.name == "s1"), "float32")
    settings = settings_of(arguments, codec=manifest.codec, s1=s1)
    figures, nothing_new = extend(
        settings,
        arguments.url,
        means=means_of(arguments),
        max_bad=arguments.max_bad,
        command=command_line("sharding.extend", argv),
    )
    lines = (
        [f"note: {note}" for note in figures["notes"]] + [f"{arguments.url} has all of it already; nothing to do"]
        if nothing_new
        else [build_table(figures), f"finished: {arguments.url}, version {figures['version']}"]
    )
    print_figures({**figures, "url": arguments.url, "nothing_new": nothing_new}, lines, arguments.json)
    return 0


if __name__ == "__main__":
    run_command(main)
