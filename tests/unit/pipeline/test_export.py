"""python -m pipeline.export: the folder, its card, and what is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.command import exit_code
from pipeline.export import folder as folder_module
from pipeline.export import source as source_module
from pipeline.export.command import main
from pipeline.export.folder import load_exported
from pipeline.stream.exact import evaluation_batches
from pipeline.transform import ImageTransform
from tests.unit.pipeline.exported_runs import S2, export, inference, make_run, random_images, raw_images
from tests.unit.pipeline.small_shards import Made, make

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path, made: Made) -> Path:
    return make_run(tmp_path, made.url, fingerprint=made.manifest.fingerprint)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_holds_encoder_model_settings_card_and_code(run: Path, made: Made) -> None:
    out = export(run)
    assert set(_files(out)) == {
        "README.md",
        "config.json",
        "full/model.safetensors",
        "fusmae_inference.py",
        "fusmae_terratorch.py",
        "fusmae_torchgeo.py",
        "model.safetensors",
    }
    trained = load_file(run / "checkpoints" / "step-00000007" / "model.safetensors")
    full, encoder = load_file(out / "full" / "model.safetensors"), load_file(out / "model.safetensors")
    assert full.keys() == trained.keys() and all(torch.equal(full[name], trained[name]) for name in trained)
    assert encoder.keys() == {name for name in trained if not name.startswith("decoder.")}
    assert all(torch.equal(encoder[name], trained[name]) for name in encoder)
    assert (out / "fusmae_inference.py").read_text() == (ROOT / "pipeline/export/fusmae_inference.py").read_text()
    config = json.loads((out / "config.json").read_text())
    (data_set,) = config["data_sets"]
    assert data_set["fingerprint"] == made.manifest.fingerprint and data_set["statistics_of"] == "train"
    statistics = made.manifest.statistics["train"]
    assert {band: (facts["mean"], facts["std"]) for band, facts in data_set["bands"].items()} == {
        band: (statistics[band].mean, statistics[band].std) for band in ("VV", "VH", *S2)
    }
    assert data_set["bands"]["VV"]["units"] == "dB" and data_set["bands"]["B02"]["units"] == "DN"
    assert config["step"] == 7 and config["model"]["patch_size"] == 4 and config["training"]["global_batch"] == 8
    assert all(path.stat().st_mode & 0o044 for path in out.rglob("*") if path.is_file())


def test_the_same_checkpoint_gives_the_same_bytes_without_a_place_in_them(run: Path, tmp_path: Path) -> None:
    first = _files(export(run, "--timm"))
    program = [sys.executable, "-m", "pipeline.export", str(run), "--timm", "--out", str(tmp_path / "second")]
    subprocess.run(program, cwd=ROOT, check=True, timeout=120, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert _files(tmp_path / "second") == first
    for name, content in first.items():
        assert str(tmp_path).encode() not in content and str(ROOT).encode() not in content, name


def test_whole_model_reconstructs_as_the_trained_one(run: Path) -> None:
    from fusmae import CounterRandom
    from pipeline.weights import load_model

    images = inference(out := export(run)).load(out).normalise(random_images())
    random = CounterRandom(0, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    ours, theirs = (model.reconstruct(images, random) for model in (load_model(str(run)).model, load_exported(out)))
    assert all(torch.equal(ours.images[name], theirs.images[name]) for name in images)


def test_no_training_stack_is_imported(run: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.export.command import main; main(sys.argv[1:]);"
        "print([name for name in ('deepspeed', 'xformers', 'rasterio') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(run), "--out", str(tmp_path / "out"), "--timm"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout.splitlines()[-1] == "[]", ran.stderr


def test_the_card_tells_bands_data_loss_scores_and_asks_for_a_licence(run: Path, made: Made) -> None:
    (run / "metrics.jsonl").write_text(
        '{"step": 5, "loss": 0.75}\n{"step": 7, "loss": 0.5}\n{"step": 9, "loss": 0.1}\n'
    )
    (run / "environment.json").write_text(
        '{"host": "node7", "packages": {"torch": "2.13.0", "s3fs": null}, "git": "c0ffee"}'
    )
    scores = {"micro": 0.75, "macro": 0.5}
    result = {"modalities": "s1+s2", "encoder": scores, "colour_statistics": {"micro": 0.25, "macro": 0.125}}
    stored = {"step": 7, "data_fingerprint": "ab" * 32, "splits": {"test": {"split": "test", "samples": 8}}}
    (run / "evaluation").mkdir()
    (run / "evaluation" / "linear.json").write_text(json.dumps(stored | {"results": [result]}))
    (run / "evaluation" / "knn.json").write_text(json.dumps(stored | {"step": 6, "results": [result]}))
    card = (export(run) / "README.md").read_text()
    assert made.manifest.fingerprint in card and "synthetic 1" in card
    assert f"| s1 | 0 | VV | dB | {made.manifest.statistics['train']['VV'].mean:.6g} |" in card
    assert [row.split(" | ")[2] for row in card.splitlines() if row.startswith("| s2 |")] == list(S2)
    assert "| loss logged last | 0.5 |" in card and "| packages | torch 2.13.0 |" in card and "c0ffee" in card
    assert "| linear probe | s1+s2 | 0.750 | 0.500 | 0.250 | 0.125 | 8 of test, abababababab |" in card
    assert "kNN" not in card and "node7" not in card
    assert "Licence: to be chosen" in card


def test_the_five_lines_of_the_card_run(run: Path) -> None:
    import numpy as np
    import rasterio

    out, images = export(run), random_images(1)
    for name, image_BCSS in images.items():
        pixels = image_BCSS[0].numpy().astype(np.float32 if name == "s1" else np.uint16)
        profile = {"driver": "GTiff", "count": len(pixels), "width": 12, "height": 12, "dtype": pixels.dtype}
        grid = rasterio.Affine(10, 0, 0, 0, -10, 120)
        with rasterio.open(out / f"{name}.tif", "w", crs="EPSG:32632", transform=grid, **profile) as file:
            file.write(pixels)
    (lines,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) == 5 and lines.splitlines()[-1].startswith("tokens")
    program = lines + "print(features.tolist()); print({name: x.shape for name, x in tokens.items()})"
    ran = subprocess.run([sys.executable, "-c", program], cwd=out, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    features, shapes = ran.stdout.splitlines()
    assert json.loads(features) == inference(out).load(out)(images).tolist()
    assert shapes == "{'s1': torch.Size([1, 9, 16]), 's2': torch.Size([1, 9, 16])}"


def test_a_model_of_a_mixture_has_the_statistics_of_each_data_set(tmp_path: Path) -> None:
    sets = {"one": make(tmp_path / "one"), "two": make(tmp_path / "two", (6,), offset_every=2, pixels=12)}
    mixture = {"mixture": [{"url": made.url, "weight": 1} for made in sets.values()]}
    fingerprint = {name: made.manifest.fingerprint for name, made in sets.items()}
    run = make_run(tmp_path, sets["two"].url, data=mixture, fingerprint=fingerprint)
    out = export(run)
    assert [d["name"] for d in json.loads((out / "config.json").read_text())["data_sets"]] == ["two", "one"]
    assert "Trained on a mixture of `one` (split train, weight 1.0), `two`" in (out / "README.md").read_text()
    for data_set, made in sets.items():
        with evaluation_batches(made.url, "train", 4) as reader:
            batch = next(iter(reader)).copy()
        offset = batch.radiometric_offset[:, 1]
        expected, _ = ImageTransform(made.manifest, [("s1", ("VV", "VH")), ("s2", S2)], 12)(batch, None)
        images = inference(out).load(out, data_set=data_set).normalise(raw_images(made, batch), offset)
        assert all(torch.equal(images[name], expected[name]) for name in images)


def test_a_data_set_that_was_moved_is_named(run: Path, made: Made, tmp_path: Path) -> None:
    made.root.rename(tmp_path / "elsewhere")
    out = tmp_path / "out"
    assert exit_code(main, [str(run), "--out", str(out)]) == 1
    other = make(tmp_path / "other", (3,))
    assert exit_code(main, [str(run), "--out", str(out), "--data", other.url]) == 2
    assert exit_code(main, [str(run), "--out", str(out), "--data", str(tmp_path / "elsewhere")]) == 0


def test_another_data_set_than_that_of_the_training_is_said(run: Path, made: Made, tmp_path: Path, capsys) -> None:
    other = make(tmp_path / "other", (3,))
    assert exit_code(main, [str(run), "--out", str(tmp_path / "out"), "--data", other.url]) == 2
    said = capsys.readouterr().err
    assert made.manifest.fingerprint[:12] in said and other.manifest.fingerprint[:12] in said and "--data URL" in said
    assert not (tmp_path / "out").exists()


def test_an_export_that_fails_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "write_card", stop)
    before = set(run.parent.iterdir())
    assert exit_code(main, [str(run), "--out", str(run.parent / "exported")]) == 1
    assert set(run.parent.iterdir()) == before


def test_what_a_killed_export_left_is_no_hindrance(run: Path) -> None:
    partial = run.parent / ".exported.partial"
    (partial / "timm").mkdir(parents=True)
    assert not (export(run) / "timm").exists() and not partial.exists()


def _damage(run: Path) -> None:
    file = run / "checkpoints" / "step-00000007" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _other_model(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 32"))


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "said"),
    [
        (None, ["{run}x", "--out", "{out}"], 1, "there is no folder .*runx; give the run.dir of"),
        (None, ["{run}/..", "--out", "{out}"], 1, "is neither a run folder nor a checkpoint"),
        (_damage, ["{run}", "--out", "{out}"], 1, "no checkpoint of .* is whole: .*CRC-32C does not match"),
        (_other_model, ["{run}", "--out", "{out}"], 1, "is not of the model in .*config.yaml: .*size mismatch"),
        (None, ["{run}", "--out", "{run}"], 2, "--out .*run exists; name another place"),
        (
            None,
            ["{run}", "--out", "{out}", "--onnx", "s1+s3"],
            2,
            "(there is no sensor 's3', only s1, s2|needs the package)",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(run: Path, capsys, prepare, arguments, code: int, said: str) -> None:
    if prepare is not None:
        prepare(run)
    out = run.parent / "exported"
    assert exit_code(main, [argument.format(run=run, out=out) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{said}.*\n", error), error
    assert not out.exists()


def test_an_encoder_that_the_file_cannot_compute_is_refused_by_name(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(source_module.EXPRESSED, "encoder_fusion", ("none",))
    assert exit_code(main, [str(run), "--out", str(run.parent / "out")]) == 2
    assert "an encoder with encoder_fusion 'xae' cannot be exported; those with none can" in capsys.readouterr().err


def test_a_checkpoint_is_exported_as_its_run(run: Path) -> None:
    assert _files(export(run)) == _files(_exported_checkpoint(run))


def _exported_checkpoint(run: Path) -> Path:
    out = run.parent / "of_checkpoint"
    assert main([str(run / "checkpoints" / "step-00000007"), "--out", str(out)]) == 0
    return out
