"""All evaluations that a data set permits, one after the other, and their main figures in one table."""

from collections.abc import Callable
from typing import Any, Final

from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.untrained import UNTRAINED

ALL: Final = "all"
_MAIN: Final = {
    "segment": (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy")),
    "regress": (("r2", "R2"),),
}
"""Figures in the joint table; of evaluations on labels their first two columns."""


def make_all(names: list[str], skip: tuple[str, ...], make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Each evaluation by `make`, which stores it; what the data or the model does not permit is named with the reason.

    Raises ConfigError for an unknown name in `skip`.
    """
    if unknown := [name for name in skip if name not in names]:
        raise ConfigError(f"skip names '{unknown[0]}'; evaluations are {', '.join(names)}")
    made: dict[str, Any] = {}
    not_made: dict[str, str] = dict.fromkeys(skip, "left out by the setting skip")
    for name in names:
        if name in skip:
            continue
        try:
            made[name] = make(name)
        except (DataError, ConfigError) as error:
            not_made[name] = str(error)
    return {
        "made": list(made),
        "not_made": not_made,
        "rows": [row for name, result in made.items() for row in _rows(name, result)],
    }


def _rows(name: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One a set of modalities and main figure: the trained encoder beside the untrained one and the bands' floor."""
    if name == "reconstruction":
        return [
            {
                "evaluation": name,
                "input": "+".join(result["modalities"]),
                "figure": f"loss on {split}",
                "encoder": measured["model"]["total"],
                UNTRAINED: measured["untrained"]["total"],
                "floor": measured["band_mean"]["total"],
            }
            for split, measured in result["splits"].items()
        ]
    columns = _MAIN.get(name) or result["columns"][:2]
    return [
        {
            "evaluation": name,
            "input": row["modalities"],
            "figure": title,
            "encoder": row["encoder"][key],
            UNTRAINED: row.get(UNTRAINED, {}).get(key),
            "floor": row["colour_statistics"][key],
        }
        for row in result["results"]
        for key, title in columns
    ]


def joint_table(result: dict[str, Any]) -> list[str]:
    """Line by line, and what was not made and why."""
    lines = [
        f"all evaluations at step {result['step']}",
        f"{'evaluation':<15} {'input':<10} {'figure':<16} {'encoder':>9} {'random':>9} {'floor':>9}",
    ]
    for row in result["rows"]:
        figures = [row["encoder"], row[UNTRAINED], row["floor"]]
        shown = "".join(f" {'-' if figure is None else f'{figure:.3f}':>9}" for figure in figures)
        lines.append(f"{row['evaluation']:<15} {row['input']:<10} {row['figure']:<16}{shown}")
    return lines + [f"not made: {name}: {why}" for name, why in result["not_made"].items()]
