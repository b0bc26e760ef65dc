"""`python -m sharding.index`: an index over an archive as it lies, so that it streams without being built."""

import argparse
import os
from typing import TYPE_CHECKING, Final

from sharding.build_options import command_line, print_figures
from sharding.command import run_command
from sharding.errors import ConfigError

if TYPE_CHECKING:
    from sharding.foreign_archive import IndexOptions

_SOURCES: Final = {
    "terramesh": "TerraMesh: {train,val}/<modality>/*.tar of zarr.zip, joined by key",
    "ssl4eo-s12-v1.1": "SSL4EO-S12 v1.1: {train,val}/{S1GRD,S2L2A,S2L1C}/*.zarr.zip, joined by id and nearest date",
    "webdataset": "plain WebDataset: {train,val,test}/**/*.tar with members KEY.FIELD.npy, named by --array",
}
_OFFSETS: Final = (-1000.0, 0.0)
_EPILOG: Final = """\
sources:
{sources}

examples:
  python -m sharding.index --source terramesh --root /data/TerraMesh --out /data/TerraMesh
  python -m sharding.index --source ssl4eo-s12-v1.1 --root s3://bucket/ssl4eo --out s3://mine/ssl4eo-index --workers 16
  python -m sharding.index --source webdataset --root /data/pairs --out /data/pairs-index \\
      --array s1=VV,VH:dB --array s2=B02,B03,B04,B08:DN:offset=-1000

Nothing in the archive is written or copied. With --out the archive itself, the index lies in its folder fusmae-index.
An interrupted run goes on when the same command is given again; of an archive that has not changed (size and time of
its files) nothing is done twice. Samples that are left out are listed in OUT/bad.jsonl with their reasons.
"""


def main(argv: list[str] | None = None) -> int:
    """Index; 0 when the index is finished, also when it was already."""
    arguments = _parse(argv)
    options = _options(arguments)
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    from sharding.foreign_build import index_archive, table_lines

    figures, finished_before = index_archive(
        arguments.source,
        arguments.root,
        arguments.out,
        options,
        workers=workers,
        max_bad=arguments.max_bad,
        command=command_line("sharding.index", argv),
    )
    lines = (
        [f"{figures['out']} is finished already and the archive has not changed; nothing to do"]
        if finished_before
        else [*table_lines(figures), f"finished: {figures['out']}"]
    )
    print_figures({**figures, "finished_before": finished_before}, lines, arguments.json)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sharding.index",
        description="Index an archive of Sentinel-1 and -2 as it lies, so that it streams without being built.",
        epilog=_EPILOG.format(sources="\n".join(f"  {name:<16}{text}" for name, text in _SOURCES.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", required=True, choices=_SOURCES, help="layout of the archive")
    parser.add_argument("--root", required=True, metavar="DIR_OR_URL", help="where it lies")
    parser.add_argument(
        "--out", required=True, metavar="DIR_OR_URL", help="where the index goes: a new folder or URL, or the archive"
    )
    parser.add_argument(
        "--level", choices=("L1C", "L2A"), default="", help="of S2, where an archive has both (default: L2A)"
    )
    parser.add_argument(
        "--riders", action="store_true", help="take elevation, NDVI, land cover and masks of clouds along"
    )
    parser.add_argument(
        "--unproven-offset",
        type=float,
        default=None,
        metavar="-1000|0",
        help="radiometric offset of TerraMesh's S2 tiles whose pixels prove none (default: they are left out)",
    )
    parser.add_argument(
        "--headers-only",
        action="store_true",
        help="read no pixels but those of --statistics-from: quick, checks and proves nothing",
    )
    parser.add_argument(
        "--statistics-from",
        type=int,
        default=0,
        metavar="N",
        help="with --headers-only: samples that are read, of train if it has any",
    )
    parser.add_argument(
        "--array",
        action="append",
        default=[],
        metavar="NAME=BANDS:UNITS",
        help="webdataset: what KEY.NAME.npy holds, such as s2=B02,B03,B04:DN; behind it, if need be, :scale=X, "
        ":offset=X, :nodata=X, :gsd=METRES; again for each array",
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        default="",
        help="webdataset: of all tars (default: that of their first folder)",
    )
    parser.add_argument(
        "--prefix-keys", action="store_true", help="webdataset: put the name of the tar in front of each key"
    )
    parser.add_argument(
        "--max-bad",
        type=int,
        default=0,
        metavar="N",
        help="how many samples may be refused for defects before it fails; missing halves and unproven offsets are "
        "only told (default: 0)",
    )
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: one a CPU core)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse_args(argv)


def _options(arguments: argparse.Namespace) -> "IndexOptions":
    """The settings; ConfigError for values that cannot work or would have no effect."""
    _refuse_idle(arguments)
    if arguments.workers is not None and arguments.workers < 1:
        raise ConfigError(f"--workers is {arguments.workers}; give 1 or more")
    if arguments.max_bad < 0:
        raise ConfigError(f"--max-bad is {arguments.max_bad}; give 0 or more")
    if arguments.unproven_offset is not None and arguments.unproven_offset not in _OFFSETS:
        raise ConfigError(f"--unproven-offset is {arguments.unproven_offset:g}; it can be -1000 or 0")
    if arguments.headers_only and arguments.statistics_from < 1:
        raise ConfigError("--headers-only needs --statistics-from N: inputs are normalised with the statistics")
    if arguments.headers_only and arguments.source == "terramesh" and arguments.unproven_offset is None:
        raise ConfigError(
            "TerraMesh mixes tiles of S2 with and without the +1000 of baseline 04.00, and only pixels tell which; "
            "leave --headers-only out, or give all tiles one by --unproven-offset -1000 or 0"
        )
    from sharding.foreign_archive import IndexOptions
    from sharding.foreign_webdataset import parse_array

    return IndexOptions(
        level=arguments.level,
        riders=arguments.riders,
        headers_only=arguments.headers_only,
        statistics_from=arguments.statistics_from,
        unproven_offset=arguments.unproven_offset,
        arrays=tuple(map(parse_array, arguments.array)),
        split=arguments.split,
        prefix_keys=arguments.prefix_keys,
    )


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """ConfigError for an option that would change nothing."""
    if arguments.statistics_from and not arguments.headers_only:
        raise ConfigError("--statistics-from goes with --headers-only; without it the statistics are of all pixels")
    for option, sources in (
        ("unproven_offset", ("terramesh",)),
        ("riders", ("terramesh", "ssl4eo-s12-v1.1")),
        ("array", ("webdataset",)),
        ("split", ("webdataset",)),
        ("prefix_keys", ("webdataset",)),
    ):
        value = getattr(arguments, option)
        is_given = value is not None and (bool(value) or option == "unproven_offset")
        if is_given and arguments.source not in sources:
            raise ConfigError(
                f"--{option.replace('_', '-')} is an option of {' and '.join(sources)}; it changes nothing in "
                f"{arguments.source}, leave it out"
            )


if __name__ == "__main__":
    run_command(main)
