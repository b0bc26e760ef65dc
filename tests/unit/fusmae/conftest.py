"""Small models, and Fus-MAE's equations written out once more in float64 for comparison."""

from types import SimpleNamespace

import pytest
import torch

from fusmae import CounterRandom, CrossScaleFusMAE, FusMAEConfig, Modality

S1 = Modality(name="s1", bands=("VV", "VH"))
S2 = Modality(name="s2", bands=("B02", "B03", "B04"), groups=(("B02", "B04"), ("B03",)))

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "modalities": (S1, S2),
    "width": 32,
    "depth": 3,
    "heads": 4,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    """Makes a small config, with changes."""
    return lambda **changes: FusMAEConfig(**{**TINY, **changes})


@pytest.fixture
def draw():
    """Makes counter random numbers for samples at the given positions."""

    def make(positions, seed=7, epoch=0):
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        return CounterRandom(seed, torch.full_like(position_B, epoch), position_B)

    return make


@pytest.fixture
def images():
    """Makes a batch of random images for a config."""

    def make(config, batch=3, dtype=torch.float32):
        shape = (config.image_size, config.image_size)
        return {m.name: torch.randn(batch, len(m.bands), *shape, dtype=dtype) for m in config.modalities}

    return make


def _linear(weights, x):
    return x @ weights["weight"].T + weights["bias"]


def _norm(weights, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights["weight"] + weights["bias"]


def _mlp(weights, x):
    hidden = _linear(weights["fc1"], x)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return _linear(weights["fc2"], hidden)


def _softmax_attention(q, k, v, heads):
    """Head by head and sample by sample; q (B, N, D), k and v (B, M, D)."""
    out = torch.zeros_like(q)
    width = q.shape[-1] // heads
    for sample in range(q.shape[0]):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = (q[sample, :, part] @ k[sample, :, part].T / width**0.5).exp()
            out[sample, :, part] = scores / scores.sum(1, keepdim=True) @ v[sample, :, part]
    return out


def _cross(weights, x, y, heads):
    k, v = _linear(weights["kv"], y).chunk(2, dim=-1)
    return _linear(weights["proj"], _softmax_attention(_linear(weights["q"], x), k, v, heads))


def _self(weights, x, heads):
    q, k, v = _linear(weights["qkv"], x).chunk(3, dim=-1)
    return _linear(weights["proj"], _softmax_attention(q, k, v, heads))


def _tree(module):
    tree = {}
    for name, value in module.state_dict().items():
        *path, leaf = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = value.double()
    return tree


@pytest.fixture
def oracle():
    """Layers in float64, from nested dicts of weights."""
    return SimpleNamespace(
        linear=_linear,
        norm=_norm,
        mlp=_mlp,
        cross=_cross,
        self_attention=_self,
        tree=_tree,
        plain=_softmax_attention,
    )


@pytest.fixture
def randomise():
    """Gives every weight of a module a random value, so that no bias is 0 and no norm is the identity."""

    def change(module, scale=0.2):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * scale + (parameter.ndim == 1) * 0.5)
        return module

    return change


@pytest.fixture
def two_scales(tiny, randomise):
    """Makes a cross-scale model in float64 whose weights are all random."""

    def make(scale=None, **changes):
        return randomise(CrossScaleFusMAE(tiny(**changes), scale).double(), 0.1)

    return make
