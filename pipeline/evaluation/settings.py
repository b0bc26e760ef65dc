"""What the `key.sub=value` of an evaluation may set."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Literal

from pipeline.baselines.settings import BaselineSettings
from pipeline.data_settings import DataSettings
from pipeline.evaluation.finetune import FinetuneSettings
from pipeline.evaluation.regress import RegressSettings
from pipeline.evaluation.segment import SegmentSettings
from pipeline.linear import ProbeSettings
from pipeline.neighbours import KnnSettings
from pipeline.reconstruction import ReconstructionSettings

_DATA_KEYS: Final = (
    "url",
    "threads",
    "cache_gib",
    "cache_dir",
    "cache_dir_gib",
    "client",
    "verify_checksums",
    "upsample",
)
"""What of the run's data settings an evaluation uses; it neither shuffles nor flips."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of all evaluations; each uses its own group."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: DataSettings
    """The run's own, unless overridden; data.url gives another data set."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """Of `linear`."""
    knn: KnnSettings = field(default_factory=KnnSettings)
    """Of `knn`."""
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    """Of `finetune`."""
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    """Of `segment`."""
    regress: RegressSettings = field(default_factory=RegressSettings)
    """Of `regress`."""
    reconstruction: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    """Of `reconstruction`."""
    baseline: BaselineSettings = field(default_factory=BaselineSettings)
    """Of `baseline:NAME`."""
    skip: tuple[str, ...] = ()
    """Evaluations that `all` leaves out, such as [finetune]."""
    untrained_seed: int = 0
    """Seed of the weights of the untrained encoder that stands beside the trained one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""


def known_keys() -> list[str]:
    """All that may be set."""
    groups = {
        "probe": ProbeSettings,
        "knn": KnnSettings,
        "finetune": FinetuneSettings,
        "segment": SegmentSettings,
        "regress": RegressSettings,
        "reconstruction": ReconstructionSettings,
        "baseline": BaselineSettings,
    }
    own = [f"{group}.{f.name}" for group, cls in groups.items() for f in fields(cls)]
    return [f"data.{name}" for name in _DATA_KEYS] + own + ["skip", "untrained_seed", "device"]
