"""Statistics of parts, merged, are those of the whole."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.manifest import parse_manifest
from sharding.sources.base import Sample, StoredArray
from sharding.statistics import Moments, band_statistics, merge, moments_of, sample_moments


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=50), min_size=1, max_size=8),
)
def test_merged_parts_equal_the_whole(parts):
    merged = merge([{"VV": moments_of(np.array(part))} for part in parts])["VV"]
    whole = np.concatenate([np.array(part) for part in parts])
    assert merged.count == whole.size
    assert np.isclose(merged.mean, whole.mean(), rtol=1e-9, atol=1e-8)
    assert np.isclose(merged.m2, np.square(whole - whole.mean()).sum(), rtol=1e-9, atol=1e-5)
    assert (merged.minimum, merged.maximum) == (whole.min(), whole.max())


def test_nothing_added_changes_nothing():
    some = moments_of(np.array([1.0, 5.0]))
    assert Moments() + some == some + Moments() == some


def test_a_large_mean_costs_no_precision():
    values = 1e8 + np.array([1.0, 2.0, 3.0, 4.0])
    merged = moments_of(values[:1]) + moments_of(values[1:])
    assert band_statistics(merged).std == np.std([1.0, 2.0, 3.0, 4.0]).round(11)


def test_values_are_in_units_offset_first():
    array = StoredArray(
        data=np.array([[[1000, 3000]]], np.uint16), bands=("B02",), units="DN", gsd_m=10, scale=0.5,
        radiometric_offset=-1000,
    )  # fmt: skip
    sample = Sample(key="k", source="folder", arrays={"s2_10m": array}, crs="", level="L2A", dates={})
    moments = sample_moments(sample)["B02"]
    assert (moments.mean, moments.minimum, moments.maximum) == (500, 0, 1000)


def test_the_manifest_has_numpys_figures_over_all_pixels_of_train(dataset, v1, reben):
    statistics = parse_manifest((dataset / "manifest.json").read_bytes(), "manifest").statistics
    train = [patch for patch in (*v1.patches, *reben.patches) if patch.split == "train"]
    assert set(statistics) == {band for patch in train for band in patch.pixels}
    for band, told in statistics.items():
        pixels = np.concatenate([p.pixels[band].ravel() for p in train if band in p.pixels]).astype(np.float64)
        assert told.count == pixels.size
        assert np.isclose(told.mean, pixels.mean(), rtol=1e-10)
        assert np.isclose(told.std, pixels.std(), rtol=1e-10)
        assert (told.minimum, told.maximum) == (float(f"{pixels.min():.12g}"), float(f"{pixels.max():.12g}"))
