"""The layouts of archives that can be built into shards; each is one small module behind `Source`."""

import importlib
from typing import TYPE_CHECKING, Any, Final

from sharding.errors import ConfigError

if TYPE_CHECKING:
    from sharding.sources.base import Source

SOURCES: Final[dict[str, tuple[str, str]]] = {
    "bigearthnet-v1": (
        "sharding.sources.bigearthnet_v1:BigEarthNetV1",
        "BigEarthNet-MM v1.0: a folder with BigEarthNet-v1.0/ and BigEarthNet-S1-v1.0/",
    ),
    "reben": (
        "sharding.sources.reben:ReBEN",
        "BigEarthNet v2.0: the folder tree with metadata.parquet, or rico-hdl's LMDB",
    ),
    "folder": (
        "sharding.sources.folder:Folder",
        "your own GeoTIFFs: a CSV of pairs (see docs/data-set.md)",
    ),
}
"""Name of a source -> where its class is, and what it reads."""


def open_source(name: str, root: str) -> "Source":
    """The source `name` at `root`; nothing is read yet."""
    if name not in SOURCES:
        raise ConfigError(f"there is no source '{name}'; there are {', '.join(SOURCES)}")
    module, _, cls = SOURCES[name][0].partition(":")
    opened: Any = getattr(importlib.import_module(module), cls)(root)
    source: Source = opened
    return source


__all__ = ["SOURCES", "open_source"]
