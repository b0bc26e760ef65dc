"""Initial weights: files as people save them, and runs that start from one."""

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusmae import FusMAE
from pipeline.config import load_settings, model_config
from pipeline.errors import ConfigError
from pipeline.pretrained import read_state_dict, start_from

ROOT = Path(__file__).resolve().parents[3]
WIDTH, DEPTH = 16, 2
CONFIG = """
data: {{url: {url}, threads: 1}}
train: {{steps: 1, global_batch: 4, seed: 3, init_weights: {weights}}}
optim: {{lr: 1e-30}}
engine: {{device: cpu, precision: fp32}}
log: {{tensorboard: false}}
run: {{dir: {run}, num_processes: 2, threads: 1}}
model: {{image_size: 12, patch_size: 4, width: 16, depth: 2, heads: 2, decoder_width: 16, decoder_depth: 1,
        decoder_heads: 2, attention_backend: sdpa}}
"""


def vit(width=WIDTH, depth=DEPTH):
    """Random weights under timm's names."""
    draws = torch.Generator().manual_seed(5)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 10, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, 8, 8), "patch_embed.proj.bias": (width,)}
    layers = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for number in range(depth):
        for layer, shape in layers.items():
            shapes |= {f"blocks.{number}.{layer}.weight": shape, f"blocks.{number}.{layer}.bias": shape[:1]}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def prefixed(prefix):
    return {f"{prefix}{key}": value for key, value in vit().items()}


class RunsWhenRead:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "saved",
    [
        vit(),
        {"model": vit()},
        {"state_dict": vit(), "epoch": 3},
        {"module": {"model": vit()}},
        {"model": prefixed("module.")},
        {"model": prefixed("encoder."), "args": argparse.Namespace(lr=0.1, model="mae_vit_base_patch16")},
        prefixed("module.encoder."),
    ],
)
def test_weights_are_found_however_they_were_wrapped(tmp_path, saved):
    path = tmp_path / "vit.pth"
    torch.save(saved, path)
    assert same(read_state_dict(str(path)), vit())


def test_a_decoder_beside_the_encoder_keeps_its_prefix(tmp_path):
    path = tmp_path / "mae.pt"
    torch.save(prefixed("encoder.") | {"decoder.blocks.0.norm1.weight": torch.ones(3)}, path)
    assert read_state_dict(str(path)).keys() == {*vit(), "decoder.blocks.0.norm1.weight"}


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(prefixed("module."), path)
    assert same(read_state_dict(str(path)), vit())


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
def test_weights_are_read_from_a_store(tmp_path, name):
    path = tmp_path / name
    save_file(vit(), path) if path.suffix == ".safetensors" else torch.save({"model": vit()}, path)
    fsspec.filesystem("memory").pipe_file(f"/weights/{name}", path.read_bytes())
    assert same(read_state_dict(f"memory://weights/{name}"), vit())


@pytest.mark.parametrize("place", ["{folder}/none.pth", "memory://weights/none.pth"])
def test_a_missing_file_is_named(tmp_path, place):
    place = place.format(folder=tmp_path)
    with pytest.raises(ConfigError, match=f"cannot read the weights {place}"):
        read_state_dict(place)


def torch_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


NO_WEIGHTS = {
    "text": ("vit.pth", b"<html>not found</html>", "is no file of weights"),
    "empty": ("vit.pth", b"", "is no file of weights"),
    "cut": ("vit.pth", torch_file(vit())[:2000], "is no whole file of torch.save"),
    "cut pickle": ("vit.pth", pickle.dumps(7, protocol=2)[:-1], "is no whole file of torch.save"),
    "cut safetensors": ("vit.safetensors", b"\x40\0\0\0\0\0\0\0{", "is no whole safetensors file"),
    "list": ("vit.pth", torch_file([torch.ones(1)]), "holds a list, no weights by name"),
    "numbers": ("vit.pth", torch_file({"epoch": 3, "lr": 0.1}), "holds no tensors; its keys are epoch, lr"),
    "empty wrapper": ("vit.pth", torch_file({"model": {}}), "holds no tensors; its keys are none"),
    "twice": (
        "vit.pth",
        torch_file({"norm.weight": torch.ones(1), "module.norm.weight": torch.ones(1)}),
        "holds 'norm.weight' twice, with and without 'module.'",
    ),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_a_file_without_weights_is_named_with_what_is_wrong(tmp_path, kind):
    name, content, message = NO_WEIGHTS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_state_dict(str(path))
    assert str(error.value).startswith(f"{path} {message}") and "\n" not in str(error.value)


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(tmp_path):
    path, made_by_it = tmp_path / "vit.pth", tmp_path / "made_by_it"
    torch.save({"model": vit(), "args": RunsWhenRead(made_by_it)}, path)
    with pytest.raises(ConfigError, match=r"vit\.pth holds more than tensors \(posix\.mkdir\)"):
        read_state_dict(str(path))
    assert not made_by_it.exists()
    torch.load(path, weights_only=False)
    assert made_by_it.exists()  # it would have


@pytest.fixture
def settings(tmp_path, made):
    """The settings of a run that starts from a ViT's file, at lr 1e-30: its one step changes no weight."""
    path = tmp_path / "config.yaml"
    weights = tmp_path / "vit.pth"
    torch.save({"model": vit()}, weights)
    path.write_text(CONFIG.format(url=made.url, weights=weights, run=tmp_path / "run"))
    return path


def initial_weights(settings, *overrides):
    """What a run must start with, made here."""
    loaded = load_settings(settings, list(overrides))
    torch.manual_seed(loaded.train.seed)
    model = FusMAE(model_config(loaded))
    if loaded.train.init_weights:
        start_from(model, loaded.train.init_weights, lambda _: None)
    return model.state_dict()


def pretrain(settings, *overrides, code=0):
    command = [sys.executable, "-m", "pipeline.pretrain", str(settings), *overrides]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def is_untouched(found, expected):
    """Equal, but for zeros: a step at lr 1e-30 is no step for any other number."""
    return found.keys() == expected.keys() and all(
        torch.equal(torch.where(value.abs() < 1e-20, 0.0, value), expected[name]) for name, value in found.items()
    )


def trained(settings):
    run = Path(load_settings(settings, []).run.dir)
    return load_file(max((run / "checkpoints").glob("step-*")) / "model.safetensors")


def test_what_was_loaded_is_said_line_by_line(settings):
    said = []
    weights = load_settings(settings, []).train.init_weights
    report = start_from(FusMAE(model_config(load_settings(settings, []))), weights, said.append)
    assert said == [f"initial weights from {weights}", *report.describe()]


def test_a_vit_of_another_size_is_refused_by_the_files_name(settings, tmp_path):
    other = tmp_path / "large.pth"
    torch.save(vit(depth=3), other)
    with pytest.raises(ConfigError, match=r"large\.pth cannot start this model: the ViT has 3 blocks, the model 2"):
        start_from(FusMAE(model_config(load_settings(settings, []))), str(other), print)


def test_our_own_checkpoint_is_no_vit(settings, tmp_path):
    own = tmp_path / "own.safetensors"
    save_file(initial_weights(settings), own)
    with pytest.raises(ConfigError, match=r"own\.safetensors cannot start this model"):
        start_from(FusMAE(model_config(load_settings(settings, []))), str(own), print)


@pytest.mark.dist
@pytest.mark.parametrize("engine", [["engine.name=ddp"], ["engine.zero_stage=3"]])
def test_a_run_starts_from_the_file_says_so_and_does_not_read_it_again(settings, engine):
    said = pretrain(settings, *engine)
    expected = initial_weights(settings)
    weights = Path(load_settings(settings, []).train.init_weights)
    assert is_untouched(trained(settings), expected)
    assert not is_untouched(trained(settings), initial_weights(settings, "train.init_weights=''"))
    assert said.count(f"initial weights from {weights}") == 1
    run = Path(load_settings(settings, []).run.dir)
    (event,) = (
        json.loads(line)
        for line in (run / "events-rank00000.jsonl").read_text().splitlines()
        if json.loads(line)["event"] == "init_weights"
    )
    assert event["file"] == str(weights) and event["step"] == 0
    assert {*event["loaded"], *event["left"]} == expected.keys()
    assert event["unused"] == {"pos_embed": "the model's positions are fixed"}
    if "engine.name=ddp" not in engine:
        return
    weights.unlink()
    said = pretrain(settings, *engine, "run.num_processes=1", "train.steps=2", "train.init_weights=elsewhere.pth")
    assert "resumed at step 1" in said and "train.init_weights is read at the start only" in said
    assert is_untouched(trained(settings), expected)


@pytest.mark.dist
def test_a_run_at_two_scales_starts_from_the_file_too(settings):
    said = pretrain(settings, "run.num_processes=1", "engine.name=ddp", "model.cross_scale={}")
    expected = initial_weights(settings, "model.cross_scale={}")
    found = {name.removeprefix("fusmae."): value for name, value in trained(settings).items() if "fusmae." in name}
    assert "initial weights from" in said and is_untouched(found, expected)


@pytest.mark.dist
def test_a_wrong_file_stops_the_run_before_its_first_step(settings, tmp_path):
    weights = tmp_path / "vit.pth"
    torch.save({"model": vit(width=32)}, weights)
    said = pretrain(settings, "engine.name=ddp", code=2)
    assert "cannot start this model: the ViT is 32 wide, the model 16" in said and "Traceback" not in said
    run = tmp_path / "run"
    assert json.loads((run / "outcome.json").read_text())["outcome"] == "fatal"
    assert not (run / "checkpoints").exists() and not (run / "metrics.jsonl").exists()


SHARE = """
import sys
import torch, torch.distributed as dist
from fusmae import FusMAE
from pipeline.config import load_settings, model_config
from pipeline.pretrained import start_all_from
rank, config, store, weights, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)
model = FusMAE(model_config(load_settings(config, [])))
report = start_all_from(model, weights if rank == 0 else "only/rank/0/reads", rank == 0, dist.group.WORLD)
assert (report is None) == (rank == 1)
torch.save(model.state_dict(), out)
dist.barrier()  # a rank that leaves earlier may end the other one's threads
dist.destroy_process_group()
"""


@pytest.mark.dist
def test_only_rank_0_reads_the_file_and_all_ranks_have_its_weights(settings, tmp_path):
    weights = load_settings(settings, []).train.init_weights
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    arguments = [str(settings), str(tmp_path / "store"), weights]
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARE, str(rank), *arguments, str(out)], cwd=ROOT)
        for rank, out in enumerate(outs)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    first, second = (torch.load(out) for out in outs)
    assert same(first, second)
    assert torch.equal(first["encoder.norm.weight"], vit()["norm.weight"])
