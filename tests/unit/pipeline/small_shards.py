"""Small data sets of random pixels, written shard by shard with `sharding.writer`, and what tests compare."""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.stream.batch import Batch
from sharding.bands import ARRAY_BANDS, ARRAY_GSD_M, MODALITY_ARRAYS
from sharding.manifest import (
    MANIFEST_NAME,
    ArraySpec,
    Manifest,
    ShardSpec,
    SourceSpec,
    dump_manifest,
    parse_manifest,
)
from sharding.shard_index import dump_index
from sharding.sources.base import Sample, StoredArray
from sharding.statistics import band_statistics, merge
from sharding.writer import ShardWriter

LABELS = ("Pastures", "Inland waters", "Urban fabric")
BANDS_L2A = ("VV", "VH", *(band for name in MODALITY_ARRAYS["s2"] for band in ARRAY_BANDS[name] if band != "B10"))
FEW_BANDS = ("VV", "B02", "B04", "B11")


@dataclass
class Made:
    """A data set on disk and what was put into it."""

    url: str
    manifest: Manifest
    samples: dict[str, Sample] = field(default_factory=dict)
    """By key."""

    @property
    def root(self) -> Path:
        return Path(self.url)

    @property
    def bands(self) -> dict[str, tuple[str, ...]]:
        """By key: the bands that the sample has."""
        return {key: sample.bands for key, sample in self.samples.items()}

    def full(self, key: str, spec: ArraySpec) -> np.ndarray:
        """The planes of every band of the data set, 0 where the sample has none."""
        planes = np.zeros((len(spec.bands), spec.height, spec.width), spec.dtype)
        if stored := self.samples[key].arrays.get(spec.name):
            planes[[spec.bands.index(band) for band in stored.bands]] = stored.data
        return planes


def array_specs(pixels: int, s1_dtype: str) -> tuple[ArraySpec, ...]:
    specs = []
    for name in (array for arrays in MODALITY_ARRAYS.values() for array in arrays):
        gsd = ARRAY_GSD_M[name]
        size = pixels * 10 // gsd
        specs.append(
            ArraySpec(
                name=name,
                bands=tuple(band for band in ARRAY_BANDS[name] if band in BANDS_L2A),
                dtype=s1_dtype if name == "s1" else "uint16",
                height=size,
                width=size,
                gsd_m=gsd,
                units="dB" if name == "s1" else "DN",
            )
        )
    return tuple(specs)


def make(
    root: Path,
    shard_sizes: tuple[int, ...] = (7, 5, 8),
    *,
    codec: str = "lz4",
    pixels: int = 12,
    subset_every: int = 0,
    offset_every: int = 0,
    s1_dtype: str = "float32",
) -> Made:
    """Write a data set: each `subset_every`-th sample has few bands, each `offset_every`-th an offset of -1000."""
    generator = np.random.default_rng(0)
    specs = array_specs(pixels, s1_dtype)
    made = Made(str(root), Manifest(arrays=specs, shards=(), labels=LABELS, statistics={}, sources=(), codec=codec))
    shards, moments = [], []
    for shard, size in enumerate(shard_sizes):
        samples = []
        for number in range(len(made.samples), len(made.samples) + size):
            bands = FEW_BANDS if subset_every and number % subset_every == 1 else BANDS_L2A
            offset = -1000.0 if offset_every and number % offset_every == 0 else 0.0
            sample = random_sample(number, specs, bands, offset, generator)
            made.samples[sample.key] = sample
            samples.append(sample)
        spec, counted = write_shard(root, f"train-{shard:05d}", specs, codec, samples)
        shards.append(spec)
        moments.append(counted)
    statistics = {band: band_statistics(counted) for band, counted in merge(moments).items()}
    source = SourceSpec(name="synthetic", version="1", samples=len(made.samples), levels=("L2A",))
    manifest = replace(made.manifest, shards=tuple(shards), statistics={"train": statistics}, sources=(source,))
    (root / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    made.manifest = parse_manifest((root / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
    return made


def random_sample(
    number: int, specs: Iterable[ArraySpec], bands: tuple[str, ...], offset: float, generator: np.random.Generator
) -> Sample:
    arrays = {}
    for spec in specs:
        own = tuple(band for band in spec.bands if band in bands)
        shape = (len(own), spec.height, spec.width)
        is_s1 = spec.name == "s1"
        pixels = generator.normal(-12, 3, shape) if is_s1 else generator.integers(1000, 4000, shape)
        if own:
            arrays[spec.name] = StoredArray(
                data=pixels.astype(spec.dtype),
                bands=own,
                units=spec.units,
                gsd_m=spec.gsd_m,
                radiometric_offset=0.0 if is_s1 else offset,
            )
    return Sample(
        key=f"pair-{number:04d}",
        source="synthetic",
        arrays=arrays,
        crs="",
        level="L2A",
        dates={},
        labels=(LABELS[number % 3],),
    )


def write_shard(root: Path, name: str, specs, codec: str, samples: list[Sample]):
    path, index_path = f"shards/{name}.tar", f"index/{name}.idx"
    for folder in ("shards", "index", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    arrays = tuple(spec.name for spec in specs)
    with ShardWriter(root / path, arrays=arrays, codec=codec, vocabulary=LABELS) as writer:
        for sample in samples:
            writer.write(sample)
        finished = writer.finish()
    index = dump_index(finished.index)
    (root / index_path).write_bytes(index)
    metadata_path = f"metadata/{name}.jsonl"
    (root / metadata_path).write_bytes(finished.metadata)
    spec = ShardSpec(
        path=path,
        split="train",
        samples=len(samples),
        tar_samples=len(samples),
        num_bytes=finished.num_bytes,
        sha256=finished.sha256,
        index_path=index_path,
        index_bytes=len(index),
        index_sha256=hashlib.sha256(index).hexdigest(),
        metadata_path=metadata_path,
        metadata_bytes=len(finished.metadata),
        metadata_sha256=hashlib.sha256(finished.metadata).hexdigest(),
    )
    return spec, finished.moments


def take(stream, num) -> list[Batch]:
    return [batch.copy() for batch in islice(stream, num)]


def reader_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("reader", "fetch"))]


def assert_equal(a: Batch, b: Batch) -> None:
    assert a.keys == b.keys
    for name in ("sample_id", "epoch", "position", "radiometric_offset", "labels"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    for name in a.arrays:
        assert a.arrays[name].dtype == b.arrays[name].dtype
        assert torch.equal(a.arrays[name], b.arrays[name])
        assert torch.equal(a.present[name], b.present[name])


def join(parts: list[Batch]) -> Batch:
    def cat(pick):
        return torch.cat([pick(part) for part in parts])

    return Batch(
        step=parts[0].step,
        keys=[key for part in parts for key in part.keys],
        sample_id=cat(lambda p: p.sample_id),
        epoch=cat(lambda p: p.epoch),
        position=cat(lambda p: p.position),
        arrays={name: cat(lambda p, n=name: p.arrays[n]) for name in parts[0].arrays},
        present={name: cat(lambda p, n=name: p.present[n]) for name in parts[0].present},
        radiometric_offset=cat(lambda p: p.radiometric_offset),
        labels=cat(lambda p: p.labels),
    )


def damage(path, offset, xor=1):
    content = bytearray(path.read_bytes())
    content[offset] ^= xor
    path.write_bytes(content)
