"""The settings of a run, class by class; `pipeline.config` reads and checks them.

The classes that a setting configures own it: `fusmae.FusMAEConfig`'s fields stand under `model`, the stream's in
`pipeline.data_settings`, the others are here.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pipeline.data_settings import DataSettings

_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """AdamW and its schedule (Fus-MAE section 4.1; open points as in MAE)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    lr: float = 1.5625e-4
    """Peak learning rate, for the given global batch: it is not scaled behind your back."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_steps: int = 0
    """Steps of linear warm-up from warmup_lr."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    weight_decay: float = 0.05
    """Decay of matrices; biases, norms and single tokens have none."""
    clip: float = 0.0
    """Largest norm of the gradient over all ranks; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How long and in which pieces."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    steps: int
    """Optimiser steps of the whole run."""
    global_batch: int = 400
    """Samples of one step over all ranks and micro-batches (Fus-MAE: 2 x 200)."""
    micro_batch: int = 0
    """Samples of one forward pass of a rank; 0 takes global_batch / ranks at once."""
    seed: int = 0
    """Seed of initial weights, order, masks and flips."""
    init_weights: str = ""
    """File or URL of ViT weights (timm, MAE) that the encoder starts from; empty: random. Not read on resuming."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What runs the steps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    name: Literal["deepspeed", "ddp"] = "deepspeed"
    """deepspeed: ZeRO. ddp: plain PyTorch, the reference for numbers and speed."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """ZeRO stage: 1 shards the optimiser, 2 gradients too, 3 weights too. 0 shards nothing (fp32 only)."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Number format of weights and activations; optimiser, loss and targets stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""
    bucket_mib: int = 50
    """MiB of gradients, in precision's format, that are reduced at once by DDP, ZeRO 2 and 3, and ZeRO 1 in fp32."""
    overlap: bool = False
    """Reduce gradients during the backward pass at ZeRO 2 and 3, and 1 in fp32. DDP always does, bf16 ZeRO 1 never."""
    gc_every: int = 100
    """Steps between collections of Python's cyclic garbage, on all ranks at once; 0: whenever Python likes."""
    compile: bool = False
    """Compile the model with torch.compile, which needs a C++ compiler; masks with fixed numbers of patches only."""
    deterministic: bool = True
    """Refuse kernels whose results depend on chance, so that a resumed run equals an uninterrupted one bit for bit."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When to save and what to keep."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    every: int = 500
    """Steps between saves; the last step is always saved."""
    background: bool = True
    """Write while training goes on, from a copy in host memory; a save at the end or on a stop waits all the same."""
    url: str = ""
    """Where checkpoints lie, such as s3://bucket/runs/first; empty: run.dir/checkpoints."""
    staging: str = ""
    """Folder on each machine for what goes to a bucket or comes from it; empty: the system's temporary one."""
    keep: int = 2
    """Newest checkpoints kept; at least 2, so that a damaged one has a predecessor."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are kept besides, for good; 0: none."""
    keep_best: int = 0
    """The best checkpoints so far, of all that were ever saved, that are kept besides; 0: none."""
    best_by: Literal["loss", "knn", "ridge"] = "loss"
    """What is best: the lowest mean of the losses logged in the last `every` steps, or the highest macro mAP of the
    probe while training (`probe.every`), by kNN or ridge regression."""


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What the run says of itself."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    every: int = 10
    """Steps between lines in metrics.jsonl."""
    tensorboard: bool = True
    """Write event files under tensorboard/ too."""
    wandb: str = ""
    """Project of Weights & Biases to log to, too; empty: none. Needs the package wandb."""
    mlflow: str = ""
    """Tracking URI of MLflow to log to, too; empty: none. Needs the package mlflow."""
    trace: bool = False
    """Write each step's sample keys, a digest of its masks and its exact loss into trace-rankNNNNN.jsonl."""
    reconstructions: int = 0
    """Steps between reconstructions of four fixed samples, stored under reconstructions/; 0: never."""
    profile_steps: int = 0
    """Steps of which rank 0 writes a profile into profile/, from the fourth of each attempt on."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Where the run lives and how many processes it starts when nothing else started them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    dir: str
    """Run folder; the same folder again resumes."""
    num_processes: int = 0
    """Ranks started on this machine when neither torchrun nor SLURM did; 0: one for each GPU, one without."""
    threads: int = 0
    """CPU threads of torch in each rank; 0: the machine's cores divided by its ranks."""
    timeout_s: float = 600.0
    """Longest wait for another rank before the job gives up."""


@dataclass(frozen=True, kw_only=True)
class OnlineProbeSettings:
    """kNN and ridge regression on the frozen features of a fixed labelled subset, while the run trains."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    every: int = 0
    """Steps between probes; the last step is probed too. 0: never."""
    samples: int = 1024
    """Labelled samples of each split, the same ones always; kept in memory as stored, shared among the ranks."""
    train_split: str = "train"
    """Split on whose labels the probe is fitted."""
    test_split: str = "test"
    """Split that is scored."""
    neighbours: int = 20
    """Training samples that vote on a test sample's labels."""
    ridge: float = 1.0
    """Strength of the ridge: weight of the squared weights beside the mean squared error of standardised features."""
    batch_size: int = 64
    """Samples of one forward pass on a rank."""


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What is looked at before the first step, and which losses are told with the keys of their samples.

    Losses that are not finite always are.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    spike: float = 10.0
    """Standard deviations above the median of the steps before at which a loss leaps; 0: never."""
    window: int = 200
    """Steps before that are compared with."""
    rollback: int = 0
    """Times that a run goes back to a checkpoint, and on without the samples since, when a loss leaps or the run would
    end for want of finite numbers; 0: never."""
    dry_batch: Literal["auto", "always", "never"] = "auto"
    """Try a micro-batch before the first step, and say which fits when it does not. auto: on a GPU."""


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """How long a rank may stand still before the run ends with its stacks in the run folder; 0: for ever."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    start_s: float = 900.0
    """Longest time from the start of the process group to the end of the first step; the second step's limit too."""
    data_s: float = 300.0
    """Longest wait for a batch; a store that does not answer is asked again for two minutes."""
    step_s: float = 60.0
    """Longest time for a micro-batch with what follows it; five times that of the second step where that is more."""
    checkpoint_s: float = 300.0
    """Longest time for a save."""
    probe_s: float = 300.0
    """Longest time for an evaluation while training."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole run.

    `model` holds the fields of `fusmae.FusMAEConfig`, and under `cross_scale` those of `fusmae.CrossScaleConfig` where
    the run trains at two scales; both are checked by `model_config`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    data: DataSettings
    train: TrainSettings
    run: RunSettings
    model: dict[str, Any] = field(default_factory=dict)
    optim: OptimSettings = field(default_factory=OptimSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    probe: OnlineProbeSettings = field(default_factory=OnlineProbeSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
