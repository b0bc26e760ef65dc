"""`python -m benchmarks.embed`: embedding a data set with the demo's model, beside the model and the stream alone.

The data set is of 512 real pairs (the demo's, which `make setup` fetches, built by sharding.build), repeated to
--samples by indexes that name the same payloads by other keys: 100,000 samples take no disk, and all lies in the page
cache. The weights are random, which costs the same. `forward only` is the same model on one batch that is in memory
already, one thread; `pretraining stream` reads the same samples, shuffled, with two reader threads, and computes
nothing.

Then two ranks are killed by SIGKILL when half of the shards are there, and the same command goes on; ratios say whether
all files are equal to those of the undisturbed store, and whether xarray opens it.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.real_pairs import write_archive
from benchmarks.table import Row, render, write_section
from pipeline.command import run_command
from pipeline.errors import StorageError

PAIRS = 512
BATCH = 64
_DEMO = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000, help="of the data set (default: 100,000)")
    parser.add_argument("--folder", help="where all of it goes (default: the system's temporary one)")
    parser.add_argument("--into", metavar="FILE", help="also write the table into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="embed-", dir=arguments.folder) as name:
        rows, ratios = _measured(Path(name), arguments.samples)
    print(render(rows, ratios, arguments.json))
    if arguments.into:
        write_section(Path(arguments.into), "embed", render(rows, ratios, as_json=False))
    return 0


def _measured(folder: Path, samples: int) -> tuple[list[Row], dict[str, float]]:
    url = _data_set(folder, samples)
    run = _run(folder, url)
    forward, stream = [_forward(run)], [_stream(url, samples)]
    told = {ranks: _embed(run, folder / f"{ranks}.zarr", ranks) for ranks in (1, 2)}
    forward.append(_forward(run))
    stream.append(_stream(url, samples))
    resumed_s, written = _killed(run, folder / "killed.zarr", told[1]["shards"])
    files = {ranks: _files(folder / f"{ranks}.zarr") for ranks in (1, 2)}
    xarray_s, xarray_equal = _xarray(folder / "1.zarr")
    size = sum(path.stat().st_size for path in (folder / "1.zarr").rglob("*") if path.is_file())
    rates = {ranks: one["samples_per_s"] for ranks, one in told.items()}
    rows = [
        _row("samples", [samples], "samples"),
        _row("forward only, one thread", forward, "samples/s"),
        _row("pretraining stream alone", stream, "samples/s"),
        _row("pipeline.embed, 1 rank", [rates[1]], "samples/s"),
        _row("pipeline.embed, 2 ranks", [rates[2]], "samples/s"),
        _row("whole command, 2 ranks", [told[2]["wall_s"]], "s"),
        _row("the store", [size / 1e3], "kB"),
        _row("the store, of a sample (repeated pairs compress, others hardly)", [size / samples], "B"),
        _row("its embedding, not compressed", [4 * told[1]["shape"][1]], "B"),
        _row("resumed behind SIGKILL, whole command", [resumed_s], "s"),
        _row("shards that it still wrote", [written], f"of {told[1]['shards']}"),
        _row("opened and read by xarray", [1e3 * xarray_s], "ms"),
    ]
    mean = sum(forward) / len(forward)
    ratios = {
        "share_of_forward_only": rates[1] / mean,
        "share_of_stream": rates[1] / (sum(stream) / len(stream)),
        "two_ranks_vs_one": rates[2] / rates[1],
        "two_ranks_equal_one": float(files[1] == files[2]),
        "resumed_equals_undisturbed": float(files[1] == _files(folder / "killed.zarr")),
        "xarray_reads_the_same": float(xarray_equal),
    }
    return rows, ratios


def _row(name: str, values: list[float], unit: str) -> Row:
    return Row(name=name, value=sum(values) / len(values), unit=unit, low=min(values), high=max(values))


def _data_set(folder: Path, samples: int) -> str:
    """The repeated data set: every shard is an index of its own over the same tar."""
    import numpy as np

    from sharding.build import main as build
    from sharding.dataset import open_dataset
    from sharding.manifest import MANIFEST_NAME, dump_manifest
    from sharding.shard_index import dump_index, parse_index

    root = folder / "set"
    write_archive(folder / "archive", min(PAIRS, samples))
    if build(["--source", "reben", "--root", str(folder / "archive"), "--out", str(root)]):
        raise StorageError(f"the data set of the benchmark could not be built in {root}")
    _, manifest = open_dataset(str(root))
    shards, left, number = [], samples, 0
    while left > 0:
        for shard in manifest.shards:
            count = min(shard.samples, left)
            left -= count
            if not count:
                break
            index = parse_index((root / shard.index_path).read_bytes(), shard.index_path)
            lines = (root / shard.metadata_path).read_text().splitlines()[:count]
            records = np.empty(count, [("key", "S96"), *index.records.dtype.descr[1:]])
            for field in index.records.dtype.names[1:]:
                records[field] = index.records[field][:count]
            renamed = []
            for place, line in enumerate(lines):
                about = json.loads(line)
                about["key"] = f"{about['key']}-{number:05d}"
                records["key"][place] = about["key"].encode()
                renamed.append(json.dumps(about) + "\n")
            content, metadata = dump_index(replace(index, records=records)), "".join(renamed).encode()
            paths = (f"index/repeated-{number:06d}.idx", f"metadata/repeated-{number:06d}.jsonl")
            for path, data in zip(paths, (content, metadata), strict=True):
                (root / path).write_bytes(data)
            shards.append(
                replace(
                    shard,
                    samples=count,
                    index_path=paths[0],
                    index_bytes=len(content),
                    index_sha256=hashlib.sha256(content).hexdigest(),
                    metadata_path=paths[1],
                    metadata_bytes=len(metadata),
                    metadata_sha256=hashlib.sha256(metadata).hexdigest(),
                )
            )
            number += 1
    (root / MANIFEST_NAME).write_bytes(dump_manifest(replace(manifest, shards=tuple(shards))))
    return str(root)


def _run(folder: Path, url: str) -> Path:
    """A run of the demo's model with random weights."""
    import google_crc32c
    import torch
    from safetensors.torch import save_file

    from fusmae import FusMAE
    from pipeline.config import dump_settings, load_settings, model_config

    run = folder / "run"
    checkpoint = run / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    settings = load_settings(_DEMO, [f"data.url={url}", f"run.dir={run}"])
    (run / "config.yaml").write_text(dump_settings(settings))
    torch.manual_seed(0)
    weights = checkpoint / "model.safetensors"
    save_file(FusMAE(model_config(settings)).state_dict(), weights)
    files = {weights.name: [weights.stat().st_size, google_crc32c.value(weights.read_bytes())]}
    about = {"step": 1, "world_size": 1, "files": files, "data_fingerprint": None}
    (checkpoint / "manifest.json").write_text(json.dumps(about))
    return run


def _forward(run: Path, seconds: float = 5.0) -> float:
    """Samples/s of the encoder on a batch in memory."""
    import torch

    from pipeline.evaluate import resolve_settings
    from pipeline.frozen import open_frozen

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        frozen = open_frozen(str(run), resolve_settings(str(run), []).data, "cpu")
        _, images, _ = next(iter(frozen.batches("train", BATCH)))
        with torch.inference_mode():
            frozen.model.features(images)
            began, done = time.perf_counter(), 0
            while time.perf_counter() - began < seconds:
                frozen.model.features(images)
                done += len(images["s1"])
            return done / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def _stream(url: str, samples: int) -> float:
    """Samples/s of the pretraining stream, behind its first batch."""
    from pipeline.stream import Stream, StreamConfig

    with Stream(StreamConfig(url=url, global_batch=BATCH, threads=2)) as stream:
        batches = iter(stream)
        next(batches)
        number = max(min(samples, 20_000) // BATCH, 2)
        began = time.perf_counter()
        for _ in range(number):
            next(batches)
        return number * BATCH / (time.perf_counter() - began)


def _command(run: Path, out: Path, ranks: int) -> list[str]:
    options = ["--device", "cpu", "--batch-size", str(BATCH), "--shard-samples", str(8 * BATCH), "--json"]
    module = [sys.executable, "-m", "pipeline.embed"]
    return [*module, str(run), "--out", str(out), "--num-processes", str(ranks), *options]


def _embed(run: Path, out: Path, ranks: int) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(_command(run, out, ranks), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageError(f"pipeline.embed failed: {done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told | {"wall_s": time.perf_counter() - began}


def _killed(run: Path, out: Path, shards: int) -> tuple[float, int]:
    """Seconds of the command that goes on behind a kill, and the shards that it wrote."""
    process = subprocess.Popen(_command(run, out, 2), stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list((out / "commits").glob("0*.json"))) < max(shards // 2, 1):
        time.sleep(0.005)
    if process.poll() is not None:
        raise StorageError("pipeline.embed was done before it could be killed; take more --samples")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told = _embed(run, out, 2)
    return told["wall_s"], told["shards_written"]


def _files(out: Path) -> dict[str, str]:
    """Digests of all but the root, whose attributes name the command."""
    paths = [path for path in out.rglob("*") if path.is_file() and path != out / "zarr.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _xarray(out: Path) -> tuple[float, bool]:
    """Seconds that xarray takes to open and read all embeddings, and whether they are what zarr reads."""
    import xarray
    import zarr

    began = time.perf_counter()
    with xarray.open_zarr(str(out)) as data:
        values = data["embedding"].values
    seconds = time.perf_counter() - began
    return seconds, bool((values == zarr.open_group(str(out), mode="r")["embedding"][:]).all())


if __name__ == "__main__":
    run_command(main)
