"""What `baseline.*` of an evaluation may set."""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Of `baseline:NAME`; a run has none of these."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    weights: str = ""
    """File or URL of the published weights, .safetensors or of torch.save; random and the floors take none."""
    seed: int = 0
    """Seed of random weights."""
    config: str = ""
    """Of baseline:random: the settings of a run, a YAML file, whose architecture is begun from `seed`."""
    out: str = ""
    """Folder for the results; empty: ./evaluation-NAME."""
