"""A plain copy of the model that is being trained: for looking at it without touching it."""

from dataclasses import replace
from typing import Any

from pipeline.engine import Engine


class ModelCopy:
    """`fusmae.FusMAE` in evaluation mode on this rank's device, in the precision that trains, whole on every rank.

    The model that trains keeps its mode, hooks, gradients and random numbers. Of a run at two scales it is the model
    inside.
    """

    def __init__(self, trained: Any, device: Any) -> None:
        import torch

        from fusmae import FusMAE

        inner = getattr(trained, "fusmae", trained)
        self._prefix = "" if inner is trained else "fusmae."
        with torch.device("meta"):
            model = FusMAE(replace(inner.config))
        dtype = next(inner.parameters()).dtype
        self.model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
        there = dict(inner.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(there[name])

    def refresh(self, engine: Engine) -> Any:
        """The model with this moment's weights; a collective."""
        engine.copy_weights({self._prefix + name: p.data for name, p in self.model.named_parameters()})
        return self.model
