"""Python's cyclic garbage, collected on all ranks at the same steps instead of whenever one of them has counted enough.

A collection that comes by itself holds up one rank in a step of its own, and through the collectives all others.
"""

import gc
from types import TracebackType
from typing import Self


class Collector:
    """Inside its `with` block nothing is collected but here, every `every` steps; with 0 Python does as it likes."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._was_enabled = False

    def __enter__(self) -> Self:
        self._was_enabled = gc.isenabled()
        if self._every:
            gc.disable()
            gc.collect()
            gc.freeze()  # modules and the model stay: they need not be looked through again
        return self

    def done(self, step: int) -> None:
        """`step` is done."""
        if self._every and step % self._every == 0:
            gc.collect()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._every:
            gc.unfreeze()
            if self._was_enabled:
                gc.enable()
