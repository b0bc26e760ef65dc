"""Writes `report.html`: one self-contained file that says what was trained on what, how it went and how good it is.

Works with whatever a run folder holds; what is missing is named, with the command that makes it.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.command import run_command
from pipeline.errors import ConfigError, DataError, FusMAEError
from pipeline.metrics import read_lines, write_whole

MAX_PICTURES: Final = 4
_MODALITY_TITLES: Final = {"s1": "S1", "s2": "S2"}
_EVENT_TITLES: Final = {
    "start": "started",
    "resume": "resumed",
    "checkpoint": "checkpoint saved",
    "stop": "stopped on request",
    "done": "finished",
    "init_weights": "initial weights loaded",
    "kill": "killed (SIGKILL)",
    "lost": "ended without a word",
}


@dataclass(frozen=True, kw_only=True)
class LossFall:
    """How far a run's loss fell: means of its first and of its last tenth of logged steps."""

    first: float
    last: float

    @property
    def share(self) -> float:
        """Fall from first to last, as a share of the first; negative when the loss rose."""
        return 1 - self.last / self.first if self.first else 0.0


def loss_fall(losses: Sequence[float]) -> LossFall:
    """The fall of a loss curve; DataError when there is none."""
    if not losses:
        raise DataError("the run has logged no loss yet; train on with python -m pipeline.pretrain")
    tenth = max(1, len(losses) // 10)
    return LossFall(first=statistics.fmean(losses[:tenth]), last=statistics.fmean(losses[-tenth:]))


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of `run_dir` to `out` (default: report.html in it) and return where it is.

    Raises ConfigError when `run_dir` is no run folder.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from pipeline.config import load_settings

    if not (run_dir / "config.yaml").exists():
        raise ConfigError(
            f"{run_dir} is no run folder (it has no config.yaml); give the run.dir of python -m pipeline.pretrain"
        )
    settings = load_settings(run_dir / "config.yaml", [])
    metrics = read_lines(run_dir / "metrics.jsonl")
    events = read_events(run_dir)
    reconstruction = _read_json(run_dir / "evaluation" / "reconstruction.json")
    # The curve is that of all data sets of a mixture, or of both views of a cross-scale model; baselines are of less,
    # or of another data set that the run was evaluated on.
    has_baselines = not settings.data.mixture and not settings.model.get("cross_scale")
    if reconstruction is not None and reconstruction.get("data_url", settings.data.url) != settings.data.url:
        has_baselines = False
    about = _read_json(run_dir / "environment.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "figures": _figures, "percent": _percent}
    html = environment.get_template("report.html.j2").render(
        run_dir=str(run_dir),
        settings=settings,
        settings_text=(run_dir / "config.yaml").read_text(),
        environment=about,
        trained=fingerprints(about, settings.data.url),
        data=describe_data(settings.data.url),
        loss=describe_loss(metrics, events, reconstruction if has_baselines else None, settings.data.split),
        throughput=describe_throughput(metrics),
        reconstruction=reconstruction,
        pictures=describe_pictures(run_dir / "evaluation" / "reconstructions.npz"),
        probe=_read_json(run_dir / "evaluation" / "linear.json"),
        knn=_read_json(run_dir / "evaluation" / "knn.json"),
        events=events,
        event_titles=_EVENT_TITLES,
    )
    path = out or run_dir / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, html)
    return path


def fingerprints(environment: dict[str, Any] | None, url: str) -> list[str]:
    """Of what the run was trained on at `url`; of a mixture, nothing when none of its data sets lies there."""
    if not environment:
        return []
    if members := environment.get("mixture"):
        return [m["fingerprint"] for m in members.values() if m["url"].rstrip("/") == url.rstrip("/")]
    return [environment["data_fingerprint"]] if environment.get("data_fingerprint") else []


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """The run's events in order of time; those that several ranks report, once.

    An attempt that was followed by another without saying how it ended gets a `lost` event, unless a `kill` is on
    record.
    """
    events: list[dict[str, Any]] = []
    seen: set[tuple[str, int]] = set()
    for path in sorted(run_dir.glob("events-*.jsonl")):
        fresh = [event for event in read_lines(path) if (event["event"], event["step"]) not in seen]
        seen |= {(event["event"], event["step"]) for event in fresh}
        events += fresh
    events.sort(key=lambda event: str(event["time"]))
    told: list[dict[str, Any]] = []
    running = False
    for event in events:
        if event["event"] in ("start", "resume"):
            if running:
                told.append({"event": "lost", "time": "", "step": max(e["step"] for e in told)})
            running = True
        elif event["event"] in ("stop", "done", "kill"):
            running = False
        told.append(event)
    return told


def describe_loss(
    metrics: list[dict[str, Any]],
    events: list[dict[str, Any]],
    reconstruction: dict[str, Any] | None,
    split: str,
) -> dict[str, Any] | None:
    """The loss curve's figure and its fall; None when nothing was logged."""
    from pipeline.report_figures import loss_figure

    finite = [line for line in metrics if line.get("loss") is not None and math.isfinite(line["loss"])]
    if not finite:
        return None
    curves = {"total": [line["loss"] for line in finite]}
    for key in finite[0]:
        if key.startswith("loss_") and all(isinstance(line.get(key), int | float) for line in finite):
            name = key.removeprefix("loss_")
            curves[_MODALITY_TITLES.get(name, name)] = [line[key] for line in finite]
    baselines: dict[str, float] = {}
    measured = (reconstruction or {}).get("splits", {}).get(split)
    if measured:
        baselines = {"bands' means": measured["band_mean"]["total"], "shuffled": measured["shuffled"]["total"]}
    interruptions: list[tuple[int | None, int]] = []
    killed: int | None = None
    for event in events:
        if event["event"] == "kill":
            killed = event["step"]
        elif event["event"] == "resume":
            interruptions.append((killed, event.get("from_step", event["step"])))
            killed = None
    return {
        "figure": loss_figure([line["step"] for line in finite], curves, baselines, interruptions),
        "fall": loss_fall(curves["total"]),
        "steps": finite[-1]["step"],
        "samples": finite[-1].get("samples"),
        "resumes": len(interruptions),
        "not_finite": len(metrics) - len(finite),
        "has_baselines": bool(baselines),
    }


def describe_throughput(metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The throughput's figure and summary; None when nothing was logged."""
    from pipeline.report_figures import throughput_figure

    timed = [line for line in metrics if line.get("samples_per_s") and line.get("step_s")]
    if not timed:
        return None
    shares = [line["data_wait_s"] / line["step_s"] for line in timed]
    return {
        "figure": throughput_figure(
            [line["step"] for line in timed], [line["samples_per_s"] for line in timed], shares
        ),
        "samples_per_s": statistics.median(line["samples_per_s"] for line in timed),
        "waiting": sum(line["data_wait_s"] for line in timed) / sum(line["step_s"] for line in timed),
        "mfu": _median([line.get("mfu") for line in timed]),
        "memory_gib": max((line["memory_gib"] for line in timed if line.get("memory_gib")), default=None),
    }


def describe_data(url: str) -> dict[str, Any]:
    """Counts, bands, labels and the map of a data set; only `problem` when it cannot be read."""
    import numpy as np

    from pipeline.report_figures import map_figure
    from sharding.dataset import open_dataset
    from sharding.shard_index import parse_index

    try:
        store, manifest = open_dataset(url)
        parts = [
            (shard.split, parse_index(store.read(shard.index_path), store.name(shard.index_path)).records)
            for shard in manifest.shards
        ]
    except FusMAEError as error:
        return {"problem": str(error)}
    splits = list(manifest.splits)
    label_counts = {word: dict.fromkeys(splits, 0) for word in manifest.labels}
    for split, records in parts:
        for bit, word in enumerate(manifest.labels):
            label_counts[word][split] += int((records["labels"] >> np.uint64(bit) & np.uint64(1)).sum())
    lon, lat = (np.concatenate([records[axis] for _, records in parts]) for axis in ("lon", "lat"))
    split_of = np.repeat([split for split, _ in parts], [len(records) for _, records in parts])
    known = np.isfinite(lon) & np.isfinite(lat)
    first = manifest.arrays[0]
    return {
        "problem": None,
        "manifest": manifest,
        "samples": sum(manifest.splits.values()),
        "num_bytes": sum(shard.num_bytes for shard in manifest.shards),
        "labels": sorted(label_counts.items(), key=lambda item: -sum(item[1].values())),
        "unused_labels": [word for word, counts in label_counts.items() if not any(counts.values())],
        "map": map_figure(lon[known], lat[known], split_of[known].tolist(), first.width * first.gsd_m)
        if known.any()
        else None,
        "without_place": int((~known).sum()),
    }


def describe_pictures(path: Path) -> list[dict[str, Any]] | None:
    """Reconstructions as PNG, in physical units with a stretch taken from the input; None when there are none."""
    import numpy as np

    from pipeline.report_figures import picture

    if not path.exists():
        return None
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    panels = json.loads(str(arrays["panels"]))
    samples: list[dict[str, Any]] = []
    for number, key in enumerate(arrays["keys"].tolist()[:MAX_PICTURES]):
        rows = []
        for panel in panels:
            name = panel["name"]
            before, after = arrays[f"{name}.input"][number], arrays[f"{name}.reconstruction"][number]
            hidden = arrays[f"{name}.hidden"][number]
            low, high = (float(value) for value in np.percentile(before, (2, 98)))
            scale = before.shape[1] // hidden.shape[0], before.shape[2] // hidden.shape[1]
            pixels = np.kron(hidden, np.ones(scale)).astype(bool)
            error = (after - before)[:, pixels]
            rows.append(
                panel
                | {
                    "low": low,
                    "high": high,
                    "rmse": float(np.sqrt(np.mean(np.square(error)))) if error.size else None,
                    "spread": float(np.mean(before.std(axis=(1, 2)))),
                    "input": picture(before, None, low, high),
                    "masked": picture(before, hidden, low, high),
                    "reconstruction": picture(after, None, low, high),
                }
            )
        samples.append({"key": key, "rows": rows})
    return samples


def _read_json(path: Path) -> Any:
    """What the file holds; None when it is not there."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); delete it and make it again") from error


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _count(value: float) -> str:
    """A number for people: 1,234 or 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def _figures(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash in a table


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"  # noqa: RUF001 - a dash in a table


def main(argv: list[str] | None = None) -> int:
    """Write the report of a run folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.report", description=main.__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run (run.dir)")
    parser.add_argument("--out", metavar="FILE", help="where to write it; default: report.html in the run folder")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    path = write_report(Path(arguments.run_dir), Path(arguments.out) if arguments.out else None)
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    run_command(main)
