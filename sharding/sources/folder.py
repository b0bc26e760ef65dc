"""Your own GeoTIFFs: a CSV with one pair a row (`sharding.sources.pair_table`), paths relative to the CSV.

A half is a folder with one `<BAND>.tif` or `*_<BAND>.tif` a band, each at its own resolution, or one GeoTIFF with the
bands in the order of the row. Bands are the row's; a file that names others is refused.
"""

from sharding.bands import ARRAY_BANDS
from sharding.errors import ConfigError
from sharding.sources.assemble import arrays_of, split_bands
from sharding.sources.band_names import band_name
from sharding.sources.base import (
    BANDS,
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
from sharding.sources.pair_table import TableRow, parse_table
from sharding.sources.raster import Raster, read_grid, read_raster
from sharding.sources.tree import Tree

_TABLES = ("pairs.csv", "manifest.csv")
_SUFFIXES = (".tif", ".tiff")


class Folder(Source):
    """Pairs of a CSV; `root` is the CSV, or a folder with pairs.csv (or manifest.csv) in it."""

    name = "folder"
    version = "1"

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.table = ""
        if root.endswith(".csv"):
            root, _, self.table = root.rpartition("/")
        self.tree = Tree(root or ".")

    def list(self) -> Listing:
        """The rows of the CSV; a row whose half or band is not there is refused."""
        self.tree.require()
        files = self.tree.files()
        table = self.table or next((name for name in _TABLES if name in files), "")
        if table not in files:
            raise ConfigError(f"there is no {self.tree.store.name(table or _TABLES[0])}; give --root a CSV of pairs")
        rows, extra = parse_table(self.tree.read(table), self.tree.store.name(table))
        listing = Listing(pairs=[], has_splits=any(row.split for row in rows))
        if extra:
            listing.notes.append(f"columns of {table} that nothing reads: {', '.join(extra)}")
        for row in rows:
            try:
                listing.pairs.append(self._pair(row))
            except PairError as error:
                message = f"{error.message} (row {row.number})"
                listing.refused.append(
                    Refusal(key=row.key, source=self.name, reason=error.reason, file=error.file, message=message)
                )
        listing.pairs.sort(key=lambda pair: pair.key)
        return listing

    def read(self, pair: Pair) -> Sample:
        """Both halves as the row declares them."""
        settings = dict(pair.attributes)
        rasters = {
            **self._read_half(pair.s1, tuple(settings.pop("s1_bands")), "S1"),
            **self._read_half(pair.s2, tuple(settings.pop("s2_bands")), "S2"),
        }
        rasters = {band: rasters[band] for bands in ARRAY_BANDS.values() for band in bands if band in rasters}
        arrays = arrays_of(rasters, s1_units=str(settings.pop("s1_units")), s2_offset=float(settings.pop("s2_offset")))
        dates = {half: settings.pop(f"{half}_date") for half in ("s1", "s2") if f"{half}_date" in settings}
        return Sample(
            key=pair.key,
            source=self.name,
            arrays=arrays,
            crs=next(iter(rasters.values())).grid.crs,
            level=str(settings.pop("s2_level")),
            dates=dates,
            labels=pair.labels,
            split=pair.split,
            attributes=settings,
        )

    def centre(self, pair: Pair) -> tuple[str, float, float] | None:
        """From the header of the first raster of S1, whose footprint is that of all; no pixel is read."""
        bands = tuple(dict(pair.attributes)["s1_bands"])
        if pair.s1.lower().endswith(_SUFFIXES):
            grid = read_grid(self.tree, pair.s1, bands)
        else:
            first = next(band for band in ARRAY_BANDS["s1"] if band in bands)
            grid = read_grid(self.tree, self._chosen(pair.s1, (first,), "S1")[first].path, (first,))
        return None if grid.centre is None else (grid.crs, *grid.centre)

    def _pair(self, row: TableRow) -> Pair:
        s1 = self._files(row.s1_path, row.s1_bands, "S1")
        s2 = self._files(row.s2_path, row.s2_bands, "S2")
        attributes = {
            "s1_bands": row.s1_bands,
            "s2_bands": row.s2_bands,
            "s1_units": row.s1_units,
            "s2_level": row.s2_level,
            "s2_offset": row.s2_offset,
            **{name: value for name in ("s1_date", "s2_date", "country") if (value := getattr(row, name))},
        }
        declared = {*row.s1_bands, *row.s2_bands}
        return Pair(
            key=row.key,
            source=self.name,
            s1=row.s1_path,
            s2=row.s2_path,
            bands=tuple(band for bands in ARRAY_BANDS.values() for band in bands if band in declared),
            files=(*s1, *s2),
            num_bytes=sum(file.size for file in (*s1, *s2)),
            split=row.split,
            labels=row.labels,
            attributes=tuple(attributes.items()),
        )

    def _files(self, path: str, bands: tuple[str, ...], half: str) -> tuple[SourceFile, ...]:
        if path.lower().endswith(_SUFFIXES):
            folder, _, name = path.rpartition("/")
            files = self.tree.files(folder)
            if name not in files:
                raise PairError(MISSING_HALF, path, f"the {half} half is missing; put the file there or drop the row")
            return (files[name],)
        return tuple(self._chosen(path, bands, half).values())

    def _chosen(self, path: str, bands: tuple[str, ...], half: str) -> dict[str, SourceFile]:
        """The files of `bands` in the folder `path`, in this order."""
        found = self._by_band(path)
        if not found:
            raise PairError(MISSING_HALF, path, f"the {half} half is missing: no GeoTIFF of a band lies there")
        missing = [band for band in bands if band not in found]
        if missing:
            raise PairError(MISSING_BAND, path, f"it holds no {', '.join(missing)}, which the row declares")
        return {band: found[band] for band in bands}

    def _by_band(self, path: str) -> dict[str, SourceFile]:
        found: dict[str, SourceFile] = {}
        for name, file in self.tree.files(path).items():
            stem, _, suffix = name.rpartition(".")
            band = band_name(stem) if f".{suffix.lower()}" in _SUFFIXES else None
            if band is None:
                continue
            if band in found:
                raise PairError(BANDS, path, f"{found[band].path} and {file.path} are both {band}; keep one")
            found[band] = file
        return found

    def _read_half(self, path: str, bands: tuple[str, ...], half: str) -> dict[str, Raster]:
        if path.lower().endswith(_SUFFIXES):
            return split_bands(read_raster(self.tree, path, bands), bands)
        return {b: read_raster(self.tree, file.path, (b,)) for b, file in self._chosen(path, bands, half).items()}
