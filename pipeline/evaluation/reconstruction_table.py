"""What is printed of the reconstruction."""

from typing import Any


def reconstruction_table(result: dict[str, Any]) -> list[str]:
    """The losses, line by line."""
    columns = [*result["modalities"], "total"]
    lines = [
        f"loss on masked patches at step {result['step']}, masks from seed {result['seed']}",
        f"{'split':<12} {'predicted by':<24}" + "".join(f"{name:>9}" for name in columns),
    ]
    for split, measured in result["splits"].items():
        for key, title in (
            ("model", "the model"),
            ("shuffled", "visible tokens shuffled"),
            ("untrained", "random weights"),
            ("band_mean", "each band's mean"),
        ):
            if key in measured:
                figures = "".join(f"{measured[key][name]:>9.4f}" for name in columns)
                lines.append(f"{split:<12} {title:<24}{figures}")
    return lines
