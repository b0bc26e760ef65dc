"""Fus-MAE in pure torch: tensors in, tensors out.

The names are handed out on first use, so that `import fusmae` costs nothing before a model is wanted.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusmae.config import FusMAEConfig, Modality
    from fusmae.cross_scale import CrossScaleFusMAE
    from fusmae.cross_scale_config import CrossScaleConfig
    from fusmae.masking import MaskingConfig, Masks, sample_masks
    from fusmae.model import EncoderOutput, FusMAE, FusMAEOutput, Reconstruction
    from fusmae.random import CounterRandom, Purpose

__all__ = [
    "CounterRandom",
    "CrossScaleConfig",
    "CrossScaleFusMAE",
    "EncoderOutput",
    "FusMAE",
    "FusMAEConfig",
    "FusMAEOutput",
    "MaskingConfig",
    "Masks",
    "Modality",
    "Purpose",
    "Reconstruction",
    "sample_masks",
]

_HOME = {
    "CounterRandom": "random",
    "CrossScaleConfig": "cross_scale_config",
    "CrossScaleFusMAE": "cross_scale",
    "EncoderOutput": "model",
    "FusMAE": "model",
    "FusMAEConfig": "config",
    "FusMAEOutput": "model",
    "MaskingConfig": "masking",
    "Masks": "masking",
    "Modality": "config",
    "Purpose": "random",
    "Reconstruction": "model",
    "sample_masks": "masking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fusmae' has no attribute '{name}'")
    return getattr(import_module(f"fusmae.{_HOME[name]}"), name)
