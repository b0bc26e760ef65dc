"""Patches of one place and day in two archives are found, whatever their keys."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.duplicates import Places, days_of, find_duplicates

M = 1 / 111_320.0


def by_pairs(places: Places, tolerance_m: float) -> list[bool]:
    """The definition, pair by pair: earlier sources first, and what is left out hides nothing."""
    repeated = [False] * len(places.lon)
    for i in np.lexsort((np.arange(len(places.lon)), places.source)):
        for j in range(len(places.lon)):
            if repeated[j] or places.source[j] >= places.source[i] or places.day[i] != places.day[j]:
                continue
            north = (places.lat[i] - places.lat[j]) / M
            east = (places.lon[i] - places.lon[j]) / M * np.cos(np.radians(places.lat[i]))
            if places.day[i] >= 0 and np.hypot(north, east) <= tolerance_m:
                repeated[i] = True
    return repeated


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([0.0, 47.0, 65.0, -33.9]))
def test_what_is_found_is_what_comparing_all_with_all_finds(seed, count, latitude):
    rng = np.random.default_rng(seed)
    # On a lattice of 1.2 km, jittered by less than the tolerance or by more, never near it.
    jitter = rng.choice([0.0, 40.0, 500.0], (2, count)) * M
    places = Places(
        source=rng.integers(0, 3, count),
        lon=20 + (rng.integers(0, 4, count) * 1200 * M + jitter[0]) / np.cos(np.radians(latitude)),
        lat=latitude + rng.integers(0, 4, count) * 1200 * M + jitter[1],
        day=rng.integers(-1, 2, count),
    )
    assert find_duplicates(places, 120.0).tolist() == by_pairs(places, 120.0)


def test_patches_whose_place_is_unknown_are_no_duplicates():
    places = Places(
        source=np.array([0, 1]), lon=np.full(2, np.nan), lat=np.full(2, np.nan), day=np.array([17_000, 17_000])
    )
    assert not find_duplicates(places, 120.0).any()


def test_one_source_has_no_duplicates_of_its_own():
    places = Places(source=np.zeros(2, int), lon=np.full(2, 10.0), lat=np.full(2, 50.0), day=np.full(2, 17_000))
    assert not find_duplicates(places, 120.0).any()


def test_days_of_dates_times_and_nonsense():
    dates = pa.chunked_array([["1970-01-02", "2017-06-13T10:10:31", "", None, "summer", "2017-13-45"]])
    assert days_of(dates).tolist() == [1, 17330, -1, -1, -1, -1]
