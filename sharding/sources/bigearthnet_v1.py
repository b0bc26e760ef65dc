"""BigEarthNet-MM v1.0 as it is published: two folders of patches, one GeoTIFF a band, one JSON a patch.

    ROOT/BigEarthNet-v1.0/<S2 patch>/<S2 patch>_B01.tif … _labels_metadata.json
    ROOT/BigEarthNet-S1-v1.0/<S1 patch>/<S1 patch>_VV.tif _VH.tif _labels_metadata.json
    ROOT/splits/{train,val,test}.csv  or beside the folders, or bigearthnet-train.csv …, also as .csv.bz2

The JSON of an S1 patch names its S2 patch; nothing else does, for S2 names lack the tile.
"""

import bz2
import json
from typing import Any, Final

from sharding.errors import ConfigError, DataError
from sharding.sources.assemble import arrays_of
from sharding.sources.base import (
    METADATA,
    MISSING_BAND,
    MISSING_HALF,
    Listing,
    Pair,
    PairError,
    Refusal,
    Sample,
    Source,
    SourceFile,
)
from sharding.sources.labels import LABELS_19, to_19
from sharding.sources.names import BANDS_12, PATCH_PIXELS, parse_s1, parse_s2_v1
from sharding.sources.raster import read_raster
from sharding.sources.tree import Tree

S2_FOLDERS: Final = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2-Example")
S1_FOLDERS: Final = ("BigEarthNet-S1-v1.0", "BigEarthNet-S1-Example")
SPLITS: Final = ("train", "val", "test")
JSON_SUFFIX: Final = "_labels_metadata.json"
_BYTES: Final = 275_200


class BigEarthNetV1(Source):
    """The published folders; a pair's key is its S2 patch."""

    name = "bigearthnet-v1"
    version = "1.0"
    vocabulary = LABELS_19

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.tree = Tree(root)

    def list(self) -> Listing:
        """Pairs by the S1 patches' JSON; a patch without its partner is refused."""
        self.tree.require()
        s1_folder, s2_folder = self._folder(S1_FOLDERS), self._folder(S2_FOLDERS)
        splits, listed_twice = self._splits()
        s2_left = set(self.tree.folders(s2_folder))
        taken: set[str] = set()
        listing = Listing(pairs=[], has_splits=bool(splits))
        for name in self.tree.folders(s1_folder):
            key, s1 = name, f"{s1_folder}/{name}"
            try:
                record = self._json(f"{s1}/{name}{JSON_SUFFIX}")
                key = _partner(record, f"{s1}/{name}{JSON_SUFFIX}", taken)
                s2_left.discard(key)
                listing.pairs.append(self._pair(key, s1, f"{s2_folder}/{key}", record, splits))
            except PairError as error:
                listing.refused.append(_refusal(key, error))
        for key in sorted(s2_left):
            message = f"no patch in {s1_folder} names it; fetch its S1 half or remove it"
            listing.refused.append(_refusal(key, PairError(MISSING_HALF, f"{s2_folder}/{key}", message)))
        listing.pairs.sort(key=lambda pair: pair.key)
        absent = len(splits.keys() - {pair.key for pair in listing.pairs})
        if absent:
            listing.notes.append(f"{absent} patches of the split files are not in {self.root}")
        if listed_twice:
            listing.notes.append(
                f"{len(listed_twice)} patches are in two split files; train counts before val and test"
            )
        return listing

    def read(self, pair: Pair) -> Sample:
        """The 12 bands of S2 and VV, VH."""
        rasters = {}
        for band in pair.bands:
            folder = pair.s1 if band in ("VV", "VH") else pair.s2
            rasters[band] = read_raster(self.tree, f"{folder}/{folder.rpartition('/')[2]}_{band}.tif", (band,))
        arrays = arrays_of(rasters, s1_units="dB", pixels_10m=PATCH_PIXELS)
        s1, s2 = parse_s1(pair.s1.rpartition("/")[2]), parse_s2_v1(pair.key)
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=rasters["VV"].grid.crs,
            level="L2A",
            dates={name: patch.date for name, patch in (("s1", s1), ("s2", s2)) if patch},
            labels=pair.labels,
            split=pair.split,
            attributes=dict(pair.attributes),
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the JSON of the S2 patch."""
        path = f"{pair.s2}/{pair.key}{JSON_SUFFIX}"
        record = self._json(path)
        try:
            corner = record["coordinates"]
            # The published S1 records say `lly` where they mean `lry`; those of S2 are right.
            bottom = corner["lry"] if "lry" in corner else corner["lly"]
            return (
                str(record["projection"]),
                (float(corner["ulx"]) + float(corner["lrx"])) / 2,
                (float(corner["uly"]) + float(bottom)) / 2,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PairError(METADATA, path, f"it has no usable coordinates ({error!r}); fetch it again") from error

    def _folder(self, names: tuple[str, ...]) -> str:
        present = self.tree.folders()
        for name in names:
            if name in present:
                return name
        raise ConfigError(
            f"{self.root} has no folder {' or '.join(names)}; give --root the folder that holds both halves of "
            "BigEarthNet-MM v1.0"
        )

    def _splits(self) -> tuple[dict[str, str], set[str]]:
        """Split by S2 patch, and the patches that are in two; a CSV's first column has S2 names."""
        splits: dict[str, str] = {}
        twice = set()
        for split in SPLITS:
            for folder, name in (
                (folder, prefix + split + suffix)
                for folder in ("splits", "")
                for prefix in ("", "bigearthnet-")
                for suffix in (".csv", ".csv.bz2")
            ):
                if name not in self.tree.files(folder):
                    continue
                path = f"{folder}/{name}" if folder else name
                content = self.tree.read(path)
                try:
                    text = (bz2.decompress(content) if name.endswith(".bz2") else content).decode()
                except (OSError, ValueError) as error:
                    raise DataError(f"{self.tree.store.name(path)} cannot be read ({error}); fetch it again") from error
                for line in text.splitlines():
                    patch = line.partition(",")[0].strip()
                    if parse_s2_v1(patch):
                        if splits.setdefault(patch, split) != split:
                            twice.add(patch)
                break
        return splits, twice

    def _pair(self, key: str, s1: str, s2: str, record: dict[str, Any], splits: dict[str, str]) -> Pair:
        name = s1.rpartition("/")[2]
        s1_files, s2_files = self.tree.files(s1), self.tree.files(s2)
        if not s2_files:
            raise PairError(MISSING_HALF, s2, f"the S2 half of {name} is missing; fetch it or remove {s1}")
        files = _required(s1, s1_files, ("VV", "VH")) + _required(s2, s2_files, BANDS_12)
        labels = record.get("labels") or []
        try:
            mapped = to_19(labels)
        except (KeyError, TypeError) as error:
            path = f"{s1}/{name}{JSON_SUFFIX}"
            raise PairError(METADATA, path, f"the label {error} is in no nomenclature of BigEarthNet") from error
        return Pair(
            key=key,
            source=self.name,
            s1=s1,
            s2=s2,
            bands=("VV", "VH", *BANDS_12),
            files=(s1_files[f"{name}{JSON_SUFFIX}"], *files),
            num_bytes=_BYTES,
            split=splits.get(key),
            labels=mapped,
            attributes=(("s1_name", name), ("labels_43", tuple(labels))),
        )

    def _json(self, path: str) -> dict[str, Any]:
        try:
            record = json.loads(self.tree.read(path))
        except (ValueError, DataError) as error:
            raise PairError(METADATA, path, f"it cannot be read as JSON: {error}; fetch it again") from error
        if not isinstance(record, dict):
            raise PairError(METADATA, path, "it is no JSON object; fetch it again")
        return record


def _partner(record: dict[str, Any], path: str, taken: set[str]) -> str:
    key = record.get("corresponding_s2_patch")
    if not isinstance(key, str) or not parse_s2_v1(key):
        raise PairError(METADATA, path, "it names no corresponding_s2_patch; fetch it again")
    if key in taken:
        raise PairError(METADATA, path, f"it names {key}, which another S1 patch has already")
    taken.add(key)
    return key


def _required(folder: str, files: dict[str, SourceFile], bands: tuple[str, ...]) -> tuple[SourceFile, ...]:
    name = folder.rpartition("/")[2]
    missing = [band for band in bands if f"{name}_{band}.tif" not in files]
    if missing:
        path = f"{folder}/{name}_{missing[0]}.tif"
        raise PairError(MISSING_BAND, path, f"{', '.join(missing)} missing in {folder}; fetch the patch again")
    return tuple(files[f"{name}_{band}.tif"] for band in bands)


def _refusal(key: str, error: PairError) -> Refusal:
    return Refusal(key=key, source=BigEarthNetV1.name, reason=error.reason, file=error.file, message=error.message)
