"""What is printed of segmentation and regression: each input's figures beside both floors."""

from typing import Any, Final

from pipeline.evaluation.label_table import FROZEN

_SEGMENT: Final = (("miou", "mIoU"), ("pixel_accuracy", "accuracy"))
_REGRESS: Final = (("r2", "R2"), ("rmse", "RMSE"))


def segment_table(result: dict[str, Any]) -> list[str]:
    """Mean intersection over union and the share of right pixels, line by line."""
    splits = result["splits"]
    pixels = "linear on band values (floor)"
    titles = FROZEN | {"colour_statistics": pixels}
    lines = [
        f"segmentation of {result['band']} at step {result['step']}: {splits['train']['samples']} samples of "
        f"'{splits['train']['split']}', scored on {splits['test']['samples']} of '{splits['test']['split']}', "
        f"{len(result['classes'])} classes",
        *_rows(result, titles, _SEGMENT, "most frequent class"),
    ]
    if result["classes_without_training"]:
        listed = ", ".join(map(str, result["classes_without_training"]))
        lines.append(f"only in the test split, and so missed: {listed}")
    return lines + [
        f"left out of '{of_split['split']}': {of_split['without_a_raster_or_modality']} samples without a class or a "
        "modality"
        for of_split in splits.values()
        if of_split["without_a_raster_or_modality"]
    ]


def regress_table(result: dict[str, Any]) -> list[str]:
    """Explained variance and error, line by line."""
    splits = result["splits"]
    return [
        f"regression of {result['number']} ({result['units']}) at step {result['step']}: "
        f"{splits['train']['samples']} samples of '{splits['train']['split']}', scored on "
        f"{splits['test']['samples']} of '{splits['test']['split']}'",
        *_rows(result, FROZEN, _REGRESS, "mean of training"),
    ] + [
        f"left out of '{of_split['split']}': {of_split['without_the_number_or_a_modality']} samples without the number "
        "or a modality"
        for of_split in splits.values()
        if of_split["without_the_number_or_a_modality"]
    ]


def _rows(
    result: dict[str, Any], titles: dict[str, str], columns: tuple[tuple[str, str], ...], constant: str
) -> list[str]:
    rows = [(row["modalities"], title, row[key]) for row in result["results"] for key, title in titles.items()]
    rows.append(("none", f"constant ({constant})", result["constant"]))
    return [
        f"{'input':<10} {'features':<32}" + "".join(f" {title:>9}" for _, title in columns),
        *(f"{name:<10} {title:<32}" + "".join(f" {own[key]:>9.3f}" for key, _ in columns) for name, title, own in rows),
    ]
