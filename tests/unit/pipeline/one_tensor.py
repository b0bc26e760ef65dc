"""An engine that is one tensor, for tests of checkpoints."""

from pathlib import Path
from typing import Any

import torch

from pipeline.engine import Engine


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

    def save(self, folder: Path) -> None:
        (folder / "engine").mkdir()
        torch.save(self.value, folder / "engine" / "value.pt")

    def load(self, folder: Path) -> None:
        self.value = torch.load(folder / "engine" / "value.pt", weights_only=True)

    def weights(self) -> dict[str, Any]:
        return {"value": self.value.clone()}
