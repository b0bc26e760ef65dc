"""What is printed of evaluations on labels: each input's figures beside both floors, and what they are of."""

from typing import Any, Final

from pipeline.evaluation.untrained import UNTRAINED

FROZEN: Final = {
    "encoder": "frozen encoder",
    UNTRAINED: "random encoder (untrained)",
    "colour_statistics": "colour statistics (floor)",
}
"""Titles of the rows of an evaluation of frozen features."""


def label_table(method: str, result: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """Lines of text; `titles` by the keys of the results' rows."""
    splits, columns = result["splits"], result["columns"]
    subsets = result.get("subsets") or []
    drawn = f", {subsets[0]['samples']} of them drawn by each seed" if subsets and result["labels"] < 1 else ""
    lines = [
        f"{method} at step {result['step']}: {splits['train']['samples']} samples of "
        f"'{splits['train']['split']}'{drawn}, scored on {splits['test']['samples']} of '{splits['test']['split']}', "
        f"{result['classes']} classes, {result['task']}",
        f"{'input':<10} {'features':<28}" + "".join(f" {title:>9}" for _, title in columns),
    ]
    rows = [
        (row["modalities"], title, row[key]) for row in result["results"] for key, title in titles.items() if key in row
    ]
    rows.append(("none", "constant (prevalence)", result["prevalence"]))
    for name, title, scores in rows:
        lines.append(f"{name:<10} {title:<28}" + "".join(f" {_shown(scores.get(key)):>9}" for key, _ in columns))
        if len(scores.get("seeds", ())) > 1:
            spreads = [_spread(scores["spread"].get(key)) for key, _ in columns]
            lines.append(f"{'':<10} {'  spread of the seeds':<28}" + "".join(f" {spread:>9}" for spread in spreads))
    if "micro_ap_per_batch" in result:
        batch = result["micro_ap_per_batch"]["batch"]
        lines.append(f"* micro AP of each batch of {batch}, averaged, as published code counts it")
    if "epoch_chosen_by" in result:
        lines.append(f"epoch chosen by {result['epoch_chosen_by']}")
    return lines + left_out(result)


def has_average_precision(result: dict[str, Any]) -> bool:
    """Whether a stored result is of any number of labels a sample; those of before there were others do not say."""
    return bool(result.get("task", "multi-label") == "multi-label")


def left_out(result: dict[str, Any]) -> list[str]:
    """Classes and samples that do not count."""
    lines = []
    if result["classes_without_positives"]:
        listed = "; ".join(result["classes_without_positives"])
        figure = "in macro AP" if result["task"] == "multi-label" else "told by class"
        lines.append(f"not {figure}, for want of a positive in the test split: {listed}")
    for of_split in result["splits"].values():
        counts = {
            "without labels": of_split["without_labels"],
            "without a modality": of_split["without_a_modality"],
        }
        if "without_a_dominant_label" in of_split:
            counts["without a dominant label"] = of_split["without_a_dominant_label"]
        if any(counts.values()):
            listed = ", ".join(
                f"{count} {'samples ' if not i else ''}{why}" for i, (why, count) in enumerate(counts.items())
            )
            lines.append(f"left out of '{of_split['split']}': {listed}")
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"+-{spread['std']:.3f}"
