import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import xformers.ops

import fusmae
from fusmae.attention import CrossAttention, SelfAttention, attention

BACKENDS = ("xformers", "sdpa", "math")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def make_qkv(dtype, queries=13, keys=22, gradient=True):
    shapes = [(2, queries, 4, 16), (2, keys, 4, 16), (2, keys, 4, 16)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(gradient) for shape in shapes]


def run(backend, q, k, v, bias=None):
    out = attention(q, k, v, backend, bias)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return out, torch.autograd.grad((out * weights).sum(), (q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_equation_5(backend, oracle):
    q, k, v = make_qkv(torch.float64)
    expected = oracle.plain(q.flatten(2), k.flatten(2), v.flatten(2), heads=4)
    torch.testing.assert_close(attention(q, k, v, backend).flatten(2), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_xformers_on_the_cpu_equals_sdpa_bit_for_bit(dtype, biased):
    q, k, v = make_qkv(dtype)
    bias = torch.randn(2, 4, 13, 22).to(dtype) if biased else None
    out, gradients = run("xformers", q, k, v, bias)
    expected, expected_gradients = run("sdpa", q, k, v, bias)
    assert out.dtype == dtype and torch.equal(out, expected)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_backends_equal_the_written_out_one_in_value_and_gradient(backend, dtype, biased):
    q, k, v = make_qkv(dtype)
    bias = torch.randn(1, 1, 13, 22) if biased else None
    out, gradients = run(backend, q, k, v, bias)
    expected, expected_gradients = run("math", q, k, v, bias)
    for ours, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_gradient_of_our_cpu_operator_is_that_of_finite_differences():
    q, k, v = make_qkv(torch.float64, queries=3, keys=5)
    bias = torch.randn(1, 4, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, "xformers"), (q, k, v))
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, "xformers", bias), (q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_forbidden_key_has_no_effect(backend):
    q, k, v = make_qkv(torch.float32, gradient=False)
    bias = torch.zeros(1, 1, 13, 22)
    bias[..., 5:] = float("-inf")
    kept = attention(q, k[:, :5], v[:, :5], backend)
    torch.testing.assert_close(attention(q, k, v, backend, bias), kept, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_default_backend_calls_xformers(monkeypatch, gradient):
    calls = []
    genuine = xformers.ops.memory_efficient_attention

    def spy(*args, **kwargs):
        calls.append(kwargs["op"])
        return genuine(*args, **kwargs)

    monkeypatch.setattr(xformers.ops, "memory_efficient_attention", spy)
    q, k, v = make_qkv(torch.float32, gradient=gradient)
    attention(q, k, v)
    assert [operator.NAME for operator in calls[0]] == ["fusmaeF-cpu", "fusmaeB-cpu"]
    attention(q, k, v, "sdpa")
    attention(q, k, v, "math")
    assert len(calls) == 1


@pytest.mark.parametrize("keys", [16, 21])
def test_a_bias_reaches_xformers_in_rows_that_its_gpu_kernels_can_load(monkeypatch, keys):
    biases = []
    monkeypatch.setattr(
        xformers.ops, "memory_efficient_attention", lambda q, k, v, attn_bias, op: biases.append(attn_bias) or q
    )
    q, k, v = make_qkv(torch.bfloat16, keys=keys)
    bias = torch.randn(1, 1, 13, keys)
    attention(q, k, v, "xformers", bias)
    assert all(stride % 8 == 0 for stride in biases[0].stride()[:-1]) and biases[0].stride(-1) == 1
    assert torch.equal(biases[0], bias.bfloat16().expand(2, 4, 13, keys))


def test_beside_a_cuda_torch_xformers_does_not_need_its_sparsity_library(monkeypatch):
    """xformers 0.0.35's wheel holds a library for CUDA 12; where it does not load, CUDA tensors would be refused."""
    from xformers.ops.fmha import common

    from fusmae.attention import _load_xformers

    monkeypatch.setattr(common, "_built_with_cuda", False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("fusmae.attention._loaded", None)
    _load_xformers()
    assert common._built_with_cuda


def test_dropout_is_refused_by_our_operator():
    from fusmae.attention import _load_xformers

    q, k, v = make_qkv(torch.float32)
    with pytest.raises(ValueError, match="dropout > 0"):
        xformers.ops.memory_efficient_attention(q, k, v, p=0.5, op=_load_xformers()[1])


def test_xformers_is_imported_late_and_in_silence():
    code = (
        "import sys, torch, fusmae; from fusmae import FusMAE; from fusmae.attention import attention\n"
        "assert 'xformers' not in sys.modules\n"
        "x = torch.ones(1, 2, 1, 8); attention(x, x, x)\n"
        "assert 'xformers' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "" and done.stderr == ""


def test_xformers_is_imported_in_one_module():
    folder = Path(fusmae.__file__).parent
    pattern = re.compile(r"^\s*(from|import) xformers", re.MULTILINE)
    assert [path.name for path in folder.glob("*.py") if pattern.search(path.read_text())] == ["attention.py"]


def test_without_xformers_the_message_says_what_to_write(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    monkeypatch.setattr("fusmae.attention._loaded", None)
    with pytest.raises(ImportError, match="attention_backend: sdpa"):
        attention(*make_qkv(torch.float32))


@pytest.mark.parametrize(
    ("shapes", "backend", "message"),
    [
        (((2, 3, 4, 8), (2, 0, 4, 8), (2, 0, 4, 8)), "math", r"\(2, 0, 4, 8\)"),
        (((2, 3, 4, 8), (2, 5, 4, 8), (2, 6, 4, 8)), "math", r"\(2, 6, 4, 8\)"),
        (((2, 3, 4, 8), (1, 5, 4, 8), (1, 5, 4, 8)), "math", r"\(1, 5, 4, 8\)"),
        (((2, 3, 4, 8), (2, 5, 4, 8), (2, 5, 4, 8)), "flash", "'flash' does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, backend, message):
    with pytest.raises(ValueError, match=message):
        attention(*(torch.zeros(shape) for shape in shapes), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_self_attention_is_the_written_out_one(backend, oracle, randomise):
    module = randomise(SelfAttention(32, 4, backend).double())
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x), oracle.self_attention(oracle.tree(module), x, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cross_attention_is_equations_4_and_5(backend, oracle, randomise):
    module = randomise(CrossAttention(32, 4, backend).double())
    x, y = torch.randn(2, 7, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    torch.testing.assert_close(module(x, y), oracle.cross(oracle.tree(module), x, y, 4), rtol=0, atol=1e-12)


def test_cross_attention_with_itself_is_self_attention_with_the_same_weights(randomise):
    ours, theirs = CrossAttention(32, 4).double(), randomise(SelfAttention(32, 4).double())
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    assert not torch.allclose(ours(x, x), theirs(x))
    ours.load_self_attention(theirs)
    torch.testing.assert_close(ours(x, x), theirs(x), rtol=0, atol=1e-12)


def test_autocast_gives_bfloat16_to_every_backend():
    module = SelfAttention(32, 4)
    x = torch.randn(2, 7, 32)
    outputs = {}
    for backend in BACKENDS:
        module.backend = backend
        with torch.autocast("cpu", torch.bfloat16):
            outputs[backend] = module(x)
        assert outputs[backend].dtype == torch.bfloat16
        torch.testing.assert_close(outputs[backend], outputs["xformers"], rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_xformers_on_the_gpu_equals_the_written_out_one(dtype, deterministic, biased):
    q, k, v = (x.detach().cuda().requires_grad_() for x in make_qkv(dtype))
    bias = torch.randn(1, 1, 13, 22, device="cuda") if biased else None
    torch.use_deterministic_algorithms(deterministic)
    try:
        out, gradients = run("xformers", q, k, v, bias)
        if deterministic:
            assert all(torch.equal(a, b) for a, b in zip(gradients, run("xformers", q, k, v, bias)[1], strict=True))
        expected, expected_gradients = run("math", *(x.detach().double().requires_grad_() for x in (q, k, v)), bias)
    finally:
        torch.use_deterministic_algorithms(False)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 5e-3  # TF32 where torch allows it
    for ours, theirs in zip((out, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_sdpa_is_torch_s_own():
    q, k, v = make_qkv(torch.float32, gradient=False)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(attention(q, k, v, "sdpa"), expected)
