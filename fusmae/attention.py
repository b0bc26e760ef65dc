"""The attention of the whole model: one function, three backends of equal results, and the two modules on it.

The only module that imports xformers, on first use. 0.0.35 calls torch's own CUDA kernels and has none for
the CPU; there, two operators of ours give its public entry point torch's CPU kernel, so that machines without
a GPU train and test through the same call, input checks and autograd function.

Shape legend: B batch, N queries, M keys and values, D width of a token, H heads, K = D / H width of a head.
"""

import logging
from functools import cache
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusmae.config import AttentionBackend


def attention(
    q_BNHK: Tensor,
    k_BMHK: Tensor,
    v_BMHK: Tensor,
    backend: AttentionBackend = "xformers",
    bias_BHNM: Tensor | None = None,
) -> Tensor:
    """Attention softmax(q kT / sqrt(K) + bias) v (Fus-MAE Eq. 5): (B, N, H, K) in the dtype of q.

    Args:
        q_BNHK: queries.
        k_BMHK: keys; as many as values, of any number.
        v_BMHK: values.
        backend: xformers, sdpa or math (written out, in float32 at least).
        bias_BHNM: added before the softmax, -inf to forbid; broadcast over B and H; gets no gradient.
    """
    batch, _, heads, width = q_BNHK.shape
    num_keys = k_BMHK.shape[1]
    if k_BMHK.shape != (batch, num_keys, heads, width) or v_BMHK.shape != k_BMHK.shape or not num_keys:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BNHK, k_BMHK, v_BMHK))
        raise ValueError(f"queries, keys and values do not fit each other or are empty: {shapes}")
    if backend == "xformers":
        return _xformers_attention(q_BNHK, k_BMHK, v_BMHK, bias_BHNM)
    bias = None if bias_BHNM is None else bias_BHNM.to(q_BNHK.dtype)
    q_BHNK, k_BHMK, v_BHMK = (x.transpose(1, 2) for x in (q_BNHK, k_BMHK, v_BMHK))
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMK, attn_mask=bias).transpose(1, 2)
    if backend == "math":
        return _math_attention(q_BHNK, k_BHMK, v_BHMK, bias).transpose(1, 2)
    raise ValueError(f"attention backend '{backend}' does not exist; write {', '.join(get_args(AttentionBackend))}")


def _math_attention(q_BHNK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(q_BHNK.dtype, torch.float32)
    with torch.autocast(q_BHNK.device.type, enabled=False):
        scores_BHNM = q_BHNK.to(dtype) @ k_BHMK.to(dtype).transpose(2, 3) * q_BHNK.shape[-1] ** -0.5
        if bias is not None:
            scores_BHNM = scores_BHNM + bias
        return (scores_BHNM.softmax(-1) @ v_BHMK.to(dtype)).to(q_BHNK.dtype)


def _xformers_attention(q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Tensor | None) -> Tensor:
    xformers_ops, cpu_operators = _load_xformers()
    if bias is not None:
        num_keys = k_BMHK.shape[1]
        # The CUDA kernels want the rows of a bias 16 bytes apart: pad to a multiple of 8 keys, then slice.
        bias = F.pad(bias.to(q_BNHK.dtype), (0, -num_keys % 8))[..., :num_keys]
        bias = bias.expand(q_BNHK.shape[0], q_BNHK.shape[2], q_BNHK.shape[1], num_keys)
    op = cpu_operators if q_BNHK.device.type == "cpu" else None
    out: Tensor = xformers_ops.memory_efficient_attention(q_BNHK, k_BMHK, v_BMHK, attn_bias=bias, op=op)
    return out


@cache
def _load_xformers() -> tuple[Any, tuple[type, type]]:
    """`xformers.ops`, and our forward and backward operators for CPU tensors."""
    logger = logging.getLogger("xformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that its sparsity library does not load; attention needs none
    try:
        import xformers.ops
        from xformers.ops.fmha import common
    except ImportError as error:
        raise ImportError(
            "attention_backend 'xformers' needs xformers 0.0.35; install it, or write attention_backend: sdpa"
        ) from error
    finally:
        logger.setLevel(level)
    if torch.version.cuda is not None:
        # xformers 0.0.35 refuses every CUDA tensor when its sparsity library fails to load, as it does beside
        # a torch built for another CUDA ("wasn't build with CUDA support", facebookresearch/xformers#800).
        # The attention kernels are torch's own, whose schemas it checks at import: what counts is torch's
        # build.
        common._built_with_cuda = True
    return xformers.ops, _cpu_operators(common)


def _cpu_operators(common: Any) -> tuple[type, type]:
    """Operator classes for CPU tensors, made here because their bases come with xformers."""
    aten = torch.ops.aten

    class CpuOperator:
        SUPPORTED_DEVICES = frozenset({"cpu"})
        SUPPORTED_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
        SUPPORTED_MAX_K = 65536
        SUPPORTED_ATTN_BIAS_TYPES = (type(None), Tensor)
        SUPPORTS_DROPOUT = False
        SUPPORTS_CUSTOM_SCALE = True
        VARLEN_LSE_PACKED = False

        @classmethod
        def not_supported_reasons(cls, inputs: Any) -> list[str]:
            reasons: list[str] = super().not_supported_reasons(inputs)  # type: ignore[misc]
            # Upstream asks for an A100 for bf16 whatever the device.
            return [reason for reason in reasons if not reason.startswith("bf16 is only supported")]

    class CpuForward(CpuOperator, common.AttentionFwOpBase):
        OPERATOR = aten._scaled_dot_product_flash_attention_for_cpu
        NAME = "fusmaeF-cpu"

        @classmethod
        def apply(cls, inp: Any, needs_gradient: bool) -> tuple[Tensor, Any]:
            out, lse = cls.OPERATOR(
                inp.query.transpose(1, 2),
                inp.key.transpose(1, 2),
                inp.value.transpose(1, 2),
                attn_mask=inp.attn_bias,
                scale=inp.scale_float,
            )
            out = out.transpose(1, 2)
            return out, common.Context(lse=lse, out=out) if needs_gradient else None

    class CpuBackward(CpuOperator, common.AttentionBwOpBase):
        OPERATOR = aten._scaled_dot_product_flash_attention_for_cpu_backward
        NAME = "fusmaeB-cpu"

        @classmethod
        def apply(cls, ctx: Any, inp: Any, grad: Tensor) -> Any:
            grads = cls.OPERATOR(
                grad.transpose(1, 2),
                inp.query.transpose(1, 2),
                inp.key.transpose(1, 2),
                inp.value.transpose(1, 2),
                ctx.out.transpose(1, 2),
                ctx.lse,
                0.0,
                False,
                attn_mask=inp.attn_bias,
                scale=inp.scale_float,
            )
            dq, dk, dv = (x.transpose(1, 2) for x in grads)
            return common.Gradients(dq=dq, dk=dk, dv=dv)

    return CpuForward, CpuBackward


class SelfAttention(nn.Module):
    """Multi-head self-attention of a ViT block: one map to queries, keys and values, then an output map."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, bias_BHNM: Tensor | None = None) -> Tensor:
        """(B, N, D)."""
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(attention(q, k, v, self.backend, bias_BHNM).flatten(2))
        return out


class CrossAttention(nn.Module):
    """CA(x, y): the tokens of x ask those of y (Fus-MAE Eq. 4-5), multi-head, with maps for q and for k, v."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, y_BMD: Tensor) -> Tensor:
        """(B, N, D)."""
        q = self.q(x_BND).unflatten(2, (self.heads, -1))
        k, v = self.kv(y_BMD).unflatten(2, (2, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(attention(q, k, v, self.backend).flatten(2))
        return out

    @torch.no_grad()
    def load_self_attention(self, source: SelfAttention) -> None:
        """Take the weights of a ViT block's self-attention of the same width."""
        width = self.q.in_features
        self.q.load_state_dict({key: value[:width] for key, value in source.qkv.state_dict().items()})
        self.kv.load_state_dict({key: value[width:] for key, value in source.qkv.state_dict().items()})
        self.proj.load_state_dict(source.proj.state_dict())
