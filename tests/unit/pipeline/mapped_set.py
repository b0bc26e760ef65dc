"""A small data set with rasters that ride along, in whose pixels is something to be learnt."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sharding.manifest import MANIFEST_NAME, ArraySpec, Manifest, SourceSpec, dump_manifest
from sharding.sources.base import Sample, StoredArray
from sharding.statistics import band_statistics
from tests.unit.pipeline.small_shards import BANDS_L2A, LABELS, array_specs, write_shard

PIXELS, BLOCK = 16, 4
FIELD, FOREST, SEA, NO_CLASS, NOT_MEASURED = 211, 312, 523, 999, 0
"""Codes of the reference map; `SEA` is in the test split alone."""
SPLITS = {"train": 40, "val": 16, "test": 16}
RIDERS = (
    ArraySpec(name="dem", bands=("DEM",), dtype="float32", height=PIXELS, width=PIXELS, gsd_m=10, units="m"),
    ArraySpec(
        name="reference_map", bands=("CLC",), dtype="uint16", height=PIXELS, width=PIXELS, gsd_m=10, units="class",
        nodata=NOT_MEASURED,
    ),
)  # fmt: skip


def make_mapped_set(
    root: Path,
    *,
    splits: Mapping[str, int] = SPLITS,
    riders: tuple[ArraySpec, ...] = RIDERS,
    shuffled_maps: bool = False,
    same_in_val_and_test: bool = False,
) -> str:
    """Pairs of two kinds of land in blocks of `BLOCK` pixels, which every band tells apart.

    A sample's label says which kind covers more of it, its elevation is 100 times the share of forest, and its map has
    the kinds' codes. Sample 3 has no label, sample 5 no S1, sample 7 no riders, and a corner of each map no class.
    With `shuffled_maps` the maps say nothing of the pixels.
    """
    known = (*array_specs(PIXELS, "float32"), *riders)
    shards, statistics, number = [], {}, 0
    for split, count in splits.items():
        draws = np.random.default_rng(7 if same_in_val_and_test and split in ("val", "test") else number)
        samples = []
        for _ in range(count):
            samples.append(_sample(number, known, draws, split, shuffled_maps))
            number += 1
        spec, counted = write_shard(root, split, known, "lz4", samples)
        shards.append(replace(spec, split=split))
        if split == "train":
            statistics = {band: band_statistics(moments) for band, moments in counted.items()}
    manifest = Manifest(
        arrays=known,
        shards=tuple(shards),
        labels=LABELS,
        statistics={"train": statistics},
        sources=(SourceSpec(name="synthetic", version="1", samples=number, levels=("L2A",)),),
        codec="lz4",
    )
    (root / MANIFEST_NAME).write_bytes(dump_manifest(manifest))
    return str(root)


def _sample(number: int, known, draws: np.random.Generator, split: str, shuffled_maps: bool) -> Sample:
    blocks = draws.random((PIXELS // BLOCK, PIXELS // BLOCK)) < draws.uniform(0.1, 0.9)
    forest = np.kron(blocks, np.ones((BLOCK, BLOCK))).astype(bool)
    arrays = {}
    for spec in known:
        bands = tuple(band for band in spec.bands if band in BANDS_L2A or spec.units in ("m", "class"))
        if (number == 5 and spec.name == "s1") or (number == 7 and spec.units in ("m", "class")):
            continue
        step = PIXELS // spec.height
        kind = forest[::step, ::step]
        shape = (len(bands), *kind.shape)
        if spec.name == "dem":
            pixels = np.full(shape, 100 * forest.mean())
        elif spec.name == "reference_map":
            pixels = np.where(draws.random(kind.shape) < 0.5 if shuffled_maps else kind, FOREST, FIELD)[None]
            pixels[0, 0, :2] = NO_CLASS, NOT_MEASURED
            if split == "test":
                pixels[0, -1, -1] = SEA
        else:
            low, high, noise = (-16, -8, 1) if spec.name == "s1" else (1000, 3000, 200)
            pixels = np.where(kind, high, low) + draws.normal(0, noise, shape)
        arrays[spec.name] = StoredArray(
            data=pixels.astype(spec.dtype), bands=bands, units=spec.units, gsd_m=spec.gsd_m, nodata=spec.nodata
        )
    labels = () if number == 3 else (LABELS[int(forest.mean() > 0.5)],)
    return Sample(
        key=f"pair-{number:04d}", source="synthetic", arrays=arrays, crs="", level="L2A", dates={}, labels=labels
    )
