"""The exported file computes what the model computes, bit for bit, and refuses what it cannot take."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file

from fusmae import FusMAEConfig
from pipeline.export.folder import load_exported
from pipeline.export.source import EXPRESSED
from pipeline.stream import Stream, StreamConfig
from pipeline.transform import ImageTransform
from pipeline.weights import load_model
from tests.unit.pipeline.exported_runs import S2, export, inference, make_run, random_images, raw_images
from tests.unit.pipeline.small_shards import make

BOTH = [("s1", ("VV", "VH")), ("s2", S2)]
VARIANTS: dict[str, dict[str, Any]] = {
    "xae": {},
    "no fusion": {"encoder_fusion": "none"},
    "a cross-attention for each sensor": {"share_cross_attention": False},
    "learned positions": {"positions": "learned"},
    "no global token": {"global_token": False},
    "no fusion, no global token": {"encoder_fusion": "none", "global_token": False, "depth": 1},
    "mlp ratio": {"mlp_ratio": 2.5},
    "written out": {"attention_backend": "math"},
    "xformers": {"attention_backend": "xformers"},
    "varying masks": {"masking": "union", "modality_dropout": 0.2},
    "crossmae": {"decoder_attention": "cross", "decoder_queries": 0.5, "decoder_fusion": "none"},
    "multimae": {"decoder_fusion": "multimae", "decode_global_token": True},
    "two scales": {"decoder_fusion": "none", "cross_scale": {"gsd_positions": True}},
    "stacked": {
        "modalities": [{"name": "stacked", "bands": ["VV", "VH", *S2]}],
        "encoder_fusion": "none",
        "decoder_fusion": "none",
    },
    "three sensors": {
        "modalities": [
            {"name": "s1", "bands": ["VH", "VV"]},
            {"name": "shared", "bands": ["B04", "B03"]},
            {"name": "s2_20m", "bands": ["B11"]},
        ],
        "share_cross_attention": False,
    },
}
# What a field changes of the features of whole images; the others decide masks, decoders, targets and memory alone.
OF_THE_ENCODER = {
    "image_size",
    "patch_size",
    "modalities",
    "width",
    "depth",
    "heads",
    "mlp_ratio",
    "encoder_fusion",
    "share_cross_attention",
    "positions",
    "global_token",
    "attention_backend",
}
NOT_OF_THE_ENCODER = {
    "decoder_fusion",
    "decode_global_token",
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "decoder_attention",
    "decoder_queries",
    "mask_ratio",
    "masking",
    "modality_mask_ratio",
    "modality_dropout",
    "target_norm",
    "loss_weights",
    "checkpoint_activations",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("data") / "pairs").url


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, url: str) -> Path:
    return export(make_run(tmp_path_factory.mktemp("exported"), url))


def _first_batch(url: str) -> Any:
    with Stream(StreamConfig(url=url, global_batch=6)) as stream:
        return next(islice(stream, 1)).copy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_those_of_our_code_bit_for_bit(tmp_path: Path, url: str, variant: str) -> None:
    run = make_run(tmp_path, url, VARIANTS[variant])
    ours, folder = load_model(str(run)).model, export(run)
    theirs, full = inference(folder).load(folder), load_exported(folder)
    planes = {
        band: plane for name, bands in BOTH for band, plane in zip(bands, random_images()[name].unbind(1), strict=True)
    }
    raw = {m.name: torch.stack([planes[band] for band in m.bands], 1) for m in ours.config.modalities}
    names = [m.name for m in ours.config.modalities]
    for given in {tuple(names), *((name,) for name in names), tuple(names[:2])}:
        images = {name: raw[name] for name in given}
        normalised = theirs.normalise(images)
        with torch.inference_mode():
            expected = ours.encode(normalised)
            assert torch.equal(theirs(images), ours.features(normalised))
            assert torch.equal(theirs(images), full.features(normalised))
            tokens, last = theirs.encode(images)
        assert list(tokens) == list(expected.tokens)
        assert all(torch.equal(tokens[name], expected.tokens[name]) for name in given)
        assert (last is None and expected.global_token_BD is None) or torch.equal(last, expected.global_token_BD)


def test_every_field_of_the_model_is_known_to_matter_or_not() -> None:
    assert {field.name for field in fields(FusMAEConfig)} == OF_THE_ENCODER | NOT_OF_THE_ENCODER
    hints = get_type_hints(FusMAEConfig)
    assert {name: get_args(hints[name]) for name in EXPRESSED} == EXPRESSED


@pytest.mark.parametrize("upsample", ["nearest", "bilinear"])
@pytest.mark.parametrize("changes", [{}, {"offset_every": 1}, {"s1_dtype": "float16"}, {"subset_every": 1}])
def test_stored_pixels_become_what_evaluation_makes_of_them(
    tmp_path: Path, upsample: str, changes: dict[str, Any]
) -> None:
    made = make(tmp_path / "pairs", **changes)
    folder = export(make_run(tmp_path, made.url, data={"upsample": upsample}))
    batch = _first_batch(made.url)
    expected, valid = ImageTransform(made.manifest, BOTH, 12, upsample=upsample)(batch, None)  # type: ignore[arg-type]
    model, raw = inference(folder).load(folder), raw_images(made, batch)
    offset = -1000.0 if "offset_every" in changes else 0.0
    for row in range(len(batch)):
        own = {
            name: {
                band: raw[name][band][row : row + 1] for band, has in zip(bands, valid[name][row], strict=True) if has
            }
            for name, bands in BOTH
        }
        images = model.normalise(own, offset)
        for name in images:
            assert torch.equal(images[name][0], expected[name][row])
    offsets = torch.full((len(batch),), offset)
    if "subset_every" not in changes:
        assert all(torch.equal(image, expected[name]) for name, image in model.normalise(raw, offsets).items())


def test_missing_pixels_become_the_mean(tmp_path: Path) -> None:
    made = make(tmp_path / "pairs")
    arrays = tuple(replace(spec, nodata=0.0) if spec.name == "s2_10m" else spec for spec in made.manifest.arrays)
    made.manifest = replace(made.manifest, arrays=arrays, fingerprint="")
    from sharding.manifest import dump_manifest

    (made.root / "manifest.json").write_bytes(dump_manifest(made.manifest))
    folder = export(make_run(tmp_path, made.url))
    batch = _first_batch(made.url)
    batch.arrays["s1"][2, 1, 3, 4] = float("nan")
    batch.arrays["s2_10m"][1, 0, 2, 5] = 0
    expected, _ = ImageTransform(made.manifest, BOTH, 12)(batch, None)
    images = inference(folder).load(folder).normalise(raw_images(made, batch))
    assert images["s1"][2, 1, 3, 4].abs() < 1e-6 and images["s2"][1, S2.index("B02"), 2, 5].abs() < 1e-6
    assert all(torch.equal(images[name], expected[name]) for name in images)


def test_integers_and_arrays_of_numpy_are_taken(exported: Path) -> None:
    model, images = inference(exported).load(exported), random_images()
    expected = model(images)
    as_stored = {"s1": images["s1"].numpy(), "s2": images["s2"].numpy().astype("uint16")}
    assert torch.equal(model(as_stored), expected)


def test_cast_to_bfloat16_it_equals_ours(tmp_path: Path, url: str) -> None:
    run = make_run(tmp_path, url)
    ours, folder = load_model(str(run)).model.bfloat16(), export(run)
    theirs = inference(folder).load(folder).bfloat16()
    images = random_images()
    with torch.inference_mode():
        assert torch.equal(theirs(images), ours.features(theirs.normalise(images)))
    assert theirs.positions.table_ND.dtype == torch.float32


def test_tokens_of_blocks_end_in_those_of_the_last(exported: Path) -> None:
    model, images = inference(exported).load(exported), random_images()
    first, last = model.after_blocks(images, [0, 2])
    assert first[1] is None and not torch.equal(first[0]["s1"], last[0]["s1"])
    assert torch.equal(last[0]["s2"], model.tokens(images)["s2"])
    with pytest.raises(ValueError, match=r"there is no block 3; the encoder has the blocks 0 to 2"):
        model.after_blocks(images, [3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {}, "images of no sensor were given; the model knows s1, s2"),
        (lambda i: i | {"s3": i["s1"]}, "images of s3 were given; the model knows s1, s2"),
        (lambda i: {"s1": i["s1"][:, :1]}, r"images of s1 have shape \(2, 1, 12, 12\); they must be \(B, 2, 12, 12\)"),
        (lambda i: {"s1": i["s1"][0]}, r"images of s1 have shape \(2, 12, 12\); .* with the bands VV, VH"),
        (lambda i: {"s2": i["s2"][..., :8]}, "cut tiles into squares of 12 pixels"),
        (lambda i: {"s1": i["s1"] > 0}, "band VV of s1 holds torch.bool; it must be integers or floats"),
        (lambda i: {"s1": i["s1"], "s2": i["s2"][:1]}, r"differ in number: s1 \(2, 2, 12, 12\), s2 \(1, 12, 12, 12\)"),
        (lambda i: {"s2": {"B02": i["s2"][:, 0], "B03": i["s2"][:1, 0]}}, r"differ in number: B02 \(2, 12, 12\)"),
        (lambda i: {"s2": {"B10": i["s2"][:, 0]}}, "s2 has the bands B01, B02, .*, not B10"),
        (lambda i: {"s2": {}}, "s2 has the bands .*, not none"),
        (lambda i: {"s2": {"B02": i["s2"][:, 0, :5, :5]}}, r"band B02 of s2 has shape \(2, 5, 5\); .* s = 12 or"),
    ],
)
def test_images_that_do_not_fit_are_refused(exported: Path, change: Any, message: str) -> None:
    model = inference(exported).load(exported)
    with pytest.raises(ValueError, match=message):
        model(change(random_images()))


def test_a_folder_of_another_format_or_data_set_is_refused(exported: Path, tmp_path: Path) -> None:
    module = inference(exported)
    with pytest.raises(ValueError, match="there are no statistics of data set other, only of training"):
        module.load(exported, data_set="other")
    config = json.loads((exported / "config.json").read_text()) | {"format": "fusmae-export/9"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"reads the format 'fusmae-export/1', the config.json has 'fusmae-export/9'"):
        module.load(tmp_path)


def test_the_file_needs_torch_and_safetensors_alone(exported: Path) -> None:
    program = """
import sys
import torch, safetensors.torch
before = {name.partition(".")[0] for name in sys.modules}
import fusmae_inference
model = fusmae_inference.load(".")
print(model({"s1": torch.zeros(1, 2, 12, 12)}).shape)
print(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=exported, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == ["torch.Size([1, 16])", "['fusmae_inference']"]


def test_changed_weights_change_the_features(exported: Path) -> None:
    model, images = inference(exported).load(exported), random_images()
    before = model(images)
    weights = load_file(exported / "model.safetensors")
    for name in weights:
        model.load_state_dict(weights | {name: weights[name] + torch.randn_like(weights[name])})
        assert not torch.equal(model(images), before), name
