"""What DeepSpeed would write into a checkpoint, taken from its hands: names and states instead of files."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from typing_extensions import override


class Recorder(TorchCheckpointEngine):  # type: ignore[misc]
    """A checkpoint engine of DeepSpeed's that writes nothing; it reads as theirs does."""

    def __init__(self) -> None:
        super().__init__()
        self._take: Callable[[str, Any], None] | None = None

    @contextlib.contextmanager
    def taking(self, take: Callable[[str, Any], None]) -> Iterator[None]:
        """Within, `take` gets the path and the state of each file."""
        self._take = take
        try:
            yield
        finally:
            self._take = None

    @override
    def save(self, state_dict: Any, path: str) -> None:
        assert self._take is not None, "DeepSpeed saves unasked"
        self._take(os.fspath(path), state_dict)

    @override
    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """No folder is needed."""

    @override
    def preserves_storage_sharing(self) -> bool:
        return False  # else DeepSpeed copies each tensor once more
