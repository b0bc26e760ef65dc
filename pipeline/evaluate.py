"""Numbers for a trained model, on a data set that it may never have seen.

Each evaluation prints a table (or JSON) and leaves the same in the run folder under `evaluation/`, where the report
finds it.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.command import run_command
from pipeline.config import to_dict
from pipeline.data_settings import DataSettings
from pipeline.errors import ConfigError
from pipeline.linear import ProbeSettings, probe
from pipeline.metrics import write_whole
from pipeline.neighbours import KnnSettings, knn
from pipeline.reconstruction import ReconstructionSettings, measure, store_pictures

_DATA_KEYS = ("url", "threads", "cache_gib", "cache_dir", "cache_dir_gib", "client", "verify_checksums", "upsample")
"""What of the run's data settings an evaluation uses; it neither shuffles nor flips."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What the `key.sub=value` of an evaluation may set."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    data: DataSettings
    """The run's own, unless overridden; data.url gives another data set."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """Of `linear`."""
    knn: KnnSettings = field(default_factory=KnnSettings)
    """Of `knn`."""
    reconstruction: ReconstructionSettings = field(default_factory=ReconstructionSettings)
    """Of `reconstruction`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""


def resolve_settings(run_dir_or_checkpoint: str, overrides: list[str]) -> EvaluationSettings:
    """The settings of an evaluation: the run's data, the defaults, and the overrides.

    Raises ConfigError naming the key that is unknown or cannot work, CheckpointError when there is no run.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from pipeline.checkpoint.named import named

    raw: dict[str, dict[str, Any] | Any] = {"data": to_dict(named(run_dir_or_checkpoint).settings().data)}
    for override in overrides:
        key, equals, value = override.partition("=")
        group, _, name = key.partition(".")
        if not equals or key not in _known_keys():
            close = difflib.get_close_matches(key, _known_keys(), n=1, cutoff=0.4)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(_known_keys())}"
            raise ConfigError(f"'{override}' sets nothing that an evaluation knows; {hint}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{override}': the value is not YAML") from error
        if name:
            raw.setdefault(group, {})[name] = parsed
        else:
            raw[group] = parsed
    try:
        return TypeAdapter(EvaluationSettings).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"key '{key}' = {first['input']!r}: {first['msg']}") from error


def _known_keys() -> list[str]:
    groups = {"probe": ProbeSettings, "knn": KnnSettings, "reconstruction": ReconstructionSettings}
    own = [f"{group}.{f.name}" for group, cls in groups.items() for f in fields(cls)]
    return [f"data.{name}" for name in _DATA_KEYS] + own + ["device"]


def evaluate_linear(frozen: Any, settings: EvaluationSettings, folder: Path) -> dict[str, Any]:
    """The linear probe; see `pipeline.linear`."""
    del folder
    return {"settings": to_dict(settings.probe)} | probe(frozen, settings.probe)


def evaluate_knn(frozen: Any, settings: EvaluationSettings, folder: Path) -> dict[str, Any]:
    """kNN; see `pipeline.neighbours`."""
    del folder
    return {"settings": to_dict(settings.knn)} | knn(frozen, settings.knn)


def evaluate_reconstruction(frozen: Any, settings: EvaluationSettings, folder: Path) -> dict[str, Any]:
    """Masked-patch losses and pictures; see `pipeline.reconstruction`."""
    measured = measure(frozen, settings.reconstruction)
    split = store_pictures(frozen, settings.reconstruction, folder / "reconstructions.npz")
    return measured | {"pictures_of": split}


def linear_table(result: dict[str, Any]) -> list[str]:
    """The probe's figures for the terminal."""
    return _label_table("linear probe", result)


def knn_table(result: dict[str, Any]) -> list[str]:
    """The figures of kNN for the terminal."""
    return _label_table(f"kNN ({result['settings']['neighbours']} neighbours)", result)


def _label_table(method: str, result: dict[str, Any]) -> list[str]:
    splits = result["splits"]
    lines = [
        f"{method} at step {result['step']}: {splits['train']['samples']} samples of "
        f"'{splits['train']['split']}', scored on {splits['test']['samples']} of '{splits['test']['split']}', "
        f"{result['classes']} classes",
        f"{'input':<10} {'features':<28} {'micro AP':>8} {'macro AP':>8}",
    ]
    rows = [
        (row["modalities"], title, row[key])
        for row in result["results"]
        for key, title in (
            ("encoder", "frozen encoder"),
            ("colour_statistics", "colour statistics (floor)"),
        )
    ]
    rows.append(("none", "constant (prevalence)", result["prevalence"]))
    lines += [f"{name:<10} {title:<28} {scores['micro']:>8.3f} {scores['macro']:>8.3f}" for name, title, scores in rows]
    if result["classes_without_positives"]:
        listed = "; ".join(result["classes_without_positives"])
        lines.append(f"not in macro AP, for want of a positive in the test split: {listed}")
    for of_split in splits.values():
        if of_split["without_labels"] or of_split["without_a_modality"]:
            lines.append(
                f"left out of '{of_split['split']}': {of_split['without_labels']} samples without labels, "
                f"{of_split['without_a_modality']} without a modality"
            )
    return lines


def reconstruction_table(result: dict[str, Any]) -> list[str]:
    """The losses for the terminal."""
    columns = [*result["modalities"], "total"]
    lines = [
        f"loss on masked patches at step {result['step']}, masks from seed {result['seed']}",
        f"{'split':<12} {'predicted by':<24}" + "".join(f"{name:>9}" for name in columns),
    ]
    for split, measured in result["splits"].items():
        for key, title in (
            ("model", "the model"),
            ("shuffled", "visible tokens shuffled"),
            ("band_mean", "each band's mean"),
        ):
            figures = "".join(f"{measured[key][name]:>9.4f}" for name in columns)
            lines.append(f"{split:<12} {title:<24}{figures}")
    return lines


Evaluation = Callable[[Any, EvaluationSettings, Path], dict[str, Any]]
_EVALUATIONS: dict[str, tuple[Evaluation, Callable[[dict[str, Any]], list[str]]]] = {
    "linear": (evaluate_linear, linear_table),
    "knn": (evaluate_knn, knn_table),
    "reconstruction": (evaluate_reconstruction, reconstruction_table),
}


def evaluate(name: str, run_dir_or_checkpoint: str, overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """Run the evaluation `name` and store its result; returns it and the file that it was written to."""
    from pipeline.frozen import open_frozen

    settings = resolve_settings(run_dir_or_checkpoint, overrides)
    frozen = open_frozen(run_dir_or_checkpoint, settings.data, settings.device)
    folder = frozen.run_dir / "evaluation"
    about = {
        "step": frozen.step,
        "data_url": settings.data.url,
        "data_fingerprint": frozen.manifest.fingerprint,
        "normalised_over": frozen.normalised_over,
        "absent_bands": list(frozen.absent_bands),
    }
    result = about | _EVALUATIONS[name][0](frozen, settings, folder)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    write_whole(path, json.dumps(result, indent=1) + "\n")
    return result, path


def main(argv: list[str] | None = None) -> int:
    """Evaluate a run or one of its checkpoints."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description=main.__doc__,
        epilog="keys: " + " ".join(_known_keys()),
    )
    parser.add_argument(
        "evaluation",
        choices=list(_EVALUATIONS),
        help="linear: multi-label probe on frozen features. knn: labels of the nearest training samples, nothing "
        "trained. reconstruction: masked-patch loss against baselines",
    )
    parser.add_argument("run", metavar="RUN_DIR_OR_CHECKPOINT", help="run folder, or its checkpoints/step-*")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as probe.epochs=50")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    result, path = evaluate(arguments.evaluation, arguments.run, arguments.overrides)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(_EVALUATIONS[arguments.evaluation][1](result)))
        if result["absent_bands"]:
            print(f"the data set lacks {', '.join(result['absent_bands'])}: absent from all samples")
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
