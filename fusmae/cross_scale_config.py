"""What a cross-scale Fus-MAE is made of besides the model itself; checked when it is made, without torch."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from fusmae.config import FusMAEConfig


@dataclass(frozen=True, kw_only=True)
class CrossScaleConfig:
    """The second view of each sample, and what the two views owe each other (Cross-Scale MAE)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    min_area: float = 0.25
    """Least share of the image that the window of the second view covers."""
    max_area: float = 0.75
    """Greatest share."""
    temperature: float = 0.5
    """Divides the cosine similarities of the contrastive loss."""
    contrast_weight: float = 1.0
    """Weight of the contrastive loss between the views' mean latents."""
    prediction_weight: float = 1.0
    """Weight of the prediction of the full view's decoder tokens from the second view's."""
    predictor_hidden: int = 0
    """Hidden width of the predictors; 0: four times the decoder's width."""
    gsd_positions: bool = False
    """The encoder's sin-cos positions in the second view are multiplied by its ground sampling distance relative to the
    full view's, as in Scale-MAE; the decoder's are not."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise ValueError(
                f"min_area {self.min_area} and max_area {self.max_area} must lie above 0 and at most at 1,"
                " the lesser first"
            )
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise ValueError(f"temperature {self.temperature} must be above 0, such as 0.5")
        for field in ("contrast_weight", "prediction_weight"):
            if not (getattr(self, field) >= 0 and isfinite(getattr(self, field))):
                raise ValueError(f"{field} {getattr(self, field)} must be finite and not negative")
        if self.predictor_hidden < 0:
            raise ValueError(f"predictor_hidden {self.predictor_hidden} must be at least 1, or 0 for the default")

    def hidden_width(self, config: FusMAEConfig) -> int:
        """Hidden width of the predictors of a model."""
        return self.predictor_hidden or 4 * config.decoder_width

    def check(self, config: FusMAEConfig) -> None:
        """Raises ValueError if a model of `config` cannot be trained at two scales."""
        if config.varies:
            what = "modality_dropout" if config.modality_dropout else f"masking '{config.masking}'"
            wanted = (
                "modality_dropout: 0" if config.modality_dropout else "independent, consistent, disjoint, band_group"
            )
            raise ValueError(f"cross_scale needs the same number of visible patches, not {what}; write {wanted}")
        if config.decoder_attention != "self":
            raise ValueError(
                f"cross_scale compares the decoder's tokens of all patches, decoder_attention"
                f" '{config.decoder_attention}' decodes hidden ones only; write self"
            )
        if config.decoder_queries != 1:
            raise ValueError(
                f"cross_scale compares the decoder's tokens of all patches, decoder_queries"
                f" {config.decoder_queries} decodes some; write 1"
            )
        if self.gsd_positions and config.positions != "sincos":
            raise ValueError(f"gsd_positions needs positions: sincos, not {config.positions}")
        if taken := sorted({"contrast", "prediction"} & set(config.modality_names)):
            raise ValueError(f"a modality is called {taken[0]}, as a loss of cross_scale; give it another name")
