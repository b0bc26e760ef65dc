"""Bytes that a rank holds of a model while it trains, and that a checkpoint writes, by engine and ZeRO stage.

The engines are those of `pipeline.engine`, DeepSpeed 0.19.8. What they hold was measured with torch's profiler on one,
two and four ranks, and is held to that by `tests/dist/test_dry_run.py`; docs/design/engine.md has the table.
"""

from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import ConfigError
from pipeline.progress import peak_flops
from pipeline.settings import EngineSettings

GPU_GIB: Final = {
    "H200": 139.7,
    "H100": 79.1,
    "GH200": 94.5,
    "A100": 79.1,
    "A100-40GB": 39.4,
    "L40S": 44.3,
    "L4": 22.0,
}
"""Memory of a GPU as torch reports it, rounded down; error correction takes some of what data sheets name."""
KEPT_FREE: Final = 0.1
"""Share of a GPU's memory that is not planned with: CUDA's context, NCCL, temporaries of the backward pass, gaps."""
_AT_ONCE: Final = 500_000_000
"""Elements that DeepSpeed reduces at once where it has no bucket, and that copies are counted of."""
RANK_FILE_BYTES: Final = 14_400
"""A rank's random number generators in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as far as plans need it."""

    name: str
    memory_bytes: int
    peak_flops: float
    """Dense bf16 operations a second."""

    @property
    def usable_bytes(self) -> int:
        """Memory without what is kept free."""
        return int(self.memory_bytes * (1 - KEPT_FREE))


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What decides who holds what."""

    name: str
    """`deepspeed` or `ddp`."""
    zero_stage: int
    precision: str
    """`bf16` or `fp32`."""
    bucket_mib: int = EngineSettings.bucket_mib
    """DeepSpeed allocates it whole, however small the model is."""
    overlaps: bool = False
    """With a second bucket that is filled while the first one is reduced."""

    @property
    def title(self) -> str:
        """For people."""
        return "DDP" if self.name == "ddp" else f"ZeRO-{self.zero_stage}"


@dataclass(frozen=True, kw_only=True)
class ModelStates:
    """Bytes of one rank, activations apart."""

    weights: int
    """In training precision; at stage 3 the rank's share, and all of them while they are gathered."""
    gradients: int
    """Of the micro-batch, and what is summed over the step."""
    masters: int
    """fp32 weights that the optimiser changes."""
    moments: int
    """AdamW's two, fp32."""
    buffers: int
    """For the communication of gradients, held while activations are."""
    copies: int
    """Of gradients, for communication and the optimiser, when the activations are gone."""

    @property
    def held(self) -> int:
        """All that is there together with the activations."""
        return self.weights + self.gradients + self.masters + self.moments + self.buffers

    @property
    def most(self) -> int:
        """The most that is there without activations."""
        return self.held + self.copies


def find_gpu(name: str) -> Gpu:
    """The GPU of that name; ConfigError with those that are known."""
    known = next((known for known in GPU_GIB if known.lower() == name.lower()), None)
    peak = peak_flops(known) if known else None
    if known is None or peak is None:
        raise ConfigError(f"--gpu {name} is not known; write one of {', '.join(GPU_GIB)}, or leave it out")
    return Gpu(name=known, memory_bytes=int(GPU_GIB[known] * 2**30), peak_flops=peak)


def kind_of(engine: EngineSettings) -> EngineKind:
    """The engine of a run."""
    return EngineKind(
        name=engine.name,
        zero_stage=0 if engine.name == "ddp" else engine.zero_stage,
        precision=engine.precision,
        bucket_mib=engine.bucket_mib,
        overlaps=engine.overlap,
    )


def kinds(engine: EngineSettings) -> tuple[EngineKind, ...]:
    """Every engine that trains in a run's precision, the run's own as it is; stage 0 is refused with bf16."""
    stages = (1, 2, 3) if engine.precision == "bf16" else (0, 1, 2, 3)
    own = kind_of(engine)
    same: dict[str, Any] = {"precision": engine.precision, "bucket_mib": engine.bucket_mib}
    others = [EngineKind(name="ddp", zero_stage=0, **same)]
    others += [EngineKind(name="deepspeed", zero_stage=stage, **same) for stage in stages]
    return tuple(own if (kind.name, kind.zero_stage) == (own.name, own.zero_stage) else kind for kind in others)


def can_overlap(engine: EngineSettings) -> bool:
    """Whether DeepSpeed can reduce gradients during the backward pass: not with its optimiser for bf16 at stage 1."""
    return engine.name == "deepspeed" and (
        engine.zero_stage >= 2 or (engine.zero_stage, engine.precision) == (1, "fp32")
    )


def bucket_elements(engine: EngineSettings | EngineKind) -> int:
    """Gradients that `bucket_mib` holds."""
    return engine.bucket_mib * 2**20 // (2 if engine.precision == "bf16" else 4)


def model_states(kind: EngineKind, parameters: int, world_size: int, accumulation: int) -> ModelStates:
    """What a rank holds of a model of so many parameters, in steps of `accumulation` micro-batches."""
    size = 2 if kind.precision == "bf16" else 4
    share = 1 / world_size
    summed = accumulation > 1
    in_bucket = min(parameters, _AT_ONCE) / parameters
    weights, gradients, masters, moments, copies = float(size), float(size), 4 * share, 8 * share, 0.0
    bucket = 0
    if kind.name == "ddp":
        # Masters keep their last gradient; the reducer has a copy of all gradients in its buckets.
        masters, moments, gradients = 4, 8, size + 4 + (4 if summed else 0)
        copies = (0 if size == 4 else 4) + (4 if summed else 0)
        bucket = size * parameters
    elif kind.zero_stage == 0:
        masters, moments, copies = 0, 8, 8 * in_bucket  # flattened, and what is reduced of that
    elif kind.zero_stage == 1 and size == 2:
        # BF16_Optimizer: an fp32 sum of all gradients on every rank, of which stage 1 shards nothing.
        gradients, copies = 2 + 4, 4 * in_bucket
    elif kind.zero_stage < 3:
        gradients = size + (size * share if summed else 0)
        if size == 2:
            copies = 4 * in_bucket if world_size > 1 else 6 - gradients
        else:
            copies = 4 * in_bucket
        bucket = size * bucket_elements(kind) * (2 if kind.overlaps else 1)
    else:
        gathered = size if world_size > 1 else 0
        weights, gradients = size * share + gathered, size * share + size
        copies = (9 if size == 2 else 8) * in_bucket
        bucket = 4 * bucket_elements(kind)
    return ModelStates(
        weights=round(weights * parameters),
        gradients=round(gradients * parameters),
        masters=round(masters * parameters),
        moments=round(moments * parameters),
        buffers=bucket,
        copies=round(copies * parameters),
    )


def checkpoint_bytes(kind: EngineKind, parameters: int, world_size: int) -> int:
    """What a save writes: the engine's state, model.safetensors and each rank's random number generators.

    Without names and headers, some 500 bytes a tensor.
    """
    size = 2 if kind.precision == "bf16" else 4
    engine = 4 + 8  # masters (or weights, at stage 0) and moments
    if kind.name == "deepspeed" and kind.zero_stage in (1, 2):
        engine += size  # the weights that compute, whole
    return (engine + 4) * parameters + RANK_FILE_BYTES * world_size
