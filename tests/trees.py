"""Small archives in the official layouts, with smooth pixels in plausible ranges, for tests that need real files.

Each `make_*` returns what it wrote, so that a test can compare pixel for pixel.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

BANDS_10M = ("B02", "B03", "B04", "B08")
BANDS_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
BANDS_13 = (*BANDS_12[:10], "B10", *BANDS_12[10:])
SIDES = {"B01": 20, "B09": 20, **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60)}
MEANS = {
    "VV": -12.6, "VH": -19.3, "B01": 340, "B02": 430, "B03": 614, "B04": 590, "B05": 950, "B06": 1792, "B07": 2075,
    "B08": 2219, "B8A": 2266, "B09": 2246, "B11": 1594, "B12": 1009,
}  # fmt: skip
LABELS_43 = ("Non-irrigated arable land", "Pastures", "Coniferous forest", "Water bodies", "Bare rock")
LABELS_19 = ("Arable land", "Pastures", "Coniferous forest", "Inland waters", None)
TILE, CRS, WEST, NORTH = "33UUP", "EPSG:32633", 300_000, 5_400_000
DATE_S1, DATE_S2 = "20170613T165043", "20170613T101031"


@dataclass
class Patch:
    """A pair as it was written."""

    key: str
    s1_name: str
    s1_path: Path
    s2_path: Path
    pixels: dict[str, np.ndarray]
    """By band, (height, width)."""
    split: str
    labels: tuple[str, ...]
    """Of the 19 classes."""
    column: int
    row: int
    reference_map: np.ndarray | None = None
    """Codes of CORINE, where one was written."""

    @property
    def corner(self) -> tuple[int, int]:
        return WEST + 1200 * self.column, NORTH - 1200 * self.row


def smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    """A field between about -1 and 1 that varies slowly, with a little noise."""
    coarse = rng.uniform(-1, 1, (7, 7))
    at = np.linspace(0, 6, side)
    rows = np.stack([np.interp(at, range(7), coarse[:, i]) for i in range(7)], axis=1)
    field = np.stack([np.interp(at, range(7), rows[i]) for i in range(side)])
    return field + rng.normal(0, 0.05, (side, side))


def pixels_of(band: str, rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
    """One band of a scene (120x120), as the satellite stores it."""
    side = SIDES.get(band, 120)
    step = 120 // side
    field = 0.7 * scene[::step, ::step] + 0.3 * smooth(rng, side)
    if band in ("VV", "VH"):
        return (MEANS[band] + 4 * field).astype(np.float32)
    return np.clip(MEANS[band] * (1 + 0.6 * field), 1, 16_000).astype(np.uint16)


def write_tif(
    path: Path, data: np.ndarray, corner: tuple[float, float], crs: str | None = CRS, gsd: float = 10, **extra
):
    """A GeoTIFF of one band (2-d) or several (3-d); `descriptions` names them."""
    descriptions = extra.pop("descriptions", None)
    data = data if data.ndim == 3 else data[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"crs": crs, "transform": Affine(gsd, 0, corner[0], 0, -gsd, corner[1])} if crs else {}
    shape = {"count": data.shape[0], "height": data.shape[1], "width": data.shape[2]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a file without coordinates is meant to be so
        with rasterio.open(path, "w", driver="GTiff", dtype=data.dtype, **shape, **place, **extra) as file:
            file.write(data)
            if descriptions:
                file.descriptions = descriptions


def _patches(num_pairs: int, seed: int, few_bands: int, version: int) -> list[Patch]:
    patches = []
    for i in range(num_pairs):
        rng = np.random.default_rng((seed, i))
        column, row = 3 + i % 80, (2 if version == 1 else 22) + i // 80  # elsewhere, else they would be duplicates
        scene = smooth(rng, 120)
        bands = BANDS_10M if i >= num_pairs - few_bands else BANDS_12
        key = f"S2A_MSIL2A_{DATE_S2}_{column}_{row}"
        if version == 2:
            key = f"S2A_MSIL2A_{DATE_S2}_N9999_R022_T{TILE}_{column:02d}_{row:02d}"
        chosen = sorted({i % 5, (i * 3 + 1) % 5})
        patches.append(
            Patch(
                key=key,
                s1_name=f"S1A_IW_GRDH_1SDV_{DATE_S1}_{TILE}_{column}_{row}",
                s1_path=Path(),
                s2_path=Path(),
                pixels={band: pixels_of(band, rng, scene) for band in ("VV", "VH", *bands)},
                split="val" if i % 5 == 3 else "test" if i % 5 == 4 else "train",
                labels=tuple(LABELS_19[c] for c in chosen if LABELS_19[c]),
                column=column,
                row=row,
            )
        )
    return patches


def _write_bands(folder: Path, name: str, patch: Patch, bands: tuple[str, ...]) -> None:
    for band in bands:
        gsd = 1200 // patch.pixels[band].shape[0]
        write_tif(folder / f"{name}_{band}.tif", patch.pixels[band], patch.corner, gsd=gsd)


def make_bigearthnet_v1(root: Path, num_pairs: int = 6, seed: int = 0) -> list[Patch]:
    """BigEarthNet-MM v1.0: two folders of patches with their JSONs, and splits/*.csv (3 train, 1 val, 1 test of 5)."""
    patches = _patches(num_pairs, seed, 0, version=1)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, patch in enumerate(patches):
        patch.s1_path = root / "BigEarthNet-S1-v1.0" / patch.s1_name
        patch.s2_path = root / "BigEarthNet-v1.0" / patch.key
        _write_bands(patch.s1_path, patch.s1_name, patch, ("VV", "VH"))
        _write_bands(patch.s2_path, patch.key, patch, BANDS_12)
        left, top = patch.corner
        labels = [LABELS_43[c] for c in sorted({i % 5, (i * 3 + 1) % 5})]
        corners = {"ulx": left, "uly": top, "lrx": left + 1200}
        s1 = {
            "labels": labels,
            "coordinates": {**corners, "lly": top - 1200},  # the published records have this slip of the pen
            "projection": CRS,
            "corresponding_s2_patch": patch.key,
            "scene_source": None,
            "acquisition_time": "2017-06-13T16:50:43",
        }
        s2 = {
            "labels": labels,
            "coordinates": {**corners, "lry": top - 1200},
            "projection": CRS,
            "tile_source": None,
            "acquisition_date": "2017-06-13 10:10:31",
        }
        (patch.s1_path / f"{patch.s1_name}_labels_metadata.json").write_text(json.dumps(s1))
        (patch.s2_path / f"{patch.key}_labels_metadata.json").write_text(json.dumps(s2))
        splits[patch.split].append(f"{patch.key},{patch.s1_name}\n")
    (root / "splits").mkdir()
    for split, lines in splits.items():
        (root / "splits" / f"{split}.csv").write_text("".join(lines))
    return patches


def make_reben(root: Path, num_pairs: int = 6, seed: int = 1, few_bands: int = 0, num_maps: int = 0) -> list[Patch]:
    """BigEarthNet v2.0 as a tree; the last `few_bands` pairs have only B02, B03, B04 and B08.

    The first `num_maps` have a reference map.
    """
    patches = _patches(num_pairs, seed, few_bands, version=2)
    for patch in patches[:num_maps]:
        patch.reference_map = corine_codes(patch)
        folder = root / "Reference_Maps" / patch.key.rsplit("_", 2)[0] / patch.key
        write_tif(folder / f"{patch.key}_reference_map.tif", patch.reference_map, patch.corner)
    for patch in patches:
        patch.s1_path = root / "BigEarthNet-S1" / patch.s1_name.rsplit("_", 3)[0] / patch.s1_name
        patch.s2_path = root / "BigEarthNet-S2" / patch.key.rsplit("_", 2)[0] / patch.key
        _write_bands(patch.s1_path, patch.s1_name, patch, ("VV", "VH"))
        _write_bands(patch.s2_path, patch.key, patch, tuple(b for b in BANDS_12 if b in patch.pixels))
    write_metadata(root, patches)
    return patches


def corine_codes(patch: Patch) -> np.ndarray:
    """A map of land cover of a patch."""
    codes = np.array([112, 211, 231, 311, 312, 512], np.uint16)
    return codes[(np.add.outer(np.arange(120), np.arange(120)) // 20 + patch.column) % len(codes)]


def make_reben_lmdb(
    root: Path, num_pairs: int = 6, seed: int = 1, tables: str = "parquet", num_maps: int = 0
) -> list[Patch]:
    """BigEarthNet v2.0 as rico-hdl encodes it; `tables` is `parquet`, or `csv` for ConfigILM's older form.

    The first `num_maps` have a reference map.
    """
    import lmdb
    from safetensors.numpy import save

    patches = _patches(num_pairs, seed, 0, version=2)
    folder = root / "BigEarthNet-V2-LMDB"
    folder.mkdir(parents=True)
    with (
        lmdb.open(str(folder), map_size=2**26 + num_pairs * 2**20) as environment,
        environment.begin(write=True) as out,
    ):
        for patch in patches:
            patch.s1_path = patch.s2_path = folder
            halves = {patch.s1_name: ("VV", "VH"), patch.key: BANDS_12}
            for name, bands in halves.items():
                out.put(name.encode(), save({band: patch.pixels[band] for band in bands}))
        for patch in patches[:num_maps]:
            patch.reference_map = corine_codes(patch)
            out.put(f"{patch.key}_reference_map".encode(), save({"Data": patch.reference_map}))
    if tables == "parquet":
        write_metadata(root, patches)
    else:
        _write_mappings(root, patches)
    return patches


def write_metadata(root: Path, patches: list[Patch]) -> None:
    """metadata.parquet, with the last patch in the table of snow and clouds, as official rows are in one of the two."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "patch_id": patch.key,
            "labels": list(patch.labels),
            "split": "validation" if patch.split == "val" else patch.split,
            "country": "Austria",
            "s1_name": patch.s1_name,
            "s2v1_name": f"S2A_MSIL2A_{DATE_S2}_{patch.column}_{patch.row}",
            "contains_seasonal_snow": patch is patches[-1],
            "contains_cloud_or_shadow": False,
        }
        for patch in patches
    ]
    pq.write_table(pa.Table.from_pylist(rows[:-1] or rows), root / "metadata.parquet")
    if len(rows) > 1:
        name = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"
        pq.write_table(pa.Table.from_pylist(rows[-1:]), root / name)


def _write_mappings(root: Path, patches: list[Patch]) -> None:
    columns = {
        "label": [(p.key, label) for p in patches for label in p.labels],
        "s1": [(p.key, p.s1_name) for p in patches],
        "split": [(p.key, "validation" if p.split == "val" else p.split) for p in patches],
        "country": [(p.key, "Austria") for p in patches],
    }
    for kind, rows in columns.items():
        header = f"patch_id,{'s1_name' if kind == 's1' else kind}\n"
        quoted = "".join(f'{key},"{value}"\n' for key, value in rows)
        (root / f"patch_id_{kind}_mapping.csv").write_text(header + quoted)


def write_sen12ms_patch(root, season, scene, patch, halves=("s1", "s2", "lc")):
    """The 256-px patches of SEN12MS in its published layout; pixels by band, and the land cover."""
    rng = np.random.default_rng(sum(patch.encode()) + scene)
    corner = (500_000 + 2560 * int(patch[1:]), 5_400_000)
    planes = {
        "s1": np.stack([-12 + 4 * smooth(rng, 256), -19 + 4 * smooth(rng, 256)]).astype(np.float32),
        "s2": np.stack([1500 * (1.1 + smooth(rng, 256)) for _ in BANDS_13]).astype(np.uint16),
        "lc": rng.integers(1, 18, (4, 256, 256)).astype(np.uint8),
    }
    for half in halves:
        path = root / season / f"{half}_{scene}" / f"{season}_{half}_{scene}_{patch}.tif"
        write_tif(path, planes[half], corner, crs="EPSG:32633")
    return dict(zip(("VV", "VH", *BANDS_13), (*planes["s1"], *planes["s2"]), strict=True)), planes["lc"]
