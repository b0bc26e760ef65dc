"""python -m pipeline.embed: a whole data set through a trained encoder, into a Zarr v3 store."""

import argparse
import json
import os
import sys
import traceback
from typing import Any, Final

from pipeline.command import end_process, exit_code
from pipeline.data_settings import DataSettings
from pipeline.distributed import Ranks, ranks_from
from pipeline.embed.settings import DTYPES, POOLS, EmbedSettings
from pipeline.errors import ConfigError, DataError
from pipeline.launch import count_processes, follow_launcher, start_ranks

_SAMPLES_A_PROCESS: Final = 1024
"""Fewer are not worth the start of a process on a CPU."""
_MOST_ON_CPU: Final = 16
_EPILOG: Final = """\
keys: data.url, and the others of `data` that an evaluation knows; by default those of the run. Examples:
  python -m pipeline.embed runs/xae data.url=/data/ben --out ben.zarr
  torchrun --nproc-per-node 4 -m pipeline.embed runs/xae data.url=s3://bucket/ben --out s3://bucket/ben.zarr
  python -m pipeline.embed --verify --out ben.zarr

Whatever ended it, the same command goes on behind the shards that are finished; when all are, it does nothing. The
arrays are the same on any number of ranks; every rank computes in one thread. Read them with xarray.open_zarr or zarr.

Exit code: 0 complete, 1 a checkpoint, a data set or the store is missing or damaged, 2 wrong usage."""


def main(argv: list[str] | None = None) -> int:
    """Embed, as the launcher of this machine's ranks or as one of them."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.embed",
        description="Embed every sample of a data set with a trained encoder, into a Zarr v3 store.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", metavar="RUN_DIR_OR_CHECKPOINT", help="run folder, or its checkpoints/step-*")
    parser.add_argument("overrides", nargs="*", metavar="data.key=value", help="such as data.url=URL")
    parser.add_argument("--out", required=True, metavar="URL", help="the store: a folder, s3://... (file name .zarr)")
    parser.add_argument("--split", default="", metavar="NAME", help="one split only (default: all)")
    parser.add_argument(
        "--modalities", default="", metavar="s1|s2|s1+s2", help="what is given (default: all there are)"
    )
    parser.add_argument(
        "--pool",
        choices=POOLS,
        default="mean",
        help="mean of the patch tokens, the global token, or every patch token (default: mean)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored embeddings")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="samples a forward pass (default: 64)")
    parser.add_argument(
        "--shard-samples",
        type=int,
        default=0,
        metavar="N",
        help="samples of a Zarr shard, a multiple of the batch size (default: about 32 MiB, 4,096 at most)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "--num-processes",
        type=int,
        default=0,
        metavar="N",
        help="ranks to start where no launcher did (default: one a GPU; on a CPU one a core, as many as are worth it)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read a complete store and compare every file with its checksum"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    given = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_intermixed_args(given)
    if arguments.verify:
        return _verify(arguments)
    if not arguments.run:
        raise ConfigError("give the run or checkpoint to embed with: python -m pipeline.embed RUN_DIR data.url=...")
    settings = EmbedSettings(
        modalities=arguments.modalities,
        split=arguments.split,
        pool=arguments.pool,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        shard_samples=arguments.shard_samples,
    )
    if arguments.num_processes < 0:
        raise ConfigError(f"--num-processes {arguments.num_processes} must not be negative; 0 chooses")
    data = resolve_data(arguments.run, arguments.overrides)
    ranks = ranks_from(os.environ)
    if ranks is not None:
        follow_launcher()
        return _run_rank(arguments, data, settings, ranks)
    num_processes = _count(arguments.num_processes, arguments.device, data.url, settings.split)
    if num_processes > 1:
        return start_ranks("pipeline.embed", given, num_processes)
    return _embed(arguments, data, settings, Ranks(rank=0, world_size=1, local_rank=0))


def resolve_data(run: str, overrides: list[str]) -> DataSettings:
    """The run's data settings with the overrides; ConfigError for a key that is none of `data`."""
    from pipeline.evaluate import resolve_settings

    for override in overrides:
        if not override.startswith("data."):
            raise ConfigError(
                f"'{override}' sets nothing that embedding knows; only keys of data, such as data.url=URL"
            )
    return resolve_settings(run, overrides).data


def _count(asked: int, device: str, url: str, split: str) -> int:
    """Processes to start; DataError when the data set or the split is not there."""
    from sharding.dataset import read_manifest

    manifest = read_manifest(url)
    samples = sum(shard.samples for shard in (manifest.shards_of(split) if split else manifest.shards))
    try:
        gpus_or_one = count_processes(asked, device)
    except ConfigError as error:
        raise ConfigError(f"--num-processes {asked} is more than this machine has GPUs; write fewer") from error
    if asked or gpus_or_one > 1 or device == "cuda":
        return gpus_or_one
    if device == "auto" and _has_gpu():
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), _MOST_ON_CPU, samples // _SAMPLES_A_PROCESS))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _run_rank(arguments: argparse.Namespace, data: DataSettings, settings: EmbedSettings, ranks: Ranks) -> int:
    """Work as one rank of several; does not return after an error, since the others may wait in a collective."""
    try:
        code = exit_code(lambda _: _embed(arguments, data, settings, ranks))
    except Exception:
        traceback.print_exc()
        code = 1
    if code:
        end_process(code)
    return code


def _embed(arguments: argparse.Namespace, data: DataSettings, settings: EmbedSettings, ranks: Ranks) -> int:
    from pipeline.embed.write import embed

    done = embed(arguments.run, data, settings, arguments.out, arguments.device, ranks)
    if ranks.is_first:
        print(json.dumps(done, indent=1) if arguments.json else "\n".join(_text(done)), flush=True)
    return 0


def _text(done: dict[str, Any]) -> list[str]:
    shape = " x ".join(f"{size:,}" for size in done["shape"])
    splits = ", ".join(f"{count:,} {name}" for name, count in done["splits"].items())
    lines = [f"{shape} {done['dtype']} of {done['modalities']} at step {done['step']} ({splits})"]
    if done["without_a_modality"]:
        lines.append(
            f"{done['without_a_modality']:,} samples lack a modality: their embedding is NaN, complete is false"
        )
    if done["shards_written"]:
        lines.append(
            f"{done['shards_written']} of {done['shards']} shards written on {done['ranks']} ranks, "
            f"{done['samples_per_s']:,.0f} samples/s"
        )
    else:
        lines.append(f"all {done['shards']} shards were there already; nothing to do")
    return [*lines, f"complete: {done['out']}"]


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.embed.store import EmbeddingStore

    if arguments.run:
        raise ConfigError("--verify needs only --out: what the store holds is compared with its own records")
    store = EmbeddingStore(arguments.out)
    wrong = store.damaged()
    if arguments.json:
        print(json.dumps({"out": store.store.url, "damaged": wrong}, indent=1))
    if wrong:
        path, why = next(iter(wrong.items()))
        more = f" (and {len(wrong) - 1} more files)" if len(wrong) > 1 else ""
        raise DataError(
            f"{store.store.name(path)}: {why}{more}; delete the file, and the command that made the store writes its "
            "shard again"
        )
    if not arguments.json:
        print(f"every file is as it was written: {store.store.url}")
    return 0
