"""`python -m benchmarks.variants DATASET_URL`: variants of Fus-MAE beside each other, at the same budget.

Each variant is pretrained with configs/demo.yaml and its own overrides, once for each seed, on the split train; a
linear probe and kNN are then fitted to the frozen features of that split and scored on the split test. Beside them
stand two floors that were never trained: plain statistics of the bands, and the encoder of `no-fusion` as it begins.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.sensor_features import INPUTS, SensorFeatures, collect
from benchmarks.table import machine, write_section
from benchmarks.variants_table import Study, as_markdown
from fusmae.config import S1, S2
from pipeline.command import run_command
from pipeline.config import load_settings, model_config, with_model
from pipeline.data_settings import DataSettings
from pipeline.errors import ConfigError, FusMAEError

CONFIG: Final = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
REFERENCE: Final = "no-fusion"
STATISTICS, UNTRAINED = "band statistics (floor)", "untrained encoder (floor)"

_NONE = {"model.encoder_fusion": "none", "model.decoder_fusion": "none"}
_XAE = _NONE | {"model.encoder_fusion": "xae"}
_STACKED = [{"name": "stacked", "bands": [band for modality in (S1, S2) for band in modality.bands]}]

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    REFERENCE: _NONE,
    "xae": _XAE,
    "xad": _NONE | {"model.decoder_fusion": "xad"},
    "xae-xad": _XAE | {"model.decoder_fusion": "xad"},
    "multimae": _NONE
    | {"model.decoder_fusion": "multimae", "model.masking": "dirichlet", "model.decode_global_token": True},
    "satvit": _NONE
    | {
        "model.modalities": _STACKED,
        "model.global_token": False,
        "model.target_norm": "per_patch",
        "model.decoder_depth": 1,
    },
    "xae-consistent": _XAE | {"model.masking": "consistent"},
    "cross-scale": _XAE | {"model.cross_scale": {}},
}
"""By name, what differs from configs/demo.yaml: any key of a run. As the presets of the same names in configs/."""

_QUICK = (
    *("model.image_size=24", "model.width=32", "model.heads=4", "model.decoder_width=16", "model.decoder_heads=2"),
    "train.global_batch=4",
)
_QUICK_VARIANTS = (REFERENCE, "satvit")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, and how its features are read."""

    url: str
    names: tuple[str, ...]
    seeds: int
    steps: int
    overrides: tuple[str, ...]
    """Of every run."""
    probe_epochs: int
    neighbours: int
    resamples: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", metavar="DATASET_URL", help="data set with labels and the splits train and test")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run, such as model.depth=4")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant (default: 3)")
    parser.add_argument("--steps", type=int, default=300, help="steps of each run (default: 300)")
    parser.add_argument("--global-batch", type=int, default=32, help="pairs of a step (default: 32)")
    parser.add_argument("--only", metavar="NAMES", help=f"with commas between them, of {', '.join(VARIANTS)}")
    parser.add_argument("--probe-epochs", type=int, default=560, help="of the linear probe (default: 560)")
    parser.add_argument("--neighbours", type=int, default=20, help="of kNN (default: 20)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the test samples (default: 1000)")
    parser.add_argument("--keep", metavar="DIR", help="keep the runs there; those that are there go on or are reused")
    parser.add_argument("--quick", action="store_true", help="two tiny variants, one seed, 4 steps, 50 resamples")
    parser.add_argument("--into", metavar="FILE", help="also write the tables into this Markdown file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    plan_of = parser.parse_intermixed_args(argv)
    plan = _plan(plan_of)
    if plan_of.keep:
        study = run_study(plan, Path(plan_of.keep))
    else:
        with tempfile.TemporaryDirectory(prefix="variants-") as folder:
            study = run_study(plan, Path(folder))
    print(json.dumps({"machine": machine()} | study.as_dict(), indent=1) if plan_of.json else as_markdown(study))
    if plan_of.into:
        write_section(Path(plan_of.into), "variants", as_markdown(study))
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    names = (
        tuple(arguments.only.split(",")) if arguments.only else (_QUICK_VARIANTS if arguments.quick else (*VARIANTS,))
    )
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ConfigError(
            f"--only {arguments.only}: there is no variant '{unknown[0]}'; known are {', '.join(VARIANTS)}"
        )
    counts = {"--seeds": arguments.seeds, "--steps": arguments.steps, "--resamples": arguments.resamples}
    for option, count in counts.items():
        if count < 1:
            raise ConfigError(f"{option} {count} must be at least 1")
    seeds, steps, resamples = (1, 4, 50) if arguments.quick else counts.values()
    own = _QUICK if arguments.quick else (f"train.global_batch={arguments.global_batch}",)
    return Plan(
        url=arguments.url,
        names=names,
        seeds=seeds,
        steps=steps,
        overrides=(*own, *arguments.overrides),
        probe_epochs=arguments.probe_epochs,
        neighbours=arguments.neighbours,
        resamples=resamples,
    )


def run_study(plan: Plan, folder: Path) -> Study:
    """Train what is not there yet in `folder` and read all features."""
    splits = _untrained(plan, 0)
    study = Study(
        labels=splits["test"].labels.numpy(),
        num_train=len(splits["train"].labels),
        about={
            "data_url": plan.url,
            "steps": plan.steps,
            "overrides": list(plan.overrides),
            "seeds": plan.seeds,
            "probe_epochs": plan.probe_epochs,
            "neighbours": plan.neighbours,
        },
        reference=REFERENCE,
        num_resamples=plan.resamples,
    )
    _read(study, plan, STATISTICS, splits, of="statistics")
    for seed in range(plan.seeds):
        _read(study, plan, UNTRAINED, _untrained(plan, seed))
    for name in plan.names:
        for seed in range(plan.seeds):
            run_dir = folder / f"{name}-seed{seed}"
            _pretrain(plan, name, seed, run_dir)
            trained = _trained(plan, run_dir)
            if trained["test"].keys != splits["test"].keys:
                raise FusMAEError(f"{run_dir} was scored on other samples than the floors; compare nothing with it")
            _read(study, plan, name, trained)
            about = json.loads((run_dir / "environment.json").read_text())
            study.costs[name] = (about["parameters"], about["train_flops_per_sample"])
    return study


def run_overrides(plan: Plan, name: str, seed: int) -> list[str]:
    """What is written behind `python -m pipeline.pretrain configs/demo.yaml`, the run's folder apart."""
    budget = {
        "data.url": plan.url,
        "train.steps": plan.steps,
        "optim.warmup_steps": plan.steps // 10,
        "checkpoint.every": plan.steps,
        "log.every": max(1, plan.steps // 10),
        "log.trace": False,
        "log.tensorboard": False,
        "run.num_processes": 1,
        "train.seed": seed,
    }
    settings = [f"{key}={json.dumps(value)}" for key, value in (budget | VARIANTS[name]).items()]
    return [*settings, *plan.overrides]


def _pretrain(plan: Plan, name: str, seed: int, run_dir: Path) -> None:
    """Train `name` in `run_dir`, from where it stands there."""
    overrides = [*run_overrides(plan, name, seed), f"run.dir={run_dir}"]
    if _is_done(overrides, run_dir, plan.steps):
        return
    print(f"{name}, seed {seed}: {plan.steps} steps", file=sys.stderr, flush=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    # Not as a rank of whatever may have started this process.
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "pipeline.pretrain", str(CONFIG), *overrides]
    with (run_dir / "log.txt").open("a") as log:
        ran = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if ran.returncode:
        said = (run_dir / "log.txt").read_text().splitlines() or ["nothing"]
        errors = [line for line in said if line.startswith("error: ")] or said
        raise FusMAEError(f"the pretraining of {name} with seed {seed} failed: {errors[-1].removeprefix('error: ')}")


def _is_done(overrides: list[str], run_dir: Path, steps: int) -> bool:
    """Whether the run is finished; ConfigError when what lies there is of another study."""
    from pipeline.run_folder import check_resumable
    from sharding.dataset import read_manifest

    settings = load_settings(CONFIG, overrides)
    changed = check_resumable(with_model(settings, model_config(settings)))
    if others := [key for key in changed if not key.startswith("run.")]:
        raise ConfigError(f"{run_dir} holds a run with another {', '.join(others)}; give another --keep or remove it")
    outcome = run_dir / "outcome.json"
    if not outcome.exists():
        return False
    begun_on = json.loads((run_dir / "environment.json").read_text())["data_fingerprint"]
    if begun_on != read_manifest(settings.data.url).fingerprint:
        raise ConfigError(f"{run_dir} holds a run on another data set; give another --keep or remove it")
    word = json.loads(outcome.read_text())
    return bool(word["outcome"] == "done" and word["step"] == steps)


def _trained(plan: Plan, run_dir: Path) -> dict[str, SensorFeatures]:
    from pipeline.frozen import open_frozen

    frozen = open_frozen(str(run_dir), DataSettings(url=plan.url, threads=1), "auto")
    if frozen.step != plan.steps:
        raise FusMAEError(f"the newest whole checkpoint of {run_dir} is of step {frozen.step}, not {plan.steps}")
    return {split: collect(frozen, split) for split in ("train", "test")}


def _untrained(plan: Plan, seed: int) -> dict[str, SensorFeatures]:
    """Of the weights with which the reference's run of this seed begins."""
    import torch

    from fusmae import FusMAE
    from pipeline.distributed import choose_device
    from pipeline.frozen import FrozenModel
    from pipeline.stream.exact import read_image_manifest
    from pipeline.transform import ImageTransform

    settings = load_settings(CONFIG, [*run_overrides(plan, REFERENCE, seed), "run.dir=none"])
    config = model_config(settings)
    manifest, device = read_image_manifest(plan.url), choose_device("auto", 0)
    torch.manual_seed(seed)
    frozen = FrozenModel(
        model=FusMAE(config).to(device).eval(),
        step=0,
        run_dir=Path(settings.run.dir),
        data=DataSettings(url=plan.url, threads=1),
        manifest=manifest,
        transform=ImageTransform(
            manifest, [(m.name, m.bands) for m in config.modalities], config.image_size, flips=False
        ),
        device=device,
    )
    return {split: collect(frozen, split) for split in ("train", "test")}


def _read(study: Study, plan: Plan, name: str, splits: dict[str, SensorFeatures], of: str = "encoder") -> None:
    """Add the scores that a linear probe and kNN give the test samples, for each input."""
    from pipeline.evaluation.task import MULTI_LABEL
    from pipeline.features import standardise
    from pipeline.linear import ProbeSettings, score_probe
    from pipeline.neighbours import neighbour_scores

    labels = splits["train"].labels
    for given in INPUTS:
        train, test = standardise(*(getattr(splits[split], of)[given] for split in ("train", "test")))
        probed = score_probe(train, test, labels, 0, MULTI_LABEL, ProbeSettings(epochs=plan.probe_epochs))
        study.add(name, given, "linear", probed.double().numpy())
        study.add(name, given, "kNN", neighbour_scores(train, test, labels, plan.neighbours).double().numpy())


if __name__ == "__main__":
    run_command(main)
