"""Run folders as a report reads them, made by hand."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from sharding.bands import ARRAY_BANDS, ARRAY_GSD_M
from sharding.manifest import (
    ArraySpec,
    BandStatistics,
    Manifest,
    ShardSpec,
    SourceSpec,
    dump_manifest,
)
from sharding.shard_index import ShardIndex, dump_index, record_dtype

LABELS = ("Arable land", "Inland waters", "Pastures <&>")
SIZES = {"train": 20, "validation": 6, "test": 8}


def make_data_set(folder: Path) -> None:
    """A manifest and indexes, as many as the report reads; the shards themselves are not there."""
    draws = np.random.default_rng(0)
    arrays = tuple(ARRAY_BANDS)
    shards = []
    (folder / "index").mkdir(parents=True)
    for split, samples in SIZES.items():
        records = np.zeros(samples, record_dtype(len(arrays), 8))
        records["labels"] = draws.integers(1, 8, samples)
        records["lon"] = np.where(draws.random(samples) < 0.3, 24.2, 15.5) + draws.normal(0, 0.1, samples)
        records["lat"] = np.where(records["lon"] > 20, 62.0, 48.1) + draws.normal(0, 0.05, samples)
        index = dump_index(ShardIndex(arrays=arrays, records=records))
        (folder / "index" / f"{split}.idx").write_bytes(index)
        shards.append(
            ShardSpec(
                path=f"shards/{split}.tar",
                split=split,
                samples=samples,
                tar_samples=samples,
                num_bytes=201_000 * samples,
                sha256="0" * 64,
                index_path=f"index/{split}.idx",
                index_bytes=len(index),
                index_sha256="0" * 64,
                metadata_path=f"metadata/{split}.jsonl",
                metadata_bytes=0,
                metadata_sha256="0" * 64,
            )
        )
    specs = tuple(
        ArraySpec(
            name=name,
            bands=bands,
            dtype="float32" if name == "s1" else "uint16",
            height=1200 // ARRAY_GSD_M[name],
            width=1200 // ARRAY_GSD_M[name],
            gsd_m=ARRAY_GSD_M[name],
            units="dB" if name == "s1" else "DN",
        )
        for name, bands in ARRAY_BANDS.items()
    )
    statistics = {
        band: BandStatistics(
            count=288_000, mean=-12.6, std=5.0, minimum=-40.0, maximum=11.0, nodata=0, percentiles={"50": -12.5}
        )
        for spec in specs
        for band in spec.bands
        if band != "B10"
    }
    source = SourceSpec(name="reben", version="2", samples=sum(SIZES.values()), levels=("L2A",))
    manifest = Manifest(
        arrays=specs,
        shards=tuple(shards),
        labels=LABELS,
        statistics={"train": statistics},
        sources=(source,),
        codec="lz4",
    )
    (folder / "manifest.json").write_bytes(dump_manifest(manifest))


def make_run(folder: Path) -> Path:
    """A run that was killed after step 66 and resumed from step 60."""
    make_data_set(folder / "dataset")
    run = folder / "run"
    (run / "evaluation").mkdir(parents=True)
    (run / "config.yaml").write_text(
        f"data: {{url: {folder}/dataset}}\ntrain: {{steps: 120}}\nrun: {{dir: {run}}}\n"
        "model: {encoder_fusion: xae, decoder_fusion: xad}\n"
    )
    (run / "environment.json").write_text(
        json.dumps({"packages": {"torch": "2.13.0"}, "parameters": 2_345_678, "train_flops_per_sample": 64_400_000_000})
    )
    draws = np.random.default_rng(1)
    with (run / "metrics.jsonl").open("w") as metrics:
        for step in range(1, 121):
            s1, s2 = (0.9 * np.exp(-step / scale) + 0.35 + draws.normal(0, 0.02) for scale in (50, 30))
            line = {"step": step, "samples": 16 * step, "loss": s1 + s2, "loss_s1": s1, "loss_s2": s2}
            speed = {"samples_per_s": 90 + draws.normal(0, 4), "mfu": None, "memory_gib": 0.8}
            wait = {"data_wait_s": abs(draws.normal(0, 0.002)), "step_s": 0.17}
            metrics.write(json.dumps(line | speed | wait) + "\n")
    make_events(run / "events-rank00000.jsonl", ("start", 0), ("checkpoint", 60), ("resume", 60), ("done", 120))
    return run


def make_events(path: Path, *events: tuple[str, int], first_s: float = 0.0) -> None:
    began = datetime(2026, 3, 1, tzinfo=UTC)
    with path.open("w") as file:
        for number, (name, step) in enumerate(events):
            time = (began + timedelta(seconds=first_s + 10 * number)).isoformat()
            event = {"time": time, "event": name, "step": step}
            file.write(json.dumps(event | ({"from_step": step} if name == "resume" else {})) + "\n")


def add_evaluations(run: Path) -> None:
    losses = {"s1": 0.5, "s2": 0.4, "total": 0.9}
    measured = {
        "samples": 20,
        "model": losses,
        "shuffled": losses | {"total": 1.4},
        "band_mean": losses | {"total": 2.0},
    }
    (run / "evaluation" / "reconstruction.json").write_text(
        json.dumps({"step": 120, "seed": 0, "modalities": ["s1", "s2"], "splits": {"train": measured}})
    )
    scores = {"micro": 0.61, "macro": 0.52, "per_class": {}}
    rows = [{"modalities": name, "encoder": scores, "colour_statistics": scores} for name in ("s1", "s2", "s1+s2")]
    split = {"samples": 20, "without_labels": 1, "without_a_modality": 0}
    (run / "evaluation" / "linear.json").write_text(
        json.dumps(
            {
                "step": 120,
                "splits": {"train": split | {"split": "train"}, "test": split | {"split": "test"}},
                "classes_without_positives": ["Inland waters"],
                "prevalence": scores,
                "results": rows,
            }
        )
    )
    draws = np.random.default_rng(2)
    panels = [
        {"name": "s1", "title": "Sentinel-1 VV", "bands": ["VV"], "units": "dB"},
        {"name": "s2", "title": "Sentinel-2 true colour", "bands": ["B04", "B03", "B02"], "units": "DN"},
    ]
    arrays = {"keys": np.array(["pair_a", "pair_b"]), "panels": np.array(json.dumps(panels))}
    for name, bands in (("s1", 1), ("s2", 3)):
        arrays[f"{name}.input"] = draws.normal(-12, 4, (2, bands, 24, 24)).astype(np.float32)
        arrays[f"{name}.reconstruction"] = arrays[f"{name}.input"] * 0.9
        arrays[f"{name}.hidden"] = draws.random((2, 3, 3)) < 0.75
    np.savez_compressed(run / "evaluation" / "reconstructions.npz", **arrays)


BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def time_line(attempt: str, at_s: float, step: int, wall_s: float, **parts: float) -> dict:
    """A line of a rank's times, `at_s` seconds after the run began; what is no part is by its own name."""
    own = {key: parts.pop(key) for key in ("read_bytes", "skipped") if key in parts}
    line = {"time": (BEGAN + timedelta(seconds=at_s)).isoformat(timespec="milliseconds"), "attempt": attempt}
    line |= {"step": step, "wall_s": wall_s, "parts": parts, "device": "host", "read_bytes": 0, "skipped": 0}
    return line | own


def write_times(run: Path, *lines: dict, rank: int = 0) -> Path:
    path = run / f"time-rank{rank:05d}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def add_times(run: Path) -> None:
    """Times of two ranks of `make_run`: killed after step 66, resumed from step 60, with one second a step."""
    for rank in (0, 1):
        lines = []
        for name, begun_s, first, last in (("first", 0, 0, 66), ("second", 80, 60, 120)):
            for step in range(first, last + 1, 6):
                done = step - first
                parts = {"start": 4.0, "data": 0.1 * done * (1 + rank), "forward": 0.3 * done, "backward": 0.4 * done}
                line = time_line(name, begun_s + 5 + done, step, 5.0 + done, **parts, read_bytes=1_000_000 * done)
                lines.append(line)
        write_times(run, *lines, rank=rank)


def add_probes(run: Path) -> None:
    scores = {"knn_map_macro": 0.3, "ridge_map_macro": 0.32, "knn_map_micro": 0.4, "ridge_map_micro": 0.44}
    with (run / "probe.jsonl").open("w") as file:
        for step in range(20, 121, 20):
            line = {"step": step} | {key: value + step / 1000 for key, value in scores.items()}
            file.write(json.dumps(line | {"seconds": 1.9, "train": 100, "test": 43}) + "\n")


def add_reconstructions(run: Path, steps: range) -> None:
    """The pictures of `add_evaluations` at each of the steps."""
    (run / "reconstructions").mkdir()
    for step in steps:
        pictures = (run / "evaluation" / "reconstructions.npz").read_bytes()
        (run / "reconstructions" / f"step-{step:08d}.npz").write_bytes(pictures)
