"""The baselines by name, without importing what they are made of."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.baselines.interface import Baseline

PREFIX: Final = "baseline:"
"""In place of a run's folder: `baseline:croma_base`."""
RANDOM: Final = "random"
"""The encoder of a run's own settings, as it begins; `pipeline.baselines.opening` makes it."""

_HOME: Final = {
    "band_statistics": "band_statistics",
    "random_vit": "imagenet",
    "imagenet_vit_s": "imagenet",
    "imagenet_vit_b": "imagenet",
    "croma_base": "croma",
    "croma_large": "croma",
    "dino_mm": "dino_mm",
    "satvit_v1": "satvit",
    "satvit_v2": "satvit",
    "prithvi_v1_100": "prithvi",
    "prithvi_v2_300": "prithvi",
    "prithvi_v2_600": "prithvi",
    "terramind_v1_base": "terramind",
    "terramind_v1_large": "terramind",
}
"""Of each the module of this package whose table BASELINES it is in."""

NAMES: Final = (RANDOM, *_HOME)


def baseline_name(given: str) -> str | None:
    """The NAME of `baseline:NAME`, None for a run; ConfigError when there is no such baseline."""
    if not given.startswith(PREFIX):
        return None
    name = given.removeprefix(PREFIX)
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {PREFIX}{close[0]}?" if close else f"known are {', '.join(NAMES)}"
        raise ConfigError(f"there is no baseline '{name}'; {hint}")
    return name


def load_baseline(name: str) -> "Baseline":
    """The baseline of that name, which is not `random`."""
    module: Any = import_module(f"pipeline.baselines.{_HOME[name]}")
    baseline: Baseline = module.BASELINES[name]
    return baseline
