"""The exported encoder as torchgeo has its models: a builder, and an entry of weights.

With the exported folder on `sys.path`, `import fusmae_torchgeo` puts both into torchgeo's registries:

    weights = torchgeo.models.get_weight("FusMAE_Weights.ENCODER")
    model = torchgeo.models.get_model("fusmae", weights=weights)

The model normalises by itself, so the entry's transforms change nothing. `torchgeo.models` has no public way to add a
model; its two tables, `_model` and `_model_weights` of 0.8, are written to.
"""

import json
from pathlib import Path
from typing import Any

from fusmae_inference import FusMAE
from torch import nn
from torchgeo.models import api
from torchvision.models._api import Weights, WeightsEnum

_FOLDER = Path(__file__).resolve().parent
_CONFIG = json.loads((_FOLDER / "config.json").read_text())


class FusMAE_Weights(WeightsEnum):
    """Weights of the folder that this file is in."""

    ENCODER = Weights(
        url=(_FOLDER / "model.safetensors").as_uri(),
        transforms=nn.Identity(),
        meta={
            "dataset": ", ".join(f"{entry['name']} {entry['fingerprint']}" for entry in _CONFIG["data_sets"]),
            "model": "fusmae",
            "publication": "https://arxiv.org/abs/2401.02764",
            "ssl_method": "fusmae",
            "step": _CONFIG["step"],
            "bands": {modality["name"]: modality["bands"] for modality in _CONFIG["model"]["modalities"]},
        },
    )

    def get_state_dict(self, *_arguments: Any, **_named: Any) -> dict[str, Any]:
        """The tensors of the file; arguments of torchvision's own, such as `progress`, have no effect."""
        from safetensors.torch import load_file

        return load_file(_FOLDER / "model.safetensors")


def fusmae(weights: FusMAE_Weights | None = None, data_set: str | None = None) -> FusMAE:
    """The encoder, in evaluation mode; without weights, with random ones.

    Args:
        weights: `FusMAE_Weights.ENCODER`, or None.
        data_set: with whose statistics images are normalised; None: the first of config.json.
    """
    model = FusMAE(_CONFIG, data_set)
    if weights is not None:
        model.load_state_dict(FusMAE_Weights.verify(weights).get_state_dict())
    return model.eval()


api._model["fusmae"] = fusmae
api._model_weights["fusmae"] = FusMAE_Weights
api._model_weights[fusmae] = FusMAE_Weights
