"""Several runs on one page: what differs between them, and what came of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.errors import ConfigError
from pipeline.evaluation.label_table import has_average_precision
from pipeline.report.key_figures import key_figures
from pipeline.report.loss import LossCurves, loss_curves
from pipeline.report.probe_curve import probe_curves
from pipeline.report.rendering import render
from pipeline.report.run_files import RunFiles, open_run
from pipeline.report.time_rows import part_names, time_rows
from pipeline.report.wall_time import WallTime, account

_OWN_KEYS: Final = ("run.dir",)
"""Settings that differ between any two runs and say nothing."""
_TASK_KEYS: Final = (
    "data.split",
    "data.mixture",
    "data.upsample",
    "model.image_size",
    "model.patch_size",
    "model.modalities",
    "model.mask_ratio",
    "model.masking",
    "model.modality_mask_ratio",
    "model.modality_dropout",
    "model.decoder_queries",
    "model.target_norm",
    "model.loss_weights",
    "model.cross_scale",
)
"""Settings that say what is predicted from what: losses of runs that differ in them cannot be compared."""


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write a comparison of the runs to `out` and return it; ConfigError when one is no run or is given twice."""
    from pipeline.report.figures.canvas import SERIES

    names = short_names(run_dirs)
    runs = dict(zip(names, (open_run(run_dir) for run_dir in run_dirs), strict=True))
    curves = {name: found for name, run in runs.items() if (found := loss_curves(run.metrics))}
    times = {name: account(run.dir) for name, run in runs.items()}
    differing = differing_settings(runs)
    return render(
        "comparison.html.j2",
        out,
        runs=runs,
        colours=SERIES,
        figures={name: key_figures(run) for name, run in runs.items()},
        warnings=_warnings(runs, differing),
        differing=differing,
        loss=_loss_figure(curves, runs),
        times=_bars(times),
        probe=_probe_figure(runs),
        evaluations=_evaluations(runs),
        evaluated_alike=len({_evaluated_on(run) for run in runs.values()} - {None}) < 2,
        reconstructions=_reconstructions(runs),
    )


def short_names(run_dirs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; ConfigError when two are the same folder."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    for number, path in enumerate(parts):
        if path in parts[:number]:
            raise ConfigError(f"{run_dirs[number]} is given twice; name each run once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different ends")


def differing_settings(runs: dict[str, RunFiles]) -> dict[str, list[Any]]:
    """The dotted keys that are not the same in all runs, with each run's value; None where it has none."""
    from pipeline.config import to_dict
    from pipeline.run_folder import flatten

    flat = [flatten(to_dict(run.settings)) for run in runs.values()]
    keys = dict.fromkeys(key for settings in flat for key in settings)
    values = {key: [settings.get(key) for settings in flat] for key in keys if key not in _OWN_KEYS}
    return {key: of_key for key, of_key in values.items() if any(value != of_key[0] for value in of_key)}


def _warnings(runs: dict[str, RunFiles], differing: dict[str, list[Any]]) -> list[str]:
    """Why the runs' losses cannot be compared, if they cannot."""
    warnings = []
    known = {name: run.fingerprint for name, run in runs.items()}
    unknown = [name for name, fingerprint in known.items() if not fingerprint]
    if len({fingerprint for fingerprint in known.values() if fingerprint}) > 1:
        warnings.append("The runs were not trained on the same data: their fingerprints differ.")
    if unknown:
        warnings.append(f"Of {', '.join(unknown)} it is not known what data they were trained on.")
    task = [key for key in differing if any(key == of or key.startswith(f"{of}.") for of in _TASK_KEYS)]
    if task:
        warnings.append(f"The runs predict other things, or from other masks: they differ in {', '.join(task)}.")
    return warnings


def _loss_figure(curves: dict[str, LossCurves], runs: dict[str, RunFiles]) -> str | None:
    """Curves of the total and of each modality; over samples where a step has not the same number of them in all."""
    from pipeline.report.figures.panels import panels_figure

    if not curves:
        return None
    batches = {run.settings.train.global_batch for run in runs.values()}
    by_samples = len(batches) > 1 and all(found.samples for found in curves.values())
    panels: dict[str, dict[str, Any]] = {}
    for name, found in curves.items():
        for part, values in found.curves.items():
            places = found.samples if by_samples else found.steps
            panels.setdefault(f"{part} loss", {})[name] = (places, values)
    return panels_figure("losses", panels, "samples seen" if by_samples else "optimiser step", list(runs))


def _probe_figure(runs: dict[str, RunFiles]) -> str | None:
    from pipeline.report.figures.panels import panels_figure

    panels: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        for mean, probes in probe_curves(run.dir).items():
            for probe, points in probes.items():
                panels.setdefault(f"{probe} {mean} mAP", {})[name] = points
    return panels_figure("probes", panels, "optimiser step", list(runs)) if panels else None


def _bars(times: dict[str, WallTime]) -> dict[str, Any]:
    """Each run's account as rows of the same parts, and how long its bar is beside the longest."""
    names = part_names(*(time.parts for time in times.values()))
    longest = max((time.total_s for time in times.values()), default=0.0)
    return {
        name: {
            "account": time,
            "rows": time_rows(time.parts, time.total_s, names),
            "length": time.total_s / longest if longest else 0.0,
        }
        for name, time in times.items()
        if time.attempts
    }


def _evaluations(runs: dict[str, RunFiles]) -> list[dict[str, Any]]:
    """Rows of the linear probe's and the neighbours' scores: the same input of all runs below each other.

    Of average precision alone: those of one label a sample are on each run's own page.
    """
    rows: list[dict[str, Any]] = []
    for title, results in (
        ("linear probe", {name: run.linear for name, run in runs.items()}),
        ("kNN", {name: run.knn for name, run in runs.items()}),
    ):
        given = {name: result for name, result in results.items() if result and has_average_precision(result)}
        inputs = dict.fromkeys(row["modalities"] for result in given.values() for row in result["results"])
        for modalities in inputs:
            for name, result in given.items():
                for row in result["results"]:
                    if row["modalities"] == modalities:
                        samples = result["splits"]["test"]["samples"]
                        shown = {"title": title, "input": modalities, "run": name, "step": result["step"]}
                        shown["is_first"] = name == next(iter(given))
                        rows.append(shown | {"samples": samples, "scores": row["encoder"]})
    return rows


def _evaluated_on(run: RunFiles) -> str | None:
    """Fingerprint of the data whose labels the run was evaluated with, if it was."""
    return next((result.get("data_fingerprint") for result in (run.linear, run.knn) if result), None)


def _reconstructions(runs: dict[str, RunFiles]) -> list[dict[str, Any]]:
    """Rows of the loss on each split, beside each band's mean."""
    given = {name: run.reconstruction for name, run in runs.items() if run.reconstruction}
    splits = dict.fromkeys(split for result in given.values() for split in result["splits"])
    return [
        {"split": split, "run": name, "step": result["step"], "measured": result["splits"][split]}
        for split in splits
        for name, result in given.items()
        if split in result["splits"]
    ]
