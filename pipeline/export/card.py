"""The model card: what the exported model is, filled from the run. No place of a file and no host is told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.evaluation.label_table import has_average_precision
from pipeline.metrics import read_lines

if TYPE_CHECKING:
    from pipeline.export.source import Source

_EVALUATIONS: Final = {"linear": "linear probe", "knn": "kNN"}


def write_card(source: "Source", path: Path, *, timm: bool = False, graphs: Sequence[str] = ()) -> None:
    """Write it to `path`; `timm` and `graphs` say what else is in the folder."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    run_dir = source.loaded.run_dir
    about = _read_json(run_dir / "environment.json") or {}
    path.write_text(
        environment.get_template("model_card.md.j2").render(
            config=source.config,
            model=source.config["model"],
            training=source.config["training"],
            bands=_bands(source.config),
            parameters=sum(value.numel() for value in source.encoder_weights.values()),
            all_parameters=sum(value.numel() for value in source.loaded.weights.values()),
            loss=_loss(run_dir, source.loaded.step),
            scores=_scores(run_dir, source.loaded.step),
            packages={name: version for name, version in (about.get("packages") or {}).items() if version},
            commit=about.get("git"),
            timm=timm,
            graphs=graphs,
        )
    )


def _bands(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each band of the model, with its facts in the first data set that has it."""
    rows = []
    for modality in config["model"]["modalities"]:
        for channel, band in enumerate(modality["bands"]):
            facts = next(entry["bands"][band] for entry in config["data_sets"] if band in entry["bands"])
            rows.append({"sensor": modality["name"], "channel": channel, "band": band} | facts)
    return rows


def _loss(run_dir: Path, step: int) -> float | None:
    """The loss that was logged at the step, or last before it."""
    logged = read_lines(run_dir / "metrics.jsonl")
    before = [line["loss"] for line in logged if line.get("step", 0) <= step and "loss" in line]
    return before[-1] if before else None


def _scores(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Average precisions of the evaluations that were made of this very step."""
    rows = []
    for name, title in _EVALUATIONS.items():
        stored = _read_json(run_dir / "evaluation" / f"{name}.json")
        if stored is None or stored["step"] != step or not has_average_precision(stored):
            continue
        for result in stored["results"]:
            rows.append(
                {
                    "title": title,
                    "sensors": result["modalities"],
                    "encoder": result["encoder"],
                    "floor": result["colour_statistics"],
                    "fingerprint": stored["data_fingerprint"][:12],
                    "split": stored["splits"]["test"]["split"],
                    "samples": stored["splits"]["test"]["samples"],
                }
            )
    return rows


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return content
