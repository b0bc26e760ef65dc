"""`python -m benchmarks.stream`: the stream beside its rivals and the limits of the machine, on the same pairs.

`--part local`: samples a second from the page cache, on one core and on two. `--part first-batch`: time to the first
batch, and to go on in mid-epoch. `--part s3`: from an S3 server on loopback, with and without 30 ms of delay.

All hold the same four arrays of the same types in their own format, and stack batches of 64. Each contender runs in a
process of its own that is pinned to one core or two; all take turns. The first batches of each are compared with the
archive. Rivals are installed on demand into `.rivals-env` (python -m benchmarks.stream_rivals install).
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import write_section
from pipeline.command import run_command
from pipeline.errors import ConfigError

DATA = Path(".stream-bench")
PARTS = ("local", "first-batch", "s3")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, default="local", help="what to measure (default: local)")
    parser.add_argument("--pairs", type=int, help="pairs of the data set (default: 8192; 1024 with --quick)")
    parser.add_argument("--rounds", type=int, help="how often each is run (default: 5; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="how long each is timed (default: 3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs, fewer and shorter rounds")
    parser.add_argument("--only", default="", metavar="NAMES", help="contenders to run, by commas (default: all)")
    parser.add_argument(
        "--loop-ms", default="2,10", metavar="MS", help="Python beside ours, a batch, in ms (default: 2,10)"
    )
    parser.add_argument("--delay-ms", type=float, default=30.0, help="delay of the slow S3 server (default: 30)")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help=f"where the data is kept ({DATA})")
    parser.add_argument("--without-rivals", action="store_true", help="install and run none")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    num_pairs = arguments.pairs or (1024 if quick else 8192)
    if num_pairs < 512:
        raise ConfigError(f"--pairs is {num_pairs}; 512 are the least of which an epoch can be timed")

    from benchmarks import stream_first, stream_local, stream_rivals, stream_s3
    from benchmarks.stream_readers import READERS
    from benchmarks.stream_runs import Bench, Options
    from sharding.plan import FORMAT

    plain = {"ours", "raw", "memcpy", "memmap", "h5py", "geotiff", "ranges"}
    known = set(READERS)
    only = set(_words(arguments.only)) or (plain if arguments.without_rivals else known)
    if only - known:
        raise ConfigError(f"there is no contender {', '.join(sorted(only - known))}; there are {', '.join(known)}")
    if not only <= plain and not stream_rivals.is_complete():
        print("installing the rivals into .rivals-env", file=sys.stderr, flush=True)
        stream_rivals.install()
    options = Options(
        quick=quick,
        rounds=arguments.rounds or (1 if quick else 5),
        as_json=arguments.json,
        only=frozenset(only),
        loop_ms=tuple(float(word) for word in _words(arguments.loop_ms)),
        delay_ms=arguments.delay_ms,
    )
    arguments.data.mkdir(parents=True, exist_ok=True)
    (arguments.data / ".gitignore").write_text("*\n")
    bench = Bench(
        folder=arguments.data / f"{num_pairs}-format{FORMAT}",
        num_pairs=num_pairs,
        seconds=arguments.seconds or (1.0 if quick else 3.0),
    )
    part = {"local": stream_local, "first-batch": stream_first, "s3": stream_s3}[arguments.part]
    show = part.measure(bench, options)
    print(show(arguments.json))
    if arguments.into:
        section = "stream" if arguments.part == "local" else f"stream-{arguments.part}"
        write_section(Path(arguments.into), section, show(False))
    return 0


def _words(text: str) -> Iterator[str]:
    return (word.strip() for word in text.split(",") if word.strip())


if __name__ == "__main__":
    run_command(main)
