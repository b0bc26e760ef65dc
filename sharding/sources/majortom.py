"""Major TOM Core, unpacked: a folder a grid cell and, in it, one a product.

    ROOT/S2L2A/<row>/<cell>/<S2 product>/B01.tif … B12.tif, cloud_mask.tif      also S2L1C/
    ROOT/S1RTC/<row>/<cell>/<S1 product>/vv.tif vh.tif                          gamma0, linear power

Rows are such as `433D`, cells `433D_629L` or `629L`; 1068 pixels at 10 m. Which S1 belongs to which S2 the cell and the
dates in the products' names tell. Source: Francis & Czerkawski, Major TOM (2024), and the cards of the data sets.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from sharding.errors import ConfigError
from sharding.sources.assemble import Radiometry, arrays_of, rider
from sharding.sources.band_names import band_name
from sharding.sources.base import (
    DAYS,
    MISSING_BAND,
    MISSING_HALF,
    OFFSET,
    PairError,
    Sample,
    Source,
    SourceFile,
    SourceOptions,
)
from sharding.sources.listing import Listing, Pair, Refusal, table_of
from sharding.sources.nearest import days_apart
from sharding.sources.raster import read_grid, read_raster
from sharding.sources.tree import Tree

S1_FOLDER: Final = "S1RTC"
S2_FOLDERS: Final = {"L2A": "S2L2A", "L1C": "S2L1C"}
S2_BANDS_OF: Final = {
    "L2A": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09"),
    "L1C": ("B02", "B03", "B04", "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09", "B10"),
}
OFFSET_SINCE: Final = 400
"""Processing baseline 04.00 adds 1000 to every number of S2."""
CLOUDS: Final = "cloud_mask.tif"
_S2: Final = re.compile(r"S2[A-D]_MSI(?P<level>L1C|L2A)_(?P<date>\d{8}T\d{6})(?:_N(?P<baseline>\d{4}))?(?:_.*)?")
_S1: Final = re.compile(r"S1[A-D]_[A-Z0-9]{2}_.*?_(?P<date>\d{8}T\d{6})_.*")


class MajorTOM(Source):
    """The published folders; a pair's key is its cell and its S2 product."""

    name = "majortom"
    version = "core"
    arrays = ("s1", "s2_10m", "s2_20m", "s2_60m", "cloud_mask")

    def __init__(self, root: str, options: SourceOptions | None = None) -> None:
        super().__init__(root, options)
        self.tree = Tree(root)

    def list(self) -> Listing:
        """Each S2 product with the S1 product of its cell that is nearest in time; one without any is refused."""
        self.tree.require()
        level = self._level()
        listing = Listing(table=table_of(()))
        listing.table = table_of(self._pairs(level, listing))
        return listing

    def files(self, pair: Pair) -> tuple[SourceFile, ...]:
        """A GeoTIFF a band, and the mask of clouds where there is one."""
        s1, s2 = self._by_band(pair.s1), self._by_band(pair.s2)
        for folder, found, wanted in ((pair.s1, s1, ("VV", "VH")), (pair.s2, s2, S2_BANDS_OF[_level_of(pair)])):
            missing = [band for band in wanted if band not in found]
            if missing:
                raise PairError(MISSING_BAND, folder, f"it holds no {', '.join(missing)}; fetch the product again")
        clouds = self.tree.files(pair.s2).get(CLOUDS) if self.options.riders else None
        return (*s1.values(), *s2.values(), *((clouds,) if clouds else ()))

    def read(self, pair: Pair) -> Sample:
        """All bands of the S2 product at native resolution, VV and VH in linear power."""
        level = _level_of(pair)
        files = {**self._by_band(pair.s1), **self._by_band(pair.s2)}
        rasters = {
            band: read_raster(self.tree, files[band].path, (band,))
            for band in ("VV", "VH", *S2_BANDS_OF[level])
            if band in files
        }
        offset, baseline = _offset(pair)
        # 0 is what both satellites' products have beyond the edge of a swath.
        radiometry = Radiometry(s1_units="linear", s1_nodata=0.0, s2_offset=offset, s2_nodata=0.0)
        arrays = arrays_of(rasters, radiometry)
        clouds = self.tree.files(pair.s2).get(CLOUDS) if self.options.riders else None
        if clouds is not None:
            mask = read_raster(self.tree, clouds.path, ("CLOUD",))
            arrays["cloud_mask"] = rider("cloud_mask", {"CLOUD": mask}, units="class")
        products = {f"{half}_product": path.rpartition("/")[2] for half, path in (("s1", pair.s1), ("s2", pair.s2))}
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=rasters["VV"].grid.crs,
            level=level,
            dates={"s1": pair.s1_date, "s2": pair.s2_date},
            split=pair.split,
            attributes={**products, "grid_cell": _cell_of(pair.s2), "processing_baseline": baseline},
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the header of VV."""
        vv = self._by_band(pair.s1).get("VV")
        if vv is None:
            raise PairError(MISSING_BAND, pair.s1, "it holds no VV; fetch the product again")
        return read_grid(self.tree, vv.path, ("VV",)).centre

    def _level(self) -> str:
        present = self.tree.folders()
        if S1_FOLDER not in present:
            raise ConfigError(
                f"{self.root} has no folder {S1_FOLDER}; give --root the folder that holds it beside S2L2A"
            )
        wanted = (self.options.s2_level,) if self.options.s2_level else tuple(S2_FOLDERS)
        for level in wanted:
            if S2_FOLDERS[level] in present:
                return level
        raise ConfigError(f"{self.root} has no folder {' or '.join(S2_FOLDERS[level] for level in wanted)}")

    def _pairs(self, level: str, listing: Listing) -> Iterator[Pair]:
        s2_folder = S2_FOLDERS[level]
        unused = 0
        for row in sorted({*self.tree.folders(s2_folder), *self.tree.folders(S1_FOLDER)}):
            cells = {*self.tree.folders(f"{s2_folder}/{row}"), *self.tree.folders(f"{S1_FOLDER}/{row}")}
            for cell in sorted(cells):
                s1 = self._products(f"{S1_FOLDER}/{row}/{cell}", _S1)
                s2 = self._products(f"{s2_folder}/{row}/{cell}", _S2)
                used = set()
                for path, date in s2:
                    try:
                        partner = self._nearest(path, date, s1)
                    except PairError as error:
                        listing.refused.append(self._refusal(_key(path), error))
                        continue
                    used.add(partner[0])
                    yield Pair(key=_key(path), s1=partner[0], s2=path, s1_date=partner[1], s2_date=date)
                if not s2:
                    for path, _ in s1:
                        message = f"{cell} has no product in {s2_folder}; fetch one or remove it"
                        lonely = PairError(MISSING_HALF, path, message)
                        listing.refused.append(self._refusal(_key(path), lonely))
                else:
                    unused += len(s1) - len(used)
        if unused:
            listing.notes.append(f"{unused} S1 products are nearest to no S2 product of their cell")

    def _products(self, folder: str, pattern: re.Pattern[str]) -> Sequence[tuple[str, str]]:
        """Path and date of each product in a cell."""
        found = []
        for name in self.tree.folders(folder):
            named = pattern.fullmatch(name)
            if named:
                found.append((f"{folder}/{name}", _iso(named["date"])))
        return found

    def _nearest(self, path: str, date: str, s1: Sequence[tuple[str, str]]) -> tuple[str, str]:
        if not s1:
            raise PairError(MISSING_HALF, path, f"its cell has no product in {S1_FOLDER}; fetch one or remove this")
        partner = min(s1, key=lambda product: (days_apart(date, product[1]), product))
        days = days_apart(date, partner[1])
        if self.options.max_days is not None and days > self.options.max_days:
            message = f"the nearest S1 is {days:.1f} days away, --max-days is {self.options.max_days:g}"
            raise PairError(DAYS, path, message)
        return partner

    def _by_band(self, folder: str) -> dict[str, SourceFile]:
        found = {}
        for name, file in self.tree.files(folder).items():
            stem, _, suffix = name.rpartition(".")
            band = band_name(stem) if suffix.lower() in ("tif", "tiff") else None
            if band is not None:
                found[band] = file
        return found

    def _refusal(self, key: str, error: PairError) -> Refusal:
        return Refusal(key=key, source=self.name, reason=error.reason, file=error.file, message=error.message)


def _iso(date: str) -> str:
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[9:11]}:{date[11:13]}:{date[13:]}"


def _cell_of(path: str) -> str:
    """`433D_629L` of a product's path."""
    row, cell = path.split("/")[-3:-1]
    return cell if cell.startswith(f"{row}_") else f"{row}_{cell}"


def _key(path: str) -> str:
    product = re.sub(r"[^A-Za-z0-9_-]", "-", path.rpartition("/")[2])
    return f"{_cell_of(path)}/{product}"


def _level_of(pair: Pair) -> str:
    return next(level for level, folder in S2_FOLDERS.items() if pair.s2.startswith(f"{folder}/"))


def _offset(pair: Pair) -> tuple[float, str]:
    """What is to be added to S2's numbers, and the processing baseline that says so."""
    named = _S2.fullmatch(pair.s2.rpartition("/")[2])
    baseline = named and named["baseline"]
    if not baseline:
        message = "its name has no processing baseline (_N0400_), so it is unknown whether 1000 was added; leave it out"
        raise PairError(OFFSET, pair.s2, message)
    return (-1000.0 if int(baseline) >= OFFSET_SINCE else 0.0), f"{baseline[:2]}.{baseline[2:]}"
