"""The layouts of archives that can be built into shards; each is one small module behind `Source`."""

import importlib
from typing import TYPE_CHECKING, Any, Final

from sharding.errors import ConfigError

if TYPE_CHECKING:
    from sharding.sources.base import Source, SourceOptions

SOURCES: Final[dict[str, tuple[str, str]]] = {
    "bigearthnet-v1": (
        "sharding.sources.bigearthnet_v1:BigEarthNetV1",
        "BigEarthNet-MM v1.0: a folder with BigEarthNet-v1.0/ and BigEarthNet-S1-v1.0/",
    ),
    "reben": (
        "sharding.sources.reben:ReBEN",
        "BigEarthNet v2.0: the folder tree with metadata.parquet, or rico-hdl's LMDB",
    ),
    "configilm-v1": (
        "sharding.sources.configilm_v1:ConfigILMV1",
        "BigEarthNet-MM v1.0 as ConfigILM's LMDB of pickles",
    ),
    "sen12ms": (
        "sharding.sources.sen12ms:SEN12MS",
        "SEN12MS: ROIs…/{s1,s2,lc}_<scene>/, with its lists where they are there",
    ),
    "ssl4eo-s12-v1": (
        "sharding.sources.ssl4eo_v1:SSL4EOS12V1",
        "SSL4EO-S12 v1.0: s1/, s2a/ or s2c/, a folder a location and season",
    ),
    "ssl4eo-s12-v1.1": (
        "sharding.sources.ssl4eo_v11:SSL4EOS12V11",
        "SSL4EO-S12 v1.1: {train,val}/{S1GRD,S2L1C,S2L2A}/*.zarr.zip",
    ),
    "terramesh": (
        "sharding.sources.terramesh:TerraMesh",
        "TerraMesh: {train,val}/<modality>/*.tar of zarr.zip, joined by key",
    ),
    "majortom": (
        "sharding.sources.majortom:MajorTOM",
        "Major TOM Core: S1RTC/ and S2L2A/ or S2L1C/, a folder a grid cell and product",
    ),
    "cube": (
        "sharding.sources.cube:Cube",
        "time series of S1 and S2 in Zarr (v2, v3) or netCDF, cut into patches",
    ),
    "folder": (
        "sharding.sources.folder:Folder",
        "your own GeoTIFFs: a table of pairs in CSV, Parquet or STAC-GeoParquet (see docs/data-set.md)",
    ),
}
"""Name of a source -> where its class is, and what it reads."""


def open_source(name: str, root: str, options: "SourceOptions | None" = None) -> "Source":
    """The source `name` at `root`; nothing is read yet."""
    if name not in SOURCES:
        raise ConfigError(f"there is no source '{name}'; there are {', '.join(SOURCES)}")
    module, _, cls = SOURCES[name][0].partition(":")
    opened: Any = getattr(importlib.import_module(module), cls)(root, options)
    source: Source = opened
    return source


__all__ = ["SOURCES", "open_source"]
