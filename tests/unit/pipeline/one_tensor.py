"""An engine that is one tensor, for tests of checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.engine import Engine
from pipeline.fp32_weights import Piece, WeightShare
from sharding.store import Store


def saver(folder: Path, group: Any, token: str = "one", **options: Any) -> checkpoint.Saver:
    """What saves into `folder`, a run's `checkpoints`; keeps all unless told otherwise."""
    fence = checkpoint.Fence(store=Store(str(folder.parent)), token=token, owner=f"attempt {token}")
    return checkpoint.Saver(checkpoint.FolderPlace(folder, fence), group, checkpoint.Retention(keep=100), **options)


def find(folder: Path, group: Any) -> checkpoint.Found | None:
    """The newest good one in `folder`."""
    return checkpoint.find(checkpoint.FolderShelf(folder), group, folder)


def save(
    folder: Path, step: int, engine: Engine, state: dict[str, Any], about: dict[str, Any], group: Any, **options: Any
) -> checkpoint.Saved:
    """Save, and wait until it is done."""
    saving = saver(folder, group, **options)
    saving.begin(step, engine, state, about)
    saved = saving.finish()
    assert saved is not None
    return saved


class SmallEngine(Engine):
    """An engine that is one tensor."""

    device = torch.device("cpu")

    def __init__(self, size: int = 1000) -> None:
        self.value = torch.arange(size, dtype=torch.float32)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        raise AssertionError("not trained here")

    def backward(self, loss: Any, is_last: bool) -> None:
        raise AssertionError("not trained here")

    def step(self, lr: float) -> None:
        self.value = self.value + lr

    def grad_norm(self) -> float | None:
        return None

    @property
    def skipped_steps(self) -> int:
        return 0

    def snapshot(self, copied: Callable[[Any], Any]) -> dict[str, Any]:
        return {"engine/value.pt": copied(self.value)}

    @property
    def module(self) -> Any:
        raise AssertionError("no model here")

    def copy_weights(self, into: dict[str, Any]) -> None:
        raise AssertionError("not looked at here")

    def load(self, folder: Path) -> None:
        self.value = torch.load(folder / "engine" / "value.pt", weights_only=True)

    def weights(self, copied: Callable[[Any], Any]) -> WeightShare:
        return WeightShare(shapes={"value": tuple(self.value.shape)}, pieces=[Piece("value", 0, copied(self.value))])
