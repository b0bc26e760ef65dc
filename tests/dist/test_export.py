"""The export of a run that was trained with ZeRO-3 on two ranks: weights that no rank had whole."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from pipeline.evaluate import resolve_settings
from pipeline.frozen import open_frozen
from tests.dist.conftest import ROOT, Run
from tests.unit.pipeline.exported_runs import inference

pytestmark = pytest.mark.dist


def test_a_run_under_zero_3_is_exported_without_the_training_stack(new_run: Callable[..., Run]) -> None:
    run = new_run("run", "engine.zero_stage=3", "engine.precision=fp32", "train.steps=4")
    run.finish()
    out = run.dir.parent / "exported"
    program = (
        "import sys; sys.modules['deepspeed'] = sys.modules['xformers'] = None\n"
        "from pipeline.export.command import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(run.dir), "--out", str(out), "--timm"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    config, card = json.loads((out / "config.json").read_text()), (out / "README.md").read_text()
    assert config["training"]["zero_stage"] == 3 and config["training"]["world_size"] == 2 and config["step"] == 4
    assert "| engine | deepspeed ZeRO-3, fp32, 2 ranks |" in card and "bigearthnet-v1" in card
    newest = run.dir / "checkpoints" / "step-00000004" / "model.safetensors"
    trained, exported = load_file(newest), load_file(out / "full" / "model.safetensors")
    assert trained.keys() == exported.keys() and all(torch.equal(trained[name], exported[name]) for name in trained)
    model = inference(out).load(out)
    frozen = open_frozen(str(run.dir), resolve_settings(str(run.dir), []).data, "cpu")
    for batch, images, _ in frozen.batches("test", 2):
        raw = {
            name: {
                band: batch.arrays[spec.name][:, plane]
                for spec in frozen.manifest.arrays
                for plane, band in enumerate(spec.bands)
                if band in bands
            }
            for name, bands in model.bands.items()
        }
        for given in (["s1"], ["s2"], ["s1", "s2"]):
            with torch.inference_mode():
                ours = frozen.model.features({name: images[name] for name in given})
                assert torch.equal(model({name: raw[name] for name in given}), ours)
