"""Statistics gathered sample by sample are those of all pixels at once, however the parts are merged."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.errors import DataError
from sharding.manifest import parse_manifest
from sharding.moments import CLASS, PERCENTILES, Moments
from sharding.sources.base import Sample, StoredArray
from sharding.statistics import Accumulator, band_statistics, dump_statistics, merge, parse_statistics

KINDS = {
    "uint16": ("s2_10m", "DN", np.uint16, 1.0, None),
    "uint16 with nodata": ("s2_10m", "DN", np.uint16, 1.0, 0.0),
    "float32 dB": ("s1", "dB", np.float32, 1.0, None),
    "float32 dB with nodata": ("s1", "dB", np.float32, 1.0, -9999.0),
    "float16 dB": ("s1", "dB", np.float16, 1.0, None),
    "scaled int16": ("s1", "dB", np.int16, 0.005, -32768.0),
    "scaled int32": ("s1", "dB", np.int32, 1e-4, 0.0),
    "linear": ("s1", "linear", np.float32, 1.0, 0.0),
    "reflectance": ("s2_10m", "reflectance", np.float32, 1.0, None),
    "elevation": ("dem", "m", np.float32, 1.0, None),
    "classes": ("lulc", "class", np.uint8, 1.0, None),
}


def stored(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers as a source of this kind stores them, some without data."""
    _, units, dtype, scale, nodata = KINDS[kind]
    values = {
        "DN": lambda: rng.gamma(2.0, 700.0, shape),
        "dB": lambda: rng.normal(-14.0, 5.0, shape) / scale,
        "linear": lambda: 10 ** rng.normal(-1.4, 0.5, shape),
        "reflectance": lambda: rng.gamma(2.0, 0.07, shape),
        "m": lambda: rng.normal(300.0, 200.0, shape),
        "class": lambda: rng.integers(0, 11, shape),
    }[units]()
    if np.dtype(dtype).kind in "iu":
        values = np.clip(np.rint(values), np.iinfo(dtype).min + 1, np.iinfo(dtype).max)
    data = values.astype(dtype)
    if nodata is not None:
        data[rng.random(shape) < 0.1] = nodata
    return data


def samples_of(kind: str, seed: int, count: int = 6, offsets: tuple[float, ...] = (0.0,)) -> list[Sample]:
    name, units, _, scale, nodata = KINDS[kind]
    bands = {"s1": ("VV", "VH"), "s2_10m": ("B02", "B03"), "dem": ("DEM",), "lulc": ("LULC",)}[name]
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        array = StoredArray(
            data=stored(kind, rng, (len(bands), 24, 24)),
            bands=bands,
            units=units,
            gsd_m=10,
            scale=scale,
            nodata=nodata,
            radiometric_offset=offsets[i % len(offsets)],
        )
        samples.append(Sample(key=str(i), source="x", arrays={name: array}, crs="", level="L2A", dates={}))
    return samples


def values_of(samples: list[Sample], band: str) -> tuple[np.ndarray, int]:
    """All values of a band that were measured, in float64, and how many pixels were not."""
    found, missing = [], 0
    for sample in samples:
        [array] = sample.arrays.values()
        plane = array.data[array.bands.index(band)]
        kept = np.ones(plane.shape, bool) if array.nodata is None else plane != array.nodata
        missing += int((~kept).sum())
        found.append((plane[kept].astype(np.float64) + array.radiometric_offset) * array.scale)
    return np.concatenate(found), missing


def counted(samples: list[Sample]) -> dict[str, Moments]:
    accumulator = Accumulator()
    for sample in samples:
        accumulator.add(sample)
    return accumulator.result()


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_two_passes_over_all_pixels(kind):
    samples = samples_of(kind, 1, offsets=(0.0, -1000.0) if "uint16" in kind else (0.0,))
    for band, moments in counted(samples).items():
        values, missing = values_of(samples, band)
        told = band_statistics(moments)
        assert (told.count, told.nodata) == (values.size, missing)
        assert np.isclose(told.mean, values.mean(), rtol=1e-11, atol=1e-11)
        assert np.isclose(told.std, values.std(), rtol=1e-10, atol=1e-11)
        assert np.isclose(told.minimum, values.min(), rtol=1e-11)
        assert np.isclose(told.maximum, values.max(), rtol=1e-11)
        assert sum(count for _, count in moments.histogram) == values.size


@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_right_to_a_bin(kind):
    samples = samples_of(kind, 2)
    for band, moments in counted(samples).items():
        values, _ = values_of(samples, band)
        told = band_statistics(moments).percentiles
        assert list(told) == list(PERCENTILES)
        for name, value in told.items():
            if moments.bins_of == CLASS:
                assert value == np.percentile(values, float(name), method="inverted_cdf")
            elif moments.bins_of == "dB":
                exact = np.percentile(values, float(name))
                assert abs(10 * np.log10(value / exact)) < 3 * moments.bin_width
            else:
                assert abs(value - np.percentile(values, float(name))) <= 1.01 * moments.bin_width


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(KINDS)), st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_whoever_counts_what_the_merged_figures_are_the_same(kind, seed, owner):
    samples = samples_of(kind, seed)
    parts = [counted([s for s, o in zip(samples, owner, strict=True) if o == part]) for part in range(4)]
    merged, whole = merge(parts), counted(samples)
    assert merged.keys() == whole.keys()
    for band in whole:
        a, b = merged[band], whole[band]
        assert (a.count, a.nodata, a.minimum, a.maximum, a.histogram) == (
            b.count, b.nodata, b.minimum, b.maximum, b.histogram,
        )  # fmt: skip
        assert np.isclose(a.mean, b.mean, rtol=1e-12, atol=1e-12)
        assert np.isclose(a.m2, b.m2, rtol=1e-10, atol=1e-9)


def test_a_mean_far_from_zero_costs_no_precision():
    rng = np.random.default_rng(0)
    data = (30_000 + rng.normal(0, 0.01, (1, 64, 64))).astype(np.float32)
    array = StoredArray(data=data, bands=("DEM",), units="m", gsd_m=10)
    sample = Sample(key="k", source="x", arrays={"dem": array}, crs="", level="L2A", dates={})
    told = band_statistics(counted([sample, sample])["DEM"])
    assert np.isclose(told.std, data.astype(np.float64).std(), rtol=1e-6)


def test_numbers_that_are_not_finite_are_no_data():
    data = np.array([[[1.0, np.nan], [np.inf, 3.0]]], np.float32)
    array = StoredArray(data=data, bands=("DEM",), units="m", gsd_m=10)
    told = counted([Sample(key="k", source="x", arrays={"dem": array}, crs="", level="L2A", dates={})])["DEM"]
    assert (told.count, told.nodata, told.mean, told.minimum, told.maximum) == (2, 2, 2.0, 1.0, 3.0)


def test_a_band_without_any_data_has_no_figures():
    [sample] = samples_of("uint16 with nodata", 0, count=1)
    [array] = sample.arrays.values()
    empty = replace(sample, arrays={"s2_10m": replace(array, data=np.zeros_like(array.data))})
    moments = counted([empty])["B02"]
    told = band_statistics(moments)
    assert (told.count, told.nodata, told.mean, told.percentiles) == (0, 576, 0.0, {})
    content = dump_statistics({"train": {"B02": moments}})
    assert parse_statistics(content, "s")["train"]["B02"].nodata == 576


def test_nothing_added_changes_nothing():
    some = counted(samples_of("uint16", 0))["B02"]
    assert Moments() + some == some + Moments() == some


def test_bands_in_other_units_are_not_merged():
    a, b = counted(samples_of("float32 dB", 0))["VV"], counted(samples_of("linear", 0))["VV"]
    with pytest.raises(DataError, match="its values are not in the same units"):
        a + b


def test_what_is_written_is_read_again():
    statistics = {"train": counted(samples_of("uint16", 3)), "all": counted(samples_of("float32 dB", 3))}
    content = dump_statistics(statistics)
    again = parse_statistics(content, "statistics")
    assert dump_statistics(again) == content
    for split, bands in statistics.items():
        for band, moments in bands.items():
            assert again[split][band].histogram == moments.histogram
            assert np.isclose(again[split][band].mean, moments.mean, rtol=1e-11)


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"schema":"other","splits":{}}', b"[]"])
def test_a_damaged_file_of_statistics_is_told_by_name(content):
    with pytest.raises(DataError, match=r"^statistics-000001\.json is "):
        parse_statistics(content, "statistics-000001.json")


def test_a_histogram_cut_short_is_told(tmp_path):
    raw = json.loads(dump_statistics({"train": counted(samples_of("uint16", 3))}))
    del raw["splits"]["train"]["B02"]["histogram"][0][1]
    with pytest.raises(DataError, match="is damaged"):
        parse_statistics(json.dumps(raw).encode(), "s")


def test_the_manifest_has_numpys_figures_of_each_split(dataset, v1, reben):
    manifest = parse_manifest((dataset / "manifest.json").read_bytes(), "manifest")
    patches = (*v1.patches, *reben.patches)
    assert set(manifest.statistics) == {"train", "val", "test", "all"}
    for split, bands in manifest.statistics.items():
        own = [patch for patch in patches if split in (patch.split, "all")]
        assert set(bands) == {band for patch in own for band in patch.pixels}
        for band, told in bands.items():
            pixels = np.concatenate([p.pixels[band].ravel() for p in own if band in p.pixels]).astype(np.float64)
            assert told.count == pixels.size
            assert np.isclose(told.mean, pixels.mean(), rtol=1e-10)
            assert np.isclose(told.std, pixels.std(), rtol=1e-10)
            assert (told.minimum, told.maximum) == (float(f"{pixels.min():.12g}"), float(f"{pixels.max():.12g}"))
    full = parse_statistics((dataset / manifest.statistics_path).read_bytes(), "statistics")
    assert {split: set(bands) for split, bands in full.items()} == {
        split: set(bands) for split, bands in manifest.statistics.items()
    }


def test_the_manifest_counts_labels_by_split(dataset, v1, reben):
    manifest = parse_manifest((dataset / "manifest.json").read_bytes(), "manifest")
    for split, counts in manifest.label_counts.items():
        own = [patch for patch in (*v1.patches, *reben.patches) if patch.split == split]
        assert counts == {label: sum(label in patch.labels for patch in own) for patch in own for label in patch.labels}
