"""`python -m sharding.inspect`: look into a data set without training on it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sharding.command import run_command
from sharding.errors import ConfigError

_EPILOG = """\
examples:
  python -m sharding.inspect summary /data/shards
  python -m sharding.inspect sample s3://bucket/shards S2A_MSIL2A_20170613T101031_26_57 --out patch.png
  python -m sharding.inspect gallery /data/shards@clear --out gallery.html --max-samples 300
  python -m sharding.inspect cat /data/shards S2A_MSIL2A_20170613T101031_26_57 --array s1 --npy s1.npy
  python -m sharding.inspect diff /data/shards@1 /data/shards
"""
_URL = "the data set: a folder, s3://…, gs://…, az://…; also URL@2, URL@SUBSET"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.inspect",
        description="Look into a data set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    views = parser.add_subparsers(dest="view", required=True, metavar="{summary,sample,gallery,cat,diff}")
    summary = views.add_parser("summary", help="splits, sources, bands, statistics, labels, bytes a pair")
    summary.add_argument("url", metavar="URL", help=_URL)
    summary.add_argument(
        "--split", default="", help="whose values to show, or all (default: train, or all where there is no train)"
    )
    summary.add_argument("--json", action="store_true", help="print the same as JSON")
    sample = views.add_parser("sample", help="one sample as a PNG: colours, VV, VH, what rides along, labels")
    sample.add_argument("url", metavar="URL", help=_URL)
    sample.add_argument("key", metavar="KEY", help="of the sample")
    sample.add_argument("--out", metavar="FILE", default="", help="the PNG (default: KEY.png here)")
    gallery = views.add_parser("gallery", help="one self-contained HTML page: thumbnails with filters, map, histograms")
    gallery.add_argument("url", metavar="URL", help=_URL)
    gallery.add_argument("--out", metavar="FILE", required=True, help="the page")
    gallery.add_argument("--max-samples", type=int, default=200, metavar="N", help="samples shown (default: 200)")
    gallery.add_argument("--split", default="", help="only samples of this split")
    cat = views.add_parser("cat", help="attributes and arrays of one sample as JSON")
    cat.add_argument("url", metavar="URL", help=_URL)
    cat.add_argument("key", metavar="KEY", help="of the sample")
    cat.add_argument("--array", default="", metavar="NAME", help="only this array")
    cat.add_argument("--npy", default="", metavar="FILE", help="write the array's stored numbers into this .npy file")
    diff = views.add_parser(
        "diff",
        help="what differs between two data sets; exit code 0: nothing, 1: something",
        description="What differs between two data sets: samples, pixels, metadata, settings.",
        epilog="exit code: 0 when nothing differs, 1 when something does or on failure, 2 on wrong usage",
    )
    diff.add_argument("a", metavar="A", help=_URL)
    diff.add_argument("b", metavar="B", help="the other one")
    diff.add_argument("--json", action="store_true", help="print the same as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Show what was asked for."""
    arguments = parse_arguments(argv)
    views = {"summary": _summary, "sample": _sample, "gallery": _gallery, "cat": _cat, "diff": _diff}
    return views[arguments.view](arguments)


def _summary(arguments: argparse.Namespace) -> int:
    from sharding.summary import summarise, summary_lines

    figures: dict[str, Any] = summarise(arguments.url, arguments.split)
    print(json.dumps(figures, indent=1) if arguments.json else "\n".join(summary_lines(figures)))
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from sharding.sample_sheet import draw_sample

    path = _output(arguments.out or f"{arguments.key.replace('/', '_')}.png")
    path.write_bytes(draw_sample(arguments.url, arguments.key))
    print(path)
    return 0


def _gallery(arguments: argparse.Namespace) -> int:
    if arguments.max_samples < 1:
        raise ConfigError(f"--max-samples is {arguments.max_samples}; give 1 or more")
    from sharding.gallery import make_gallery

    path = _output(arguments.out)
    page, shown, total = make_gallery(arguments.url, arguments.max_samples, arguments.split)
    path.write_text(page, encoding="utf-8")
    print(f"{shown} of {total} samples: {path}")
    return 0


def _cat(arguments: argparse.Namespace) -> int:
    if arguments.npy and not arguments.array:
        raise ConfigError("--npy writes one array; name it with --array")
    path = _output(arguments.npy) if arguments.npy else None
    import numpy as np

    from sharding.dataset import open_dataset
    from sharding.read_sample import find_sample, read_attributes, read_sample

    store, manifest = open_dataset(arguments.url)
    located = find_sample(store, manifest, arguments.key)
    wanted = [arguments.array] if arguments.array else None
    arrays = read_sample(store, manifest, located, wanted)
    if wanted and not arrays:
        there = ", ".join(read_sample(store, manifest, located))
        raise ConfigError(f"the sample has no array '{arguments.array}'; it has {there}")
    attributes, of_arrays = read_attributes(store, manifest, located)
    told = {
        "shard": located.shard.path,
        "attributes": attributes,
        "arrays": {
            name: {
                "shape": list(array.data.shape),
                "dtype": array.data.dtype.name,
                "codec": array.codec,
                "bytes": array.num_bytes,
                **({} if located.checksum == "none" else {located.checksum: f"{array.crc32c:08x}"}),
                **of_arrays[name],
            }
            for name, array in arrays.items()
        },
    }
    json.dump(told, sys.stdout, indent=1, ensure_ascii=False)
    print()
    if path:
        with path.open("wb") as file:
            np.save(file, arrays[arguments.array].data)
    return 0


def _output(name: str) -> Path:
    """The file to write; ConfigError where no file can be, before any work is done."""
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{name} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent} for {path.name}; make it first")
    return path


def _diff(arguments: argparse.Namespace) -> int:
    from sharding.difference import compare, difference_lines

    found = compare(arguments.a, arguments.b)
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(difference_lines(found)))
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    run_command(main)
