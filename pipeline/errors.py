"""The errors of the pipeline: those of sharding, and its own."""

from sharding.errors import ConfigError, DataError, FusMAEError, StorageError

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceMemoryError",
    "FusMAEError",
    "RankError",
    "StorageError",
]


class CheckpointError(FusMAEError):
    """A checkpoint is missing, damaged, or of another model, data set or run."""


class DeviceMemoryError(FusMAEError):
    """A GPU, or the machine, has no memory left for a step that fitted before."""


class RankError(FusMAEError):
    """This rank is well, but another has gone; that one says why."""
