"""BigEarthNet v2.0 (reBEN): the published tree of folders, or the LMDB that rico-hdl makes of it.

    ROOT/BigEarthNet-S2/<tile>/<S2 patch>/<S2 patch>_B01.tif …      any whole resolution groups of bands
    ROOT/BigEarthNet-S1/<scene>/<S1 patch>/<S1 patch>_VV.tif _VH.tif
    ROOT/metadata.parquet, metadata_for_patches_with_snow_cloud_or_shadow.parquet

or ROOT/<any>/data.mdb, or ROOT/data.mdb, with the tables (Parquet, or ConfigILM's patch_id_*_mapping.csv) beside the
LMDB's folder or in it.
"""

from typing import Any

from sharding.bands import ARRAY_BANDS, MODALITY_ARRAYS
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
)
from sharding.sources.labels import LABELS_19, to_19
from sharding.sources.names import PATCH_PIXELS, parse_s1, parse_s2_v2, patch_corner
from sharding.sources.reben_metadata import Row, read_metadata
from sharding.sources.reben_store import LmdbStore, PatchStore, TreeStore
from sharding.sources.tree import Tree

_BAND_BYTES = {"s1": 57_600, "s2_10m": 28_800, "s2_20m": 7_200, "s2_60m": 800}


class ReBEN(Source):
    """Both forms; a pair's key is its S2 patch. Which S1 patch belongs to it, the table says."""

    name = "reben"
    version = "2.0"
    vocabulary = LABELS_19

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.tree = Tree(root)
        self._store: PatchStore | None = None

    @property
    def store(self) -> PatchStore:
        """The tree or the LMDB, whichever is there."""
        if self._store is None:
            self._store = self._open()
        return self._store

    def list(self) -> Listing:
        """Every S2 patch that is there with its row of the table; halves without a partner are refused."""
        self.tree.require()
        rows = self._metadata()
        s2_patches = self.store.s2_patches()
        s1_left = set(self.store.s1_patches())
        listing = Listing(pairs=[], has_splits=any(row.split for row in rows.values()))
        for key in s2_patches:
            row = rows.get(key)
            if row is not None:
                s1_left.discard(row.s1_name)
            try:
                listing.pairs.append(self._pair(key, row))
            except PairError as error:
                listing.refused.append(_refusal(key, error))
        by_s1 = {row.s1_name: key for key, row in rows.items()} if s1_left else {}
        for s1 in sorted(s1_left):
            wanted = f"its S2 half {by_s1[s1]} is missing" if s1 in by_s1 else "the metadata has no row for it"
            orphan = PairError(MISSING_HALF, self.store.s1_path(s1), f"{wanted}; fetch it or remove this one")
            listing.refused.append(_refusal(by_s1.get(s1, s1), orphan))
        listing.pairs.sort(key=lambda pair: pair.key)
        absent = len(rows.keys() - set(s2_patches))
        if absent:
            listing.notes.append(f"{absent} of {len(rows)} patches of the metadata have no pixels in {self.root}")
        return listing

    def read(self, pair: Pair) -> Sample:
        """The bands of both halves as they are stored."""
        rasters = self.store.read(pair)
        arrays = arrays_of(rasters, s1_units="dB", pixels_10m=PATCH_PIXELS)
        s1, s2 = parse_s1(pair.s1), parse_s2_v2(pair.key)
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
        """From the patch's name."""
        name = parse_s2_v2(pair.key)
        assert name is not None
        crs, left, top = patch_corner(name)
        return crs, left + 600.0, top - 600.0

    def _open(self) -> PatchStore:
        if "BigEarthNet-S2" in (folders := self.tree.folders()):
            if "BigEarthNet-S1" not in folders:
                raise ConfigError(f"{self.root} has BigEarthNet-S2 and no BigEarthNet-S1; fetch the S1 half")
            return TreeStore(self.tree)
        for folder in ("", *folders):
            if "data.mdb" in self.tree.files(folder):
                return LmdbStore(self.tree, folder)
        raise ConfigError(
            f"{self.root} has neither BigEarthNet-S2/ nor an LMDB (data.mdb); give --root the folder of reBEN"
        )

    def _metadata(self) -> dict[str, Row]:
        folders: list[tuple[Tree, str]] = [(self.tree, ""), (self.tree, self.store.folder)]
        if not self.store.folder and "/" in self.root.rstrip("/"):
            folders.append((Tree(self.root.rstrip("/").rpartition("/")[0] or "/"), ""))
        for tree, folder in folders:
            rows = read_metadata(tree, folder)
            if rows is not None:
                return rows
        raise DataError(
            f"{self.root} has no metadata.parquet (nor patch_id_*_mapping.csv), which says what S1 patch belongs to "
            "what S2 patch; fetch it from where the pixels came from"
        )

    def _pair(self, key: str, row: Row | None) -> Pair:
        path = self.store.s2_path(key)
        name = parse_s2_v2(key)
        if name is None:
            raise PairError(METADATA, path, f"'{key}' is no name of a patch of BigEarthNet v2.0")
        if row is None:
            raise PairError(METADATA, path, "the metadata has no row for it, so its S1 half is unknown")
        s1_name = parse_s1(row.s1_name)
        if s1_name is None or s1_name.place != name.place:
            raise PairError(METADATA, path, f"the metadata pairs it with '{row.s1_name}', which is another place")
        bands, files = self.store.contents(key, row.s1_name)
        s2_bands = _whole_groups(key, path, bands)
        try:
            labels = to_19(row.labels)
        except KeyError as error:
            raise PairError(METADATA, path, f"its label {error} is not in the nomenclature of BigEarthNet") from error
        stored = ("VV", "VH", *s2_bands)
        attributes: dict[str, Any] = {"s1_name": row.s1_name, **row.attributes}
        return Pair(
            key=key,
            source=self.name,
            s1=row.s1_name,
            s2=key,
            bands=stored,
            files=files,
            num_bytes=sum(_BAND_BYTES[a] for a, names in ARRAY_BANDS.items() for band in names if band in stored),
            split=row.split,
            labels=labels,
            attributes=tuple(attributes.items()),
        )


def _whole_groups(key: str, path: str, bands: tuple[str, ...]) -> tuple[str, ...]:
    """The S2 bands in storage order: an archive may leave out whole resolutions, within one all must be there."""
    present = []
    for array in MODALITY_ARRAYS["s2"]:
        order = [band for band in ARRAY_BANDS[array] if band != "B10"]
        missing = [band for band in order if band not in bands]
        if missing and len(missing) < len(order):
            file = f"{path}/{key}_{missing[0]}.tif"
            message = f"{', '.join(missing)} missing beside the others of {array}; fetch the patch again"
            raise PairError(MISSING_BAND, file, message)
        present += [] if missing else order
    if not present:
        raise PairError(MISSING_BAND, path, "it holds no band; fetch the patch again")
    return tuple(present)


def _refusal(key: str, error: PairError) -> Refusal:
    return Refusal(key=key, source=ReBEN.name, reason=error.reason, file=error.file, message=error.message)
