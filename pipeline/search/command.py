"""python -m pipeline.search: the samples nearest to one, by their embeddings."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any, Final

from pipeline.errors import ConfigError

_EPILOG: Final = """\
examples:
  python -m pipeline.search ben.zarr --key S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57
  python -m pipeline.search s3://bucket/ben.zarr --key KEY --neighbours 11 --picture hits.png

Every sample of the store is compared, a block at a time, in memory that does not grow with the store.
Exit code: 0 found, 1 the store, the data set or the key is not there, 2 wrong usage."""


def main(argv: list[str] | None = None) -> int:
    """Print the nearest samples, and draw them when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.search",
        description="The samples whose embeddings are nearest to those of one sample.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("store", metavar="STORE", help="path or URL of a store of python -m pipeline.embed")
    parser.add_argument("--key", required=True, help="the sample that is asked for")
    parser.add_argument("--neighbours", type=int, default=10, metavar="K", help="how many (default: 10)")
    parser.add_argument(
        "--metric", choices=("cosine", "euclidean"), default="cosine", help="what near means (default: cosine)"
    )
    parser.add_argument("--picture", metavar="FILE.png", help="draw the sample and its neighbours, S2 over S1")
    parser.add_argument(
        "--data", default="", metavar="URL", help="for the picture: where the data set lies now, if it was moved"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if arguments.neighbours < 1:
        raise ConfigError(f"--neighbours {arguments.neighbours} must be at least 1")
    if arguments.data and not arguments.picture:
        raise ConfigError("--data is only for --picture; the search itself reads the store alone")

    from pipeline.search.nearest import EmbeddingReader, nearest

    reader = EmbeddingReader(arguments.store)
    row = reader.find(arguments.key)
    hits = nearest(reader, row, arguments.neighbours, arguments.metric)
    query = reader.describe(row, 1.0 if arguments.metric == "cosine" else 0.0)
    if arguments.picture:
        from pipeline.search.picture import write_sheet

        url = arguments.data or reader.attributes["provenance"]["data_url"]
        fingerprint = reader.attributes["of"]["data_fingerprint"]
        captions = ["query", *(f"{place}: {hit.value:.4f}" for place, hit in enumerate(hits, start=1))]
        write_sheet(arguments.picture, url, fingerprint, [query.key, *(hit.key for hit in hits)], captions)
    if arguments.json:
        found = {"store": arguments.store, "metric": arguments.metric, "query": _plain(query)}
        print(json.dumps({**found, "neighbours": [_plain(hit) for hit in hits]}, indent=1))
        return 0
    print(f"{arguments.metric} to {query.key} ({', '.join(query.labels) or 'no labels'}), of {len(reader):,} samples")
    width = max(len(hit.key) for hit in hits)
    for place, hit in enumerate(hits, start=1):
        print(f"{place:>3} {hit.value:>9.4f}  {hit.key:<{width}}  {hit.split:<6} {', '.join(hit.labels)}")
    if arguments.picture:
        print(f"written: {arguments.picture}")
    return 0


def _plain(sample: Any) -> dict[str, Any]:
    return {**asdict(sample), "labels": list(sample.labels)}
