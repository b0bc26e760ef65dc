"""Numbers for a trained model, on a data set that it may never have seen.

Each evaluation prints a table (or JSON) and leaves the same in the run folder under `evaluation/`, where the report
finds it.
"""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.baselines.opening import data_of, describe, open_evaluated
from pipeline.baselines.registry import NAMES
from pipeline.command import run_command
from pipeline.errors import ConfigError
from pipeline.evaluation.joint import ALL, joint_table, make_all
from pipeline.evaluation.registry import EVALUATIONS
from pipeline.evaluation.settings import EvaluationSettings, known_keys
from pipeline.metrics import write_whole


def resolve_settings(run_dir_or_checkpoint: str, overrides: list[str]) -> EvaluationSettings:
    """The settings of an evaluation: the run's data, the defaults, and the overrides.

    Raises ConfigError naming the key that is unknown or cannot work, CheckpointError when there is no run.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    raw: dict[str, dict[str, Any] | Any] = {"data": data_of(run_dir_or_checkpoint)}
    for override in overrides:
        key, equals, value = override.partition("=")
        group, _, name = key.partition(".")
        if not equals or key not in known_keys():
            close = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.4)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known_keys())}"
            raise ConfigError(f"'{override}' sets nothing that an evaluation knows; {hint}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{override}': the value is not YAML") from error
        if name:
            raw.setdefault(group, {})[name] = parsed
        else:
            raw[group] = parsed
    if "url" not in raw["data"]:
        raise ConfigError(f"{run_dir_or_checkpoint} has no data set of its own; give one as data.url=...")
    try:
        return TypeAdapter(EvaluationSettings).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"key '{key}' = {first['input']!r}: {first['msg']}") from error


def evaluate(name: str, run_dir_or_checkpoint: str, overrides: list[str]) -> tuple[dict[str, Any], Path]:
    """Run the evaluation `name`, or all, and store its result; returns it and the file that it was written to.

    A result is stored when it is whole: an evaluation that was killed leaves what was there before.
    """
    settings = resolve_settings(run_dir_or_checkpoint, overrides)
    opened = open_evaluated(run_dir_or_checkpoint, settings.data, settings.baseline, settings.device)
    frozen, folder = opened.frozen, opened.folder
    about = {
        "step": frozen.step,
        "data_url": settings.data.url,
        "data_fingerprint": frozen.manifest.fingerprint,
        "normalised_over": frozen.normalised_over,
        "absent_bands": list(frozen.absent_bands),
    } | opened.about
    folder.mkdir(parents=True, exist_ok=True)

    def make(name: str) -> dict[str, Any]:
        return store(name, about | EVALUATIONS[name].run(frozen, settings, folder))

    def store(name: str, result: dict[str, Any]) -> dict[str, Any]:
        write_whole(folder / f"{name}.json", json.dumps(result, indent=1) + "\n")
        return result

    if name == ALL:
        result = store(ALL, about | make_all(list(EVALUATIONS), settings.skip, make))
    else:
        result = make(name)
    return result, folder / f"{name}.json"


def main(argv: list[str] | None = None) -> int:
    """Evaluate a run or one of its checkpoints."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.evaluate",
        description=main.__doc__,
        epilog="keys: " + " ".join(known_keys()),
    )
    parser.add_argument(
        "evaluation",
        choices=[*EVALUATIONS, ALL],
        help="; ".join(f"{name}: {evaluation.summary}" for name, evaluation in EVALUATIONS.items())
        + "; all: those that the data set permits, and a joint table",
    )
    parser.add_argument(
        "run",
        metavar="RUN_DIR_OR_CHECKPOINT",
        help=f"run folder, or its checkpoints/step-*, or baseline:NAME with data.url=...; NAME: {', '.join(NAMES)}",
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="such as probe.epochs=50")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    result, path = evaluate(arguments.evaluation, arguments.run, arguments.overrides)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        table = joint_table if arguments.evaluation == ALL else EVALUATIONS[arguments.evaluation].table
        print("\n".join(table(result)))
        if result["absent_bands"]:
            print(f"the data set lacks {', '.join(result['absent_bands'])}: absent from all samples")
        if "baseline" in result:
            print("\n".join(describe(result["baseline"])))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
