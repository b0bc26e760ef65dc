"""SEN12MS as it is published: a folder a season and, in it, three a scene.

    ROOT/ROIs1158_spring/s1_<scene>/ROIs1158_spring_s1_<scene>_p<n>.tif     VV, VH in dB
    ROOT/ROIs1158_spring/s2_<scene>/ROIs1158_spring_s2_<scene>_p<n>.tif     13 bands of level 1C, all at 10 m
    ROOT/ROIs1158_spring/lc_<scene>/ROIs1158_spring_lc_<scene>_p<n>.tif     land cover in four schemes; may be absent
    ROOT/train_list.txt, test_list.txt, SEN12MS_holdOutScenes.txt, IGBP_probability_labels.pkl; or in ROOT/splits/

A scene has the labels of all classes that cover a tenth of it, and the attribute `dominant_label` names the largest.

Splits: with the lists a patch is in train, in test or in neither; without them the scenes held out are test and all
others train. Names tell the season, not the day.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa

from sharding.bands import S1_BANDS, S2_BANDS
from sharding.errors import ConfigError, DataError
from sharding.sources.assemble import Radiometry, arrays_of, rider, split_bands
from sharding.sources.base import (
    KNOWN_BROKEN,
    MISSING_HALF,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.listing import Listing, Pair, Refusal, table_of
from sharding.sources.raster import read_grid, read_raster
from sharding.sources.sen12ms_labels import CLASSES, SceneLabels, parse_labels
from sharding.sources.tree import Tree

PIXELS: Final = 256
LAND_COVER: Final = ("IGBP", "LCCS_LC", "LCCS_LU", "LCCS_HYDRO")
HALVES: Final = ("s1", "s2", "lc")
S2_ORDER: Final = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""Of the bands in a file, which is the spectral order."""
_SEASON: Final = re.compile(r"ROIs\d{4}_(?P<season>spring|summer|fall|winter)")
_SCENE: Final = re.compile(r"(?P<half>s1|s2|lc)_(?P<scene>\d+)")
_PATCH: Final = re.compile(r"(?P<rois>ROIs\d{4}_[a-z]+)_(?P<half>s1|s2|lc)_(?P<scene>\d+)_(?P<patch>p\d+)\.tif")
_BROKEN: Final = re.compile(r"ROIs1868_summer_146_p202")
"""Its S1 has NaN, as the authors' README says."""
_LISTS: Final = {"train": "train_list.txt", "test": "test_list.txt"}
_HELD_OUT: Final = "SEN12MS_holdOutScenes.txt"
_ATTRIBUTES: Final = ("season", "scene", "land_cover", "dominant_label")
_LABELS: Final = "IGBP_probability_labels.pkl"


class SEN12MS(Source):
    """The published folders; a pair's key is a patch's name without its half: `ROIs1158_spring_63_p100`."""

    name = "sen12ms"
    version = "1.0"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", "land_cover")
    vocabulary = CLASSES

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        if self.options.s2_level not in ("", "L1C"):
            raise ConfigError(f"SEN12MS has S2 of level L1C only, --s2-level is {self.options.s2_level}")
        self.tree = Tree(root)
        assert S2_ORDER == S2_BANDS

    def list(self) -> Listing:
        """Patches by their names; one whose other half is missing, and the one known to be broken, are refused."""
        self.tree.require()
        seasons = [name for name in self.tree.folders() if _SEASON.fullmatch(name)]
        if not seasons:
            raise ConfigError(
                f"{self.root} has no folder such as ROIs1158_spring; give --root the folder with SEN12MS's seasons"
            )
        listing = Listing(table=table_of(()))
        splits = self._splits(listing)
        labels = self._labels()
        pairs = self._pairs(seasons, splits, labels, listing)
        listing.table = table_of(pairs, **dict.fromkeys(_ATTRIBUTES, pa.string()))
        listing.has_splits = splits is not None
        without = listing.table["land_cover"].null_count
        if without and self.options.riders:
            listing.notes.append(f"{without} of {len(listing.table)} patches have no land cover")
        return listing

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """One a half."""
        found = []
        for path in self._paths(pair):
            file = self.tree.file(path)
            if file is None:
                raise PairError(MISSING_HALF, path, "the file is missing; fetch it again")
            found.append(file)
        return tuple(found)

    def read(self, pair: Pair) -> Sample:
        """13 bands of S2, VV and VH, and the land cover; all at 10 m."""
        rasters = {
            **split_bands(read_raster(self.tree, pair.s1, S1_BANDS), S1_BANDS),
            **split_bands(read_raster(self.tree, pair.s2, S2_ORDER), S2_ORDER),
        }
        arrays = arrays_of(rasters, Radiometry())
        attributes = dict(pair.attributes)
        land_cover = attributes.pop("land_cover", None)
        if land_cover and self.options.riders:
            raster = read_raster(self.tree, str(land_cover), LAND_COVER)
            arrays["land_cover"] = rider("land_cover", split_bands(raster, LAND_COVER), units="class")
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=rasters["VV"].grid.crs,
            level="L1C",
            dates={},
            labels=pair.labels,
            split=pair.split,
            attributes={**attributes, "resampled": True},
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the header of S1."""
        return read_grid(self.tree, pair.s1, S1_BANDS).centre

    def _paths(self, pair: Pair) -> tuple[str, ...]:
        land_cover = pair.attributes.get("land_cover") if self.options.riders else None
        return (pair.s1, pair.s2, *((str(land_cover),) if land_cover else ()))

    def _pairs(
        self,
        seasons: Sequence[str],
        splits: dict[str, str] | None,
        labels: dict[str, SceneLabels],
        listing: Listing,
    ) -> Iterator[Pair]:
        for folder in seasons:
            scenes: dict[str, set[str]] = {}
            for name in self.tree.folders(folder):
                found = _SCENE.fullmatch(name)
                if found:
                    scenes.setdefault(found["scene"], set()).add(found["half"])
            for scene in sorted(scenes):
                halves = {half: self._patches(folder, half, scene) for half in HALVES}
                for patch in sorted({*halves["s1"], *halves["s2"]}):
                    try:
                        yield self._pair(folder, scene, patch, halves, splits, labels)
                    except PairError as error:
                        key = f"{folder}_{scene}_{patch}"
                        refusal = Refusal(
                            key=key, source=self.name, reason=error.reason, file=error.file, message=error.message
                        )
                        listing.refused.append(refusal)

    def _patches(self, folder: str, half: str, scene: str) -> dict[str, str]:
        """Path by patch (`p100`) of one half of a scene."""
        inside = f"{folder}/{half}_{scene}"
        found = {}
        for name in self.tree.files(inside):
            named = _PATCH.fullmatch(name)
            if named and (named["rois"], named["half"], named["scene"]) == (folder, half, scene):
                found[named["patch"]] = f"{inside}/{name}"
        return found

    def _pair(
        self,
        folder: str,
        scene: str,
        patch: str,
        halves: dict[str, dict[str, str]],
        splits: dict[str, str] | None,
        labels: dict[str, SceneLabels],
    ) -> Pair:
        key = f"{folder}_{scene}_{patch}"
        for half, other in (("s1", "s2"), ("s2", "s1")):
            if patch not in halves[half]:
                path = f"{folder}/{half}_{scene}/{folder}_{half}_{scene}_{patch}.tif"
                raise PairError(
                    MISSING_HALF, path, f"it is missing beside {halves[other][patch]}; fetch it or remove that"
                )
        if _BROKEN.fullmatch(key):
            raise PairError(KNOWN_BROKEN, halves["s1"][patch], "its S1 is known to have NaN; remove the patch")
        name = f"{folder}_s2_{scene}_{patch}"
        found = _SEASON.fullmatch(folder)
        assert found is not None
        attributes = {"season": found["season"], "scene": scene}
        if patch in halves["lc"]:
            attributes["land_cover"] = halves["lc"][patch]
        scene_labels = labels.get(name)
        if scene_labels is not None:
            attributes["dominant_label"] = scene_labels.dominant
        split = None if splits is None else splits.get(name, splits.get(f"{folder}/s1_{scene}", splits.get("*")))
        return Pair(
            key=key,
            s1=halves["s1"][patch],
            s2=halves["s2"][patch],
            split=split,
            labels=scene_labels.classes if scene_labels is not None else (),
            attributes=attributes,
        )

    def _splits(self, listing: Listing) -> dict[str, str] | None:
        """Split by patch, or else by scene and, under `*`, of all others; None when nothing says any."""
        lists = {split: self._text(name) for split, name in _LISTS.items()}
        held_out = self._text(_HELD_OUT)
        if any(text is not None for text in lists.values()):
            if held_out is not None:
                listing.notes.append(f"{_HELD_OUT} is not used: the lists of patches say the splits")
            # What is in both is not trained on: test comes last.
            return {
                name.strip().removesuffix(".tif"): split
                for split, text in lists.items()
                for name in (text or "").splitlines()
                if name.strip()
            }
        if held_out is None:
            return None
        return {"*": "train", **{scene.strip(): "test" for scene in held_out.splitlines() if scene.strip()}}

    def _labels(self) -> dict[str, SceneLabels]:
        path = self._find(_LABELS)
        return {} if path is None else parse_labels(self.tree.read(path), self.tree.store.name(path))

    def _text(self, name: str) -> str | None:
        path = self._find(name)
        if path is None:
            return None
        try:
            return self.tree.read(path).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.tree.store.name(path)} is not text ({error}); fetch it again") from error

    def _find(self, name: str) -> str | None:
        for folder in ("", "splits"):
            if name in self.tree.files(folder):
                return f"{folder}/{name}" if folder else name
        return None
