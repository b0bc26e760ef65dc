"""The errors that a user may see. Each says what happened, where, and what to do."""


class FusMAEError(Exception):
    """Base of every error that is the user's to mend; shown as one sentence, without a traceback."""

    exit_code = 1


class ConfigError(FusMAEError):
    """The command line or the settings cannot work."""

    exit_code = 2


class DataError(FusMAEError):
    """A file, shard or sample is missing, broken or not what it says it is."""


class StorageError(FusMAEError):
    """A store (disk or object store) refused, lost or cut what was asked of it."""
