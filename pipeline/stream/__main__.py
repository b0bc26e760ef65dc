"""`python -m pipeline.stream`: how a stream mixes, what a step gives to whom, how fast it is and what limits it."""

import argparse
import json
import sys

from pipeline.command import run_command
from sharding.errors import ConfigError

_EPILOG = """\
examples:
  python -m pipeline.stream shuffle s3://bucket/pairs --global-batch 4096 --ranks 64 --nodes 8
  python -m pipeline.stream order /data/shards --step 1200 --global-batch 512 --ranks 8 --rank 3
  python -m pipeline.stream bench s3://bucket/pairs --batch-size 64 --threads 4 --cache-dir /local/cache
"""
_URL = "the data set: a folder, s3://…, gs://…, az://…; also URL@2, URL@SUBSET"
_GPUS_PER_NODE = 8
_RANK_BATCH = 64


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.stream",
        description="Look at the stream of a data set without training on it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{shuffle,order,bench}")

    shuffle = commands.add_parser(
        "shuffle",
        help="how well a rank's batches are mixed, beside a full permutation and other loaders",
        description="How well a rank's batches are mixed, by arithmetic: only the manifest is read.",
    )
    _add_common(shuffle)
    shuffle.add_argument("--ranks", type=int, metavar="W", help=f"ranks of the job (default: {_GPUS_PER_NODE} a node)")
    shuffle.add_argument("--nodes", type=int, default=1, metavar="M", help="nodes of the job (default: 1)")
    shuffle.add_argument(
        "--global-batch", type=int, metavar="G", help=f"samples of a step (default: {_RANK_BATCH} a rank)"
    )
    shuffle.add_argument(
        "--batches", type=int, default=200, metavar="N", help="batches that are looked at (default: 200)"
    )

    order = commands.add_parser(
        "order",
        help="which samples a step gives to which rank",
        description="Which samples a step gives to which rank; the indexes are read, and no pixel.",
    )
    _add_common(order)
    order.add_argument("--step", type=int, required=True, metavar="T", help="of the run, from 0 over all epochs")
    order.add_argument("--global-batch", type=int, required=True, metavar="G", help="samples of a step")
    order.add_argument("--ranks", type=int, required=True, metavar="W", help="ranks of the job")
    order.add_argument("--rank", type=int, metavar="R", help="only this rank's")

    bench = commands.add_parser(
        "bench",
        help="samples a second, what limits them, and how many GPUs they feed",
        description="Stream for some seconds: how fast, what it waits for, what limits it, how many GPUs it can feed.",
    )
    _add_common(bench)
    bench.add_argument(
        "--batch-size", type=int, default=_RANK_BATCH, metavar="B", help=f"of a rank (default: {_RANK_BATCH})"
    )
    bench.add_argument(
        "--ranks", type=int, default=1, metavar="W", help="measure the first rank of a job of so many (default: 1)"
    )
    bench.add_argument("--threads", type=int, default=2, metavar="T", help="reader threads (default: 2)")
    bench.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long (default: 10)")
    bench.add_argument("--cache-gib", type=float, default=2.0, metavar="X", help="memory for fetched runs (default: 2)")
    bench.add_argument("--cache-dir", default="", metavar="DIR", help="folder on a local disk for fetched runs")
    bench.add_argument(
        "--client", default="fsspec", choices=("fsspec", "obstore"), help="what talks to an object store"
    )
    bench.add_argument("--no-checksums", action="store_true", help="leave payloads unchecked")
    bench.add_argument("--device", default="cpu", help="copy batches there too, such as cuda (default: cpu, no copy)")
    bench.add_argument("--model", choices=("vit_s", "vit_b", "vit_l", "vit_h"), help="only this model's GPUs")
    bench.add_argument(
        "--tflops", type=float, default=400.0, metavar="F", help="sustained by a GPU, in 10^12/s (default: 400)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Do what was asked for."""
    arguments = parse_arguments(argv)
    commands = {"shuffle": _shuffle, "order": _order, "bench": _bench}
    return commands[arguments.command](arguments)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help=_URL)
    parser.add_argument("--split", default="train", help="split to stream (default: train)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default: 0)")
    parser.add_argument(
        "--window-gib", type=float, default=2.0, metavar="X", help="shuffle window of a group of streams (default: 2)"
    )
    parser.add_argument(
        "--groups", type=int, default=0, metavar="N", help="groups of streams (default: one for each 512 of the batch)"
    )
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def _shuffle(arguments: argparse.Namespace) -> int:
    from pipeline.stream.shuffle_report import Question, Split, measure_shuffle, shuffle_lines
    from sharding.dataset import read_manifest

    ranks = _GPUS_PER_NODE * arguments.nodes if arguments.ranks is None else arguments.ranks
    question = Question(
        global_batch=_RANK_BATCH * ranks if arguments.global_batch is None else arguments.global_batch,
        ranks=ranks,
        nodes=arguments.nodes,
        window_gib=arguments.window_gib,
        groups=arguments.groups,
        seed=arguments.seed,
        batches=arguments.batches,
    )
    report = measure_shuffle(Split.of(read_manifest(arguments.url), arguments.split), question)
    _print(report.as_dict() if arguments.json else shuffle_lines(report, arguments.url))
    return 0


def _order(arguments: argparse.Namespace) -> int:
    from pipeline.stream.shuffle_report import Question
    from pipeline.stream.step_samples import samples_of_step

    question = Question(
        global_batch=arguments.global_batch,
        ranks=arguments.ranks,
        window_gib=arguments.window_gib,
        groups=arguments.groups,
        seed=arguments.seed,
    )
    step = samples_of_step(arguments.url, arguments.split, question, arguments.step, arguments.rank)
    _print(step.as_dict() if arguments.json else step.lines())
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    for name in ("batch_size", "ranks"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give 1 or more")

    from pipeline.stream.bench import BenchSettings, measure
    from pipeline.stream.bench_report import PRESETS, BenchReport, bench_lines, models_for, what_limits
    from pipeline.stream.exact import StreamConfig
    from sharding.dataset import read_manifest

    presets = (arguments.model,) if arguments.model else PRESETS
    models = models_for(read_manifest(arguments.url), presets, arguments.tflops)
    config = StreamConfig(
        url=arguments.url,
        split=arguments.split,
        global_batch=arguments.batch_size * arguments.ranks,
        seed=arguments.seed,
        threads=arguments.threads,
        window_gib=arguments.window_gib,
        groups=arguments.groups,
        cache_gib=arguments.cache_gib,
        cache_dir=arguments.cache_dir,
        client=arguments.client,
        verify_checksums=not arguments.no_checksums,
    )
    measured = measure(
        BenchSettings(stream=config, ranks=arguments.ranks, seconds=arguments.seconds, device=arguments.device)
    )
    report = BenchReport(
        url=arguments.url,
        measured=measured,
        limit=what_limits(measured),
        tflops=arguments.tflops,
        models=models,
    )
    _print(report.as_dict() if arguments.json else bench_lines(report))
    return 0


def _print(told: dict[str, object] | list[str]) -> None:
    if isinstance(told, dict):
        json.dump(told, sys.stdout, indent=1)
        print()
    else:
        print("\n".join(told))


if __name__ == "__main__":
    run_command(main)
