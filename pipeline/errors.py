"""The errors of the pipeline: those of sharding, and its own."""

from sharding.errors import ConfigError, DataError, FusMAEError, StorageError

__all__ = ["CheckpointError", "ConfigError", "DataError", "FusMAEError", "RankError", "StorageError"]


class CheckpointError(FusMAEError):
    """A checkpoint is missing, damaged, or of another model, data set or run."""


class RankError(FusMAEError):
    """This rank is well, but another has gone; that one says why."""
