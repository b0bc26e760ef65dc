"""The evaluations by name: what each is, how it is made, and what is printed of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import to_dict
from pipeline.errors import ConfigError
from pipeline.evaluation.finetune import TITLES, finetune
from pipeline.evaluation.label_table import FROZEN, label_table
from pipeline.evaluation.reconstruction_table import reconstruction_table
from pipeline.evaluation.regress import regress
from pipeline.evaluation.row_table import regress_table, segment_table
from pipeline.evaluation.segment import segment
from pipeline.evaluation.settings import EvaluationSettings
from pipeline.linear import probe
from pipeline.neighbours import knn
from pipeline.reconstruction import measure, store_pictures

if TYPE_CHECKING:
    from pipeline.frozen import FrozenModel

Result = dict[str, Any]
"""As it is printed and stored; what it has in common with others, `pipeline.evaluate` adds."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation."""

    summary: str
    """A clause for the command's help."""
    run: Callable[["FrozenModel", EvaluationSettings, Path], Result]
    """Makes its result; the folder is where it may leave files."""
    table: Callable[[Result], list[str]]
    """The result as lines of text."""


def _with_settings(
    group: str, make: Callable[["FrozenModel", Any, int], Result]
) -> Callable[["FrozenModel", EvaluationSettings, Path], Result]:
    """An evaluation that leaves no files, with the settings of its group in its result."""

    def run(frozen: "FrozenModel", settings: EvaluationSettings, folder: Path) -> Result:
        del folder
        own = getattr(settings, group)
        return {"settings": to_dict(own)} | make(frozen, own, settings.untrained_seed)

    return run


def _reconstruction(frozen: "FrozenModel", settings: EvaluationSettings, folder: Path) -> Result:
    if not hasattr(frozen.model, "reconstruct"):
        raise ConfigError(f"{type(frozen.model).__name__} reconstructs nothing; evaluate its features")
    measured = measure(frozen, settings.reconstruction, settings.untrained_seed)
    split = store_pictures(frozen, settings.reconstruction, folder / "reconstructions.npz")
    return measured | {"pictures_of": split}


EVALUATIONS: Final[dict[str, Evaluation]] = {
    "linear": Evaluation(
        summary="a linear probe of labels on frozen features, with all labels or a share of them",
        run=_with_settings("probe", probe),
        table=lambda result: label_table("linear probe", result, FROZEN),
    ),
    "knn": Evaluation(
        summary="labels of the nearest training samples, nothing trained",
        run=_with_settings("knn", knn),
        table=lambda result: label_table(f"kNN ({result['settings']['neighbours']} neighbours)", result, FROZEN),
    ),
    "finetune": Evaluation(
        summary="encoder and head trained on labels",
        run=_with_settings("finetune", finetune),
        table=lambda result: label_table("fine-tuning", result, TITLES),
    ),
    "segment": Evaluation(
        summary="a linear head over frozen patch tokens against a raster of classes",
        run=_with_settings("segment", segment),
        table=segment_table,
    ),
    "regress": Evaluation(
        summary="ridge regression of a number that rides along (elevation, the share of a class)",
        run=_with_settings("regress", regress),
        table=regress_table,
    ),
    "reconstruction": Evaluation(
        summary="masked-patch loss against baselines", run=_reconstruction, table=reconstruction_table
    ),
}
