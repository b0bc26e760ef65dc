"""The same architecture with weights that nobody trained: what an encoder must be better than."""

from typing import Any, Final

UNTRAINED: Final = "random_encoder"
"""Its name in the results."""


def untrained_twin(model: Any, seed: int) -> Any:
    """A model of the same config, initialised from `seed`, in evaluation mode on the same device.

    A model that is not FusMAE makes its own by a method `untrained(seed)`. The process's random state stays.
    """
    import torch

    from fusmae import FusMAE

    if isinstance(model, FusMAE):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            twin: Any = FusMAE(model.config)
    else:
        twin = model.untrained(seed)
    first = next(iter(model.parameters()))
    return twin.to(first.device).eval()
