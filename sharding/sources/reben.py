"""BigEarthNet v2.0 (reBEN): the published tree of folders, or the LMDB that rico-hdl makes of it.

    ROOT/BigEarthNet-S2/<tile>/<S2 patch>/<S2 patch>_B01.tif …      any whole resolution groups of bands
    ROOT/BigEarthNet-S1/<scene>/<S1 patch>/<S1 patch>_VV.tif _VH.tif
    ROOT/Reference_Maps/<tile>/<S2 patch>/<S2 patch>_reference_map.tif      optional
    ROOT/metadata.parquet, metadata_for_patches_with_snow_cloud_or_shadow.parquet

or ROOT/<any>/data.mdb, or ROOT/data.mdb, with the tables (Parquet, or ConfigILM's patch_id_*_mapping.csv) beside the
LMDB's folder or in it.
"""

import functools

import pyarrow as pa

from sharding.errors import ConfigError, DataError
from sharding.sources.base import Sample, Source, SourceFile, SourceOptions
from sharding.sources.bigearthnet import require_level, sample_of
from sharding.sources.labels import LABELS_19
from sharding.sources.listing import Listing, Pair
from sharding.sources.reben_listing import SOURCE, listing_of_store
from sharding.sources.reben_lmdb import DATA, LmdbStore
from sharding.sources.reben_metadata import read_metadata
from sharding.sources.reben_store import S1_FOLDER, S2_FOLDER, PatchStore, TreeStore
from sharding.sources.tree import Tree


class ReBEN(Source):
    """Both forms; a pair's key is its S2 patch. Which S1 patch belongs to it, the table says."""

    name = SOURCE
    version = "2.0"
    arrays: tuple[str, ...] = ("s1", "s2_10m", "s2_20m", "s2_60m", "reference_map")
    vocabulary = LABELS_19

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        require_level(self)
        self.tree = Tree(root)

    @functools.cached_property
    def store(self) -> PatchStore:
        """The tree or the LMDB, whichever is there."""
        folders = self.tree.folders()
        if S2_FOLDER in folders:
            if S1_FOLDER not in folders:
                raise ConfigError(f"{self.root} has {S2_FOLDER} and no {S1_FOLDER}; fetch the S1 half")
            return TreeStore(self.tree)
        for folder in ("", *folders):
            if self.tree.file(f"{folder}/{DATA}" if folder else DATA):
                return LmdbStore(self.tree, folder)
        for folder in folders:
            if folder.startswith(f"{S2_FOLDER}-") and folder.endswith("%"):
                raise ConfigError(
                    f"{self.root} has {folder}, the part of reBEN that is in Copernicus-Bench: all bands of a patch in "
                    "one GeoTIFF, resampled to 10 m; write a pairs.csv of them and give it to --source folder"
                )
        if "BigEarthNet-v1.0" in folders or f"{S2_FOLDER}-v1.0" in folders:
            raise ConfigError(f"{self.root} holds BigEarthNet v1.0; give it to --source bigearthnet-v1")
        raise ConfigError(f"{self.root} has neither {S2_FOLDER}/ nor an LMDB ({DATA}); give --root the folder of reBEN")

    def list(self) -> Listing:
        """Every pair that is there by its row of the table."""
        self.tree.require()
        listing = listing_of_store(self._metadata(), self.store, self.root)
        if not self.store.has_maps:
            self.arrays = tuple(name for name in self.arrays if name != "reference_map")
        return listing

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The bands that are there, of which only whole resolutions may be missing, and the reference map."""
        return self.store.files(pair.s2, pair.s1, with_map=self.options.riders)

    def read(self, pair: Pair) -> Sample:
        """The bands of both halves as they are stored, and the reference map where there is one."""
        return sample_of(
            self,
            pair,
            self.store.read(pair.s2, pair.s1),
            labels=pair.labels,
            attributes={"s1_name": pair.s1, **pair.attributes},
            reference_map=self.store.reference_map(pair.s2) if self.options.riders else None,
        )

    def _metadata(self) -> pa.Table:
        folders: list[tuple[Tree, str]] = [(self.tree, "")]
        if self.store.folder:
            folders.append((self.tree, self.store.folder))
        elif "/" in self.root.rstrip("/"):
            folders.append((Tree(self.root.rstrip("/").rpartition("/")[0] or "/"), ""))
        for tree, folder in folders:
            rows = read_metadata(tree, folder)
            if rows is not None:
                return rows
        raise DataError(
            f"{self.root} has no metadata.parquet (nor patch_id_*_mapping.csv), which says what S1 patch belongs to "
            "what S2 patch; fetch it from where the pixels came from"
        )
