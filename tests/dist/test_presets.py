"""Each file of configs/ is a whole run: its model is the one that it names, and made small it trains and evaluates."""

import json
import math
from pathlib import Path

import pytest

from pipeline.config import load_settings, model_config
from pipeline.distributed import Ranks, free_port, leave
from pipeline.evaluate import evaluate
from pipeline.loop import train
from pipeline.metrics import read_lines
from pipeline.stop import StopRequest
from pipeline.weights import load_model
from tests.dist.conftest import ROOT
from tests.unit.pipeline.small_shards import make

pytestmark = pytest.mark.dist

PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL = (
    *("model.image_size=24", "model.patch_size=8", "model.width=32", "model.depth=2", "model.heads=4"),
    *("model.decoder_width=16", "model.decoder_depth=1", "model.decoder_heads=2"),
    *("train.steps=2", "train.global_batch=4", "optim.warmup_steps=1", "data.threads=1", "log.every=1"),
    *("engine.name=ddp", "engine.device=cpu", "engine.precision=fp32", "log.tensorboard=false"),
    *("probe.every=0", "log.reconstructions=0"),  # the pairs have no split to test on
)
"""Of a preset, all that makes it large; what makes it what it is stays."""

KINDS = {
    "crossmae_xae_vitb": {"encoder_fusion": "xae", "decoder_attention": "cross", "decoder_queries": 0.25},
    "demo": {"encoder_fusion": "xae", "decoder_fusion": "xad"},
    "fusmae_cross_scale_vitb": {"encoder_fusion": "xae", "decoder_fusion": "none"},
    "fusmae_nofusion_vitb": {"encoder_fusion": "none", "decoder_fusion": "none"},
    "fusmae_xad_vitb": {"encoder_fusion": "none", "decoder_fusion": "xad"},
    "fusmae_xae_vitb": {"encoder_fusion": "xae", "decoder_fusion": "none"},
    "fusmae_xae_xad_vitb": {"encoder_fusion": "xae", "decoder_fusion": "xad"},
    "multimae_vitb": {"decoder_fusion": "multimae", "masking": "dirichlet", "decode_global_token": True},
    "satvit_vitb": {"modality_names": ("stacked",), "global_token": False, "target_norm": "per_patch"},
}
MILLIONS = {
    "fusmae_nofusion_vitb": 89.53,
    "fusmae_xae_vitb": 89.53,
    "fusmae_xad_vitb": 103.71,
    "fusmae_xae_xad_vitb": 103.71,
}
"""Parameters: the XAttnEncoder takes an ordinary block's place, an XAttnDecoder comes on top for each modality."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return make(tmp_path_factory.mktemp("presets") / "pairs", (6, 6), pixels=24).url


@pytest.fixture
def one_rank(monkeypatch):
    """What a launcher tells its only rank; a run that failed does not keep the next one from starting."""
    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    yield Ranks(rank=0, world_size=1, local_rank=0)
    leave()


@pytest.fixture(autouse=True)
def as_before():
    """Training asks torch for determinism in the whole process; the next test gets it as it was."""
    import torch

    was = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(was)
    torch.utils.deterministic.fill_uninitialized_memory = fills


def model_of(preset: Path):
    return model_config(load_settings(preset, []))


def test_every_preset_is_described_here():
    assert {path.stem for path in PRESETS} == set(KINDS)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_at_its_true_size_is_the_model_that_it_names(preset):
    config = model_of(preset)
    assert {key: getattr(config, key) for key in KINDS[preset.stem]} == KINDS[preset.stem]
    if preset.stem.endswith("_vitb"):
        assert (config.width, config.depth, config.heads) == (768, 12, 12)
        assert (config.image_size, config.patch_size, config.num_visible) == (120, 8, 56)


@pytest.mark.parametrize("name", MILLIONS)
def test_presets_of_the_paper_have_the_parameters_of_their_equations(name):
    import torch

    from fusmae import FusMAE

    with torch.device("meta"):
        model = FusMAE(model_of(ROOT / "configs" / f"{name}.yaml"))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(MILLIONS[name], abs=0.005)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_made_small_trains_and_is_evaluated(preset, url, one_rank, tmp_path):
    run = tmp_path / "run"
    settings = load_settings(preset, [*SMALL, f"data.url={url}", f"run.dir={run}"])
    assert train(settings, one_rank, StopRequest()) == "done"
    losses = [line["loss"] for line in read_lines(run / "metrics.jsonl")]
    assert len(losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)

    loaded = load_model(str(run))
    assert loaded.step == 2 and loaded.model.config == model_config(settings)
    result, path = evaluate("reconstruction", str(run), ["reconstruction.pictures=1", "device=cpu"])
    assert json.loads(path.read_text()) == result
    measured = result["splits"]["train"]
    assert result["modalities"] == list(loaded.model.config.modality_names) and measured["samples"] == 12
    assert measured["model"]["total"] != measured["shuffled"]["total"]
