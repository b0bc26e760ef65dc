"""`python -m sharding.verify`: read everything of a data set again and list all that is not as it was written."""

import argparse
import json
import os

from sharding.command import run_command
from sharding.errors import ConfigError, DataError

_EPILOG = """\
examples:
  python -m sharding.verify /data/shards
  python -m sharding.verify s3://bucket/shards --workers 8 --json

Checked: manifest and fingerprint; size and SHA-256 of every shard and index; the tar, read by Python's tarfile; the
ZIP and its CRC-32, the CRC-32C and the decoding of every array; keys, counts, shapes and types against the manifest.
Exit code 0: whole; 1: defects, all of them listed.
"""


def main(argv: list[str] | None = None) -> int:
    """Verify; DataError when anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m sharding.verify",
        description="Read every shard and index of a data set and check them in every way there is.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", metavar="URL", help="the data set: a folder, s3://…, gs://…, az://…")
    parser.add_argument(
        "--workers", type=int, default=None, metavar="N", help="threads that read shards (default: one a CPU core)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    arguments = parser.parse_args(argv)
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    if workers < 1:
        raise ConfigError(f"--workers is {workers}; give 1 or more")

    from sharding.checks import verify

    findings = verify(arguments.url, workers)
    if arguments.json:
        print(json.dumps(findings.as_dict(), indent=1))
    else:
        print("\n".join(findings.lines()))
    if findings.defects:
        raise DataError(
            f"{arguments.url} has {len(findings.defects)} defects, the first: {findings.defects[0]}; "
            "fetch the named files again or build the data set again"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
