"""BigEarthNet-MM v1.0 as it is published: two folders of patches, one GeoTIFF a band, one JSON a patch.

    ROOT/BigEarthNet-v1.0/<S2 patch>/<S2 patch>_B01.tif … _labels_metadata.json
    ROOT/BigEarthNet-S1-v1.0/<S1 patch>/<S1 patch>_VV.tif _VH.tif _labels_metadata.json

and the lists of `sharding.sources.bigearthnet_v1_lists`. S2 names lack the tile, so that they do not tell their S1
partner: the lists do, and else the JSON of each S1 patch does.
"""

import functools
from typing import Any, Final

from sharding.errors import ConfigError
from sharding.sources.base import (
    METADATA,
    MISSING_BAND,
    MISSING_HALF,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.bigearthnet import require_level, sample_of
from sharding.sources.bigearthnet_v1_listing import PARTNER, SOURCE, Folders, listing_of_folders, read_json
from sharding.sources.bigearthnet_v1_lists import read_lists
from sharding.sources.labels import LABELS_19, to_19
from sharding.sources.listing import Listing, Pair
from sharding.sources.names import BANDS_12
from sharding.sources.raster import read_raster
from sharding.sources.tree import Tree

S2_FOLDERS: Final = ("BigEarthNet-v1.0", "BigEarthNet-S2-v1.0", "BigEarthNet-S2-Example")
S1_FOLDERS: Final = ("BigEarthNet-S1-v1.0", "BigEarthNet-S1-Example")


class BigEarthNetV1(Source):
    """The published folders; a pair's key is its S2 patch. Labels are in the JSONs, so the listing has none."""

    name = SOURCE
    version = "1.0"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m")
    vocabulary = LABELS_19

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        require_level(self)
        self.tree = Tree(root)

    @functools.cached_property
    def folders(self) -> Folders:
        """Where the halves lie."""
        present = self.tree.folders()
        if "BigEarthNet-S2" in present:
            raise ConfigError(f"{self.root} holds BigEarthNet v2.0; give it to --source reben")
        s1, s2 = ([name for name in names if name in present] for names in (S1_FOLDERS, S2_FOLDERS))
        for found, names in ((s1, S1_FOLDERS), (s2, S2_FOLDERS)):
            if not found:
                raise ConfigError(
                    f"{self.root} has no folder {' or '.join(names)}; give --root the folder that holds both halves of "
                    "BigEarthNet-MM v1.0"
                )
        return Folders(tree=self.tree, s1=s1[0], s2=s2[0])

    def list(self) -> Listing:
        """Pairs by the lists, and by the JSON of S1 patches that no list has."""
        self.tree.require()
        lists = read_lists(self.tree, (self.folders.s1, self.folders.s2))
        return listing_of_folders(self.folders, lists)

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """The JSON of the S1 half and the bands of both."""
        s1, s2 = self._path(pair.s1), self._path(pair.s2)
        s1_files, s2_files = self.tree.files(s1), self.tree.files(s2)
        for half, path, files in (("S1", s1, s1_files), ("S2", s2, s2_files)):
            if not files:
                raise PairError(MISSING_HALF, path, f"the {half} half of {pair.key} is missing; fetch it")
        json_path = self.folders.json_path(pair.s1)
        record = s1_files.get(json_path.rpartition("/")[2])
        if record is None:
            raise PairError(METADATA, json_path, "the file is missing; fetch it again")
        return record, *_required(s1, s1_files, ("VV", "VH")), *_required(s2, s2_files, BANDS_12)

    def read(self, pair: Pair) -> Sample:
        """The 12 bands of S2 and VV, VH; labels from the JSON of the S1 half."""
        labels, labels_43 = self._labels(pair)
        rasters = {
            band: read_raster(self.tree, f"{self._path(patch)}/{patch}_{band}.tif", (band,))
            for patch, bands in ((pair.s1, ("VV", "VH")), (pair.s2, BANDS_12))
            for band in bands
        }
        attributes = {"s1_name": pair.s1, "labels_43": labels_43, **pair.attributes}
        return sample_of(self, pair, rasters, labels=labels, attributes=attributes)

    def _path(self, patch: str) -> str:
        return f"{self.folders.s1 if patch.startswith('S1') else self.folders.s2}/{patch}"

    def _labels(self, pair: Pair) -> tuple[tuple[str, ...], Any]:
        """The labels of the 19 and those of the 43."""
        path = self.folders.json_path(pair.s1)
        record = read_json(self.tree, path)
        if record.get(PARTNER) != pair.s2:
            message = f"it names {record.get(PARTNER)} as its S2 patch, the lists name {pair.s2}; fetch both again"
            raise PairError(METADATA, path, message)
        labels = record.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise PairError(METADATA, path, "it has no list of labels; fetch it again")
        try:
            return to_19(labels), labels
        except KeyError as error:
            message = f"the label {error} is in no nomenclature of BigEarthNet"
            raise PairError(METADATA, path, message) from error


def _required(folder: str, files: dict[str, SourceFile], bands: tuple[str, ...]) -> tuple[SourceFile, ...]:
    name = folder.rpartition("/")[2]
    missing = [band for band in bands if f"{name}_{band}.tif" not in files]
    if missing:
        path = f"{folder}/{name}_{missing[0]}.tif"
        raise PairError(MISSING_BAND, path, f"{', '.join(missing)} missing in {folder}; fetch the patch again")
    return tuple(files[f"{name}_{band}.tif"] for band in bands)
