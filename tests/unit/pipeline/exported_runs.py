"""Small runs to export: random weights under a real run folder, and what is given to the exported model."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import google_crc32c
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import fusmae.config
from fusmae import FusMAE
from fusmae.cross_scale import CrossScaleFusMAE
from pipeline.config import cross_scale_config, load_settings, model_config
from pipeline.export.command import main
from pipeline.stream.batch import Batch
from tests.unit.pipeline.small_shards import Made

SMALL: Mapping[str, Any] = {
    "image_size": 12,
    "patch_size": 4,
    "width": 16,
    "depth": 3,
    "heads": 2,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "attention_backend": "sdpa",
}
S2 = fusmae.config.S2.bands


def make_run(
    folder: Path, url: str, model: Mapping[str, Any] = {}, data: Mapping[str, Any] = {}, fingerprint: Any = None
) -> Path:
    """A run at step 7 with random weights, biases and norms too."""
    run = folder / "run"
    checkpoint = run / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    settings = {
        "data": {"url": url, **data},
        "train": {"steps": 9, "global_batch": 8},
        "run": {"dir": str(run)},
        "model": {**SMALL, **model},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    loaded = load_settings(run / "config.yaml", [])
    torch.manual_seed(0)
    config, cross_scale = model_config(loaded), cross_scale_config(loaded)
    made = FusMAE(config) if cross_scale is None else CrossScaleFusMAE(config, cross_scale)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    weights = checkpoint / "model.safetensors"
    save_file(made.state_dict(), weights)
    files = {weights.name: [weights.stat().st_size, google_crc32c.value(weights.read_bytes())]}
    about = {"step": 7, "world_size": 2, "files": files, "data_fingerprint": fingerprint}
    (checkpoint / "manifest.json").write_text(json.dumps(about))
    return run


def export(run: Path, *arguments: str) -> Path:
    """The folder that the command writes beside the run."""
    out = run.parent / "exported"
    assert main([str(run), "--out", str(out), *arguments]) == 0
    return out


def inference(folder: Path) -> ModuleType:
    """The exported folder's own file."""
    spec = importlib.util.spec_from_file_location("exported_inference", folder / "fusmae_inference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raw_images(made: Made, batch: Batch) -> dict[str, dict[str, Tensor]]:
    """The batch's stored numbers by sensor and band, each at its own resolution."""
    bands = {
        band: batch.arrays[spec.name][:, plane].clone()
        for spec in made.manifest.arrays
        for plane, band in enumerate(spec.bands)
    }
    return {"s1": {band: bands[band] for band in ("VV", "VH")}, "s2": {band: bands[band] for band in S2}}


def random_images(count: int = 2, size: int = 12) -> dict[str, Tensor]:
    """Decibels and digital numbers."""
    draws = torch.Generator().manual_seed(3)
    s1 = torch.randn(count, 2, size, size, generator=draws) * 3 - 12
    return {"s1": s1, "s2": torch.randint(1000, 4000, (count, len(S2), size, size), generator=draws).float()}
