"""The attention of the whole model: one function, three backends of equal results, and the two modules on it.

The only module that imports xformers, on first use. 0.0.35 calls torch's own CUDA kernels and has none for
the CPU; there, two operators of ours give its public entry point torch's CPU kernel, so that machines without
a GPU train and test through the same call, input checks and autograd function.

Shape legend: B batch, N queries, M keys and values, D width of a token, H heads, K = D / H width of a head.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusmae.config import AttentionBackend


@dataclass(frozen=True, eq=False)
class Segments:
    """Samples of any length behind each other in one row of tokens: queries of a sample meet its own keys alone."""

    queries: tuple[int, ...]
    """Queries of each sample, at least one."""
    keys: tuple[int, ...]
    """Keys of each sample, at least one."""

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.keys) or min((*self.queries, *self.keys), default=1) < 1:
            raise ValueError(f"segments need a query and a key each, not {self.queries} and {self.keys}")

    @property
    def equal(self) -> bool:
        """Whether all samples have the same numbers, so that the row can be folded into a batch."""
        return len(set(self.queries)) == len(set(self.keys)) == 1

    @cached_property
    def block_diagonal(self) -> Any:
        """As a bias of xformers."""
        from xformers.ops.fmha.attn_bias import BlockDiagonalMask

        return BlockDiagonalMask.from_seqlens(self.queries, self.keys)


def attention(
    q_BNHK: Tensor,
    k_BMHK: Tensor,
    v_BMHK: Tensor,
    backend: AttentionBackend = "xformers",
    bias_BHNM: Tensor | Segments | None = None,
) -> Tensor:
    """Attention softmax(q kT / sqrt(K) + bias) v (Fus-MAE Eq. 5): (B, N, H, K) in the dtype of q.

    With `Segments`, B is 1 and the samples lie behind each other: xformers computes them packed, without padding
    (BlockDiagonalMask), sdpa pads each to the longest, math goes sample by sample.

    Args:
        q_BNHK: queries.
        k_BMHK: keys; as many as values, of any number.
        v_BMHK: values.
        backend: xformers, sdpa or math (written out, in float32 at least).
        bias_BHNM: added before the softmax, -inf to forbid; broadcast over B and H; gets no gradient.
    """
    if isinstance(bias_BHNM, Segments) and not bias_BHNM.queries:
        return q_BNHK
    batch, _, heads, width = q_BNHK.shape
    num_keys = k_BMHK.shape[1]
    if k_BMHK.shape != (batch, num_keys, heads, width) or v_BMHK.shape != k_BMHK.shape or not num_keys:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_BNHK, k_BMHK, v_BMHK))
        raise ValueError(f"queries, keys and values do not fit each other or are empty: {shapes}")
    if isinstance(bias_BHNM, Segments):
        return _segmented_attention(q_BNHK, k_BMHK, v_BMHK, backend, bias_BHNM)
    if backend == "xformers":
        return _xformers_attention(q_BNHK, k_BMHK, v_BMHK, bias_BHNM)
    bias = None if bias_BHNM is None else bias_BHNM.to(q_BNHK.dtype)
    q_BHNK, k_BHMK, v_BHMK = (x.transpose(1, 2) for x in (q_BNHK, k_BMHK, v_BMHK))
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q_BHNK, k_BHMK, v_BHMK, attn_mask=bias).transpose(1, 2)
    if backend == "math":
        return _math_attention(q_BHNK, k_BHMK, v_BHMK, bias).transpose(1, 2)
    raise ValueError(f"attention backend '{backend}' does not exist; write {', '.join(get_args(AttentionBackend))}")


def _segmented_attention(
    q_1NHK: Tensor, k_1MHK: Tensor, v_1MHK: Tensor, backend: AttentionBackend, segments: Segments
) -> Tensor:
    found, wanted = (q_1NHK.shape[1], k_1MHK.shape[1]), (sum(segments.queries), sum(segments.keys))
    if q_1NHK.shape[0] != 1 or found != wanted:
        raise ValueError(f"segments of {wanted} queries and keys do not fit {q_1NHK.shape[0]} rows of {found}")
    if segments.equal:
        q, k, v = (x[0].unflatten(0, (len(segments.queries), -1)) for x in (q_1NHK, k_1MHK, v_1MHK))
        return attention(q, k, v, backend).flatten(0, 1)[None]
    if backend == "xformers":
        return _xformers_attention(q_1NHK, k_1MHK, v_1MHK, segments)
    if backend == "sdpa":
        return _padded_attention(q_1NHK, k_1MHK, v_1MHK, segments)
    of_queries, of_keys = q_1NHK.split(segments.queries, 1), [x.split(segments.keys, 1) for x in (k_1MHK, v_1MHK)]
    parts = [attention(q, k, v, backend) for q, k, v in zip(of_queries, *of_keys, strict=True)]
    return torch.cat(parts, dim=1)


def _padded_attention(q_1NHK: Tensor, k_1MHK: Tensor, v_1MHK: Tensor, segments: Segments) -> Tensor:
    lengths = torch.tensor([segments.queries, segments.keys]).to(q_1NHK.device, non_blocking=True)
    most = max(segments.queries), max(segments.keys)

    def places(which: int) -> Tensor:
        """Where in the padded batch, its samples behind each other, each token lies."""
        length_B = lengths[which]
        total = q_1NHK.shape[1] if which == 0 else k_1MHK.shape[1]
        ids_B = torch.arange(len(length_B), device=length_B.device)
        sample_R = ids_B.repeat_interleave(length_B, output_size=total)
        first_B = length_B.cumsum(0) - length_B
        return sample_R * most[which] + torch.arange(total, device=length_B.device) - first_B[sample_R]

    def padded(x_1RHK: Tensor, which: int) -> Tensor:
        x_RHK = x_1RHK[0]
        batch = len(segments.queries)
        wide = x_RHK.new_zeros(batch * most[which], *x_RHK.shape[1:]).index_copy(0, at[which], x_RHK)
        return wide.unflatten(0, (batch, most[which]))

    at = places(0), places(1)
    is_key_BM = torch.arange(most[1], device=q_1NHK.device)[None] < lengths[1][:, None]
    bias_B11M = torch.zeros_like(is_key_BM, dtype=q_1NHK.dtype).masked_fill(~is_key_BM, float("-inf"))[:, None, None]
    out = attention(padded(q_1NHK, 0), padded(k_1MHK, 1), padded(v_1MHK, 1), "sdpa", bias_B11M)
    return out.flatten(0, 1)[at[0]][None]


def _math_attention(q_BHNK: Tensor, k_BHMK: Tensor, v_BHMK: Tensor, bias: Tensor | None) -> Tensor:
    dtype = torch.promote_types(q_BHNK.dtype, torch.float32)
    with torch.autocast(q_BHNK.device.type, enabled=False):
        scores_BHNM = q_BHNK.to(dtype) @ k_BHMK.to(dtype).transpose(2, 3) * q_BHNK.shape[-1] ** -0.5
        if bias is not None:
            scores_BHNM = scores_BHNM + bias
        return (scores_BHNM.softmax(-1) @ v_BHMK.to(dtype)).to(q_BHNK.dtype)


def _xformers_attention(q_BNHK: Tensor, k_BMHK: Tensor, v_BMHK: Tensor, bias: Any) -> Tensor:
    xformers_ops, cpu_operators = _load_xformers()
    if isinstance(bias, Segments):
        bias = bias.block_diagonal.to(q_BNHK.device)
    elif bias is not None:
        num_keys = k_BMHK.shape[1]
        # The CUDA kernels want the rows of a bias 16 bytes apart: pad to a multiple of 8 keys, then slice.
        bias = F.pad(bias.to(q_BNHK.dtype), (0, -num_keys % 8))[..., :num_keys]
        bias = bias.expand(q_BNHK.shape[0], q_BNHK.shape[2], q_BNHK.shape[1], num_keys)
    op = cpu_operators if q_BNHK.device.type == "cpu" else None
    out: Tensor = xformers_ops.memory_efficient_attention(q_BNHK, k_BMHK, v_BMHK, attn_bias=bias, op=op)
    return out


def _load_xformers() -> tuple[Any, tuple[type, type]]:
    """`xformers.ops`, and our forward and backward operators for CPU tensors."""
    global _loaded
    if _loaded is None:
        _loaded = _import_xformers()
    return _loaded


_loaded: tuple[Any, tuple[type, type]] | None = None
"""Kept in plain sight of torch.compile, which looks through functools.cache and would trace the import."""


def _import_xformers() -> tuple[Any, tuple[type, type]]:
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
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    aten = torch.ops.aten

    def blocks(bias: Any, of_queries: tuple[Tensor, ...], of_keys: tuple[Tensor, ...]) -> Any:
        """What each call of the kernel gets, heads before tokens: all at once, or sample by sample."""
        if not isinstance(bias, BlockDiagonalMask):
            yield *(x.transpose(1, 2) for x in (*of_queries, *of_keys)), bias
            return
        for (q0, q1), (k0, k1) in zip(bias.q_seqinfo.intervals(), bias.k_seqinfo.intervals(), strict=True):
            parts = [*(x[:, q0:q1] for x in of_queries), *(x[:, k0:k1] for x in of_keys)]
            yield *(x.transpose(1, 2) for x in parts), None

    def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What the calls gave, behind each other; of one call as it is, laid out with tokens before heads."""
        return parts[0] if len(parts) == 1 else tuple(torch.cat(found, dim=2) for found in zip(*parts, strict=True))

    class CpuOperator:
        SUPPORTED_DEVICES = frozenset({"cpu"})
        SUPPORTED_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
        SUPPORTED_MAX_K = 65536
        SUPPORTED_ATTN_BIAS_TYPES = (type(None), Tensor, BlockDiagonalMask)
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
            parts = [
                cls.OPERATOR(q, k, v, attn_mask=bias, scale=inp.scale_float)
                for q, k, v, bias in blocks(inp.attn_bias, (inp.query,), (inp.key, inp.value))
            ]
            out, lse = joined(parts)
            out = out.transpose(1, 2)
            return out, common.Context(lse=lse, out=out) if needs_gradient else None

    class CpuBackward(CpuOperator, common.AttentionBwOpBase):
        OPERATOR = aten._scaled_dot_product_flash_attention_for_cpu_backward
        NAME = "fusmaeB-cpu"

        @classmethod
        def apply(cls, ctx: Any, inp: Any, grad: Tensor) -> Any:
            of_queries = (grad, inp.query, ctx.out, ctx.lse.transpose(1, 2))
            parts = [
                cls.OPERATOR(g, q, k, v, out, lse, 0.0, False, attn_mask=bias, scale=inp.scale_float)
                for g, q, out, lse, k, v, bias in blocks(inp.attn_bias, of_queries, (inp.key, inp.value))
            ]
            dq, dk, dv = (x.transpose(1, 2) for x in joined(parts))
            return common.Gradients(dq=dq, dk=dk, dv=dv)

    return CpuForward, CpuBackward


def _ready(backend: AttentionBackend) -> AttentionBackend:
    """The backend, imported."""
    if backend == "xformers":
        _load_xformers()
    return backend


class SelfAttention(nn.Module):
    """Multi-head self-attention of a ViT block: one map to queries, keys and values, then an output map."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.heads, self.backend = heads, _ready(backend)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, bias_BHNM: Tensor | Segments | None = None) -> Tensor:
        """(B, N, D)."""
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(attention(q, k, v, self.backend, bias_BHNM).flatten(2))
        return out


class CrossAttention(nn.Module):
    """CA(x, y): the tokens of x ask those of y (Fus-MAE Eq. 4-5), multi-head, with maps for q and for k, v."""

    def __init__(self, width: int, heads: int, backend: AttentionBackend = "xformers") -> None:
        super().__init__()
        self.heads, self.backend = heads, _ready(backend)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor, y_BMD: Tensor, bias_BHNM: Tensor | Segments | None = None) -> Tensor:
        """(B, N, D); `bias_BHNM` is added to the attention scores, or divides a row into samples."""
        q = self.q(x_BND).unflatten(2, (self.heads, -1))
        k, v = self.kv(y_BMD).unflatten(2, (2, self.heads, -1)).unbind(2)
        out: Tensor = self.proj(attention(q, k, v, self.backend, bias_BHNM).flatten(2))
        return out

    @torch.no_grad()
    def load_self_attention(self, source: SelfAttention) -> None:
        """Take the weights of a ViT block's self-attention of the same width."""
        width = self.q.in_features
        self.q.load_state_dict({key: value[:width] for key, value in source.qkv.state_dict().items()})
        self.kv.load_state_dict({key: value[width:] for key, value in source.qkv.state_dict().items()})
        self.proj.load_state_dict(source.proj.state_dict())
