"""`python -m sharding.inspect`: look into a data set without training on it."""

import argparse
import json
from typing import Any

from sharding.command import run_command

_EPILOG = """\
examples:
  python -m sharding.inspect summary /data/shards
  python -m sharding.inspect summary s3://bucket/shards --json
"""


def main(argv: list[str] | None = None) -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.inspect",
        description="Look into a data set.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    views = parser.add_subparsers(dest="view", required=True, metavar="{summary}")
    summary = views.add_parser("summary", help="splits, sources, bands, statistics, labels, bytes a pair")
    summary.add_argument("url", metavar="URL", help="the data set: a folder, s3://…, gs://…, az://…")
    summary.add_argument("--json", action="store_true", help="print the same as JSON")
    arguments = parser.parse_args(argv)

    from sharding.summary import summarise, summary_lines

    figures: dict[str, Any] = summarise(arguments.url)
    print(json.dumps(figures, indent=1) if arguments.json else "\n".join(summary_lines(figures)))
    return 0


if __name__ == "__main__":
    run_command(main)
