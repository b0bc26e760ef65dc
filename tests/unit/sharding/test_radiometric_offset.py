"""What pixels prove of the +1000 of baseline 04.00: made-up tiles, and five real ones whose state is known."""

import numpy as np
import pytest
import rasterio

from sharding.sources.radiometric_offset import judge_l1c, judge_l2a, judge_l2a_beside
from sharding.sources.tar_members import scan_tar
from sharding.sources.terramesh_tile import decode_tile
from sharding.sources.tree import Tree
from tests.unit.sharding.conftest import SHARED
from tests.unit.sharding.terramesh_archive import L1C, L2A

TIFS, TARS = SHARED / "terramesh_examples", SHARED.parent / "layouts" / "constructed_terramesh"
SIDE = 64


def scene(seed: int = 0, low: float = 1000, high: float = 2600) -> dict[str, np.ndarray]:
    """Reflectance * 10000 at the top of the atmosphere of a clear scene without the offset."""
    rng = np.random.default_rng(seed)
    planes = {band: rng.uniform(low, high, (SIDE, SIDE)) for band in L1C}
    return {**planes, "B10": rng.normal(15, 3, (SIDE, SIDE)).clip(1)}


def stored(planes: dict[str, np.ndarray], offset: int) -> dict[str, np.ndarray]:
    return {band: (plane + offset).round().astype(np.int16) for band, plane in planes.items()}


def at_the_ground(planes: dict[str, np.ndarray], noise: float = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {band: (1.12 * planes[band] - 70 + rng.normal(0, noise, (SIDE, SIDE))).clip(1) for band in L2A}


@pytest.mark.parametrize(("added", "expected"), [(0, 0.0), (1000, -1000.0)])
def test_clear_cirrus_band_tells_the_offset_of_l1c(added, expected):
    verdict = judge_l1c(stored(scene(), added))
    assert verdict.offset == expected
    assert verdict.evidence.startswith(f"B10 median {added + 15}, first quarter ")


@pytest.mark.parametrize(("added", "expected"), [(0, 0.0), (1000, -1000.0)])
def test_cirrus_over_half_of_the_tile_does_not_hide_it(added, expected):
    planes = scene()
    planes["B10"][: SIDE // 2] += np.linspace(0, 2500, SIDE)
    assert judge_l1c(stored(planes, added)).offset == expected


@pytest.mark.parametrize(
    "cirrus",
    [
        np.random.default_rng(1).normal(1100, 120, (SIDE, SIDE)),  # thick cirrus without the offset, or thin with it
        np.full((SIDE, SIDE), 950.0),
        np.full((SIDE, SIDE), 2015.0),  # the offset added twice
        np.zeros((SIDE, SIDE)),
    ],
)
def test_a_cirrus_band_that_fits_neither_proves_nothing(cirrus):
    planes = stored({**scene(), "B10": cirrus}, 0)
    assert judge_l1c(planes).offset is None


def test_dark_water_below_thick_cirrus_proves_that_l1c_has_none():
    planes = scene(low=300, high=800)
    planes["B10"] = np.random.default_rng(1).normal(1500, 200, (SIDE, SIDE))
    verdict = judge_l1c(stored(planes, 0))
    assert (verdict.offset, verdict.evidence[:4]) == (0.0, "B11 ")


def test_a_few_dark_pixels_prove_nothing():
    planes = stored({**scene(), "B10": np.full((SIDE, SIDE), 1400.0)}, 0)
    planes["B11"][:3] = 5  # less than 5 %
    assert judge_l1c(planes).offset is None


def test_nodata_is_not_taken_for_darkness():
    planes = stored(scene(), 1000)
    for plane in planes.values():
        plane[: SIDE // 2] = 0
    assert judge_l1c(planes).offset == -1000.0
    assert judge_l2a({band: planes[band] for band in L2A}).offset is None


@pytest.mark.parametrize("l1c_added", [0, 1000])
@pytest.mark.parametrize(("l2a_added", "expected"), [(0, 0.0), (1000, -1000.0)])
@pytest.mark.parametrize(("low", "high"), [(1000, 2600), (20, 60), (800, 6000)])
def test_the_line_over_l1c_tells_the_offset_of_l2a(l1c_added, l2a_added, expected, low, high):
    planes = scene(low=low, high=high)
    ground = at_the_ground(planes)
    verdict = judge_l2a_beside(stored(ground, l2a_added), stored(planes, l1c_added))
    assert verdict.offset == expected
    assert ("with the offset" in verdict.evidence) == bool(l1c_added)


def test_uniform_water_needs_no_line():
    planes = scene(low=40, high=41)
    water = {band: np.full((SIDE, SIDE), 12.0) for band in L2A}
    assert judge_l2a_beside(stored(water, 1000), stored(planes, 1000)).offset == -1000.0
    assert judge_l2a_beside(stored(water, 1000), stored(planes, 0)).offset == -1000.0


def test_a_bright_scene_without_a_good_line_proves_nothing():
    planes = scene(low=3000, high=5000)
    ground = at_the_ground(planes, noise=900)
    assert judge_l2a_beside(stored(ground, 0), stored(planes, 0)).offset is None


def test_another_scene_proves_nothing():
    verdict = judge_l2a_beside(stored(at_the_ground(scene(4)), 0), stored(scene(5), 0))
    assert verdict.offset is None


def test_an_unclear_l1c_proves_nothing_of_l2a():
    planes = scene()
    below = stored({**planes, "B10": np.full((SIDE, SIDE), 950.0)}, 0)
    verdict = judge_l2a_beside(stored(at_the_ground(planes), 0), below)
    assert verdict.offset is None
    assert verdict.evidence.startswith("L1C unclear: B10 median 950")


def test_bands_that_contradict_each_other_prove_nothing():
    planes = scene()
    ground = stored(at_the_ground(planes), 0)
    ground["B12"] += 1000
    assert judge_l2a_beside(ground, stored(planes, 0)).offset is None


@pytest.mark.parametrize(("low", "added", "expected"), [(60, 0, 0.0), (60, 1000, None), (1000, 0, None)])
def test_l2a_alone_is_judged_by_what_is_dark(low, added, expected):
    ground = at_the_ground(scene(low=low, high=low + 800))
    assert judge_l2a(stored(ground, added)).offset == expected


REAL = {
    "282D_485L_3_3": (-1000.0, 0.0, 0.0),
    "38D_378R_2_3": (0.0, None, 0.0),
    "433D_629L_3_1": (-1000.0, None, -1000.0),
    "609U_541L_3_0": (-1000.0, 0.0, 0.0),
    "637U_59R_1_3": (0.0, 0.0, 0.0),
}
"""Tile -> L1C, L2A alone, L2A beside L1C."""


def real_planes(tile: str, modality: str) -> dict[str, np.ndarray]:
    tif = TIFS / modality / f"{tile}.tif"
    if tif.exists():
        with rasterio.open(tif) as file:
            return dict(zip(L1C if modality == "S2L1C" else L2A, file.read(), strict=True))
    tar = f"val/{modality}/majortom_shard_000001.tar"
    offset, size = scan_tar(Tree(str(TARS)), tar)[0][f"{tile}.zarr.zip"]
    content = (TARS / tar).read_bytes()[offset : offset + size]
    return {band: raster.data[0] for band, raster in decode_tile(content, tar, modality).rasters.items()}


@pytest.mark.skipif(not TIFS.exists() or not TARS.exists(), reason="needs ../shared/data and ../shared/layouts")
@pytest.mark.parametrize("tile", REAL)
def test_the_state_of_real_tiles_is_found(tile):
    l1c, l2a = real_planes(tile, "S2L1C"), real_planes(tile, "S2L2A")
    assert (judge_l1c(l1c).offset, judge_l2a(l2a).offset, judge_l2a_beside(l2a, l1c).offset) == REAL[tile]


@pytest.mark.skipif(not TIFS.exists() or not TARS.exists(), reason="needs ../shared/data and ../shared/layouts")
@pytest.mark.parametrize("tile", REAL)
def test_real_tiles_moved_by_the_offset_are_judged_the_other_way(tile):
    planes = {modality: real_planes(tile, modality) for modality in ("S2L1C", "S2L2A")}
    l1c, _, l2a = REAL[tile]
    moved = {}
    for modality, offset in (("S2L1C", l1c), ("S2L2A", l2a)):
        shift = 1000 if offset == 0 else -1000
        moved[modality] = {band: (plane + shift).clip(1) for band, plane in planes[modality].items()}
    assert judge_l1c(moved["S2L1C"]).offset == -1000 - l1c
    assert judge_l2a_beside(planes["S2L2A"], moved["S2L1C"]).offset == l2a
    assert judge_l2a_beside(moved["S2L2A"], planes["S2L1C"]).offset == -1000 - l2a
    assert judge_l2a_beside(moved["S2L2A"], moved["S2L1C"]).offset == -1000 - l2a
    # On its own, level 2A with the offset is never taken for one without.
    with_offset = planes["S2L2A"] if l2a else moved["S2L2A"]
    assert judge_l2a(with_offset).offset is None
