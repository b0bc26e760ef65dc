"""What turns a loss into a step: DeepSpeed ZeRO, or plain DDP as the reference for numbers and speed.

Both keep fp32 master weights and fp32 AdamW moments; with bf16 the model that computes is a bf16 copy. The interface
is small on purpose: the loop knows no engine.
"""

import contextlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from pipeline.errors import CheckpointError
from pipeline.fp32_weights import Piece, WeightShare
from pipeline.memory_plan import bucket_elements
from pipeline.optimiser import build_adamw
from pipeline.settings import Settings

_TAG = "engine"


class Engine(ABC):
    """One model being trained on all ranks."""

    device: Any

    @abstractmethod
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The model's forward pass on one micro-batch."""

    @abstractmethod
    def backward(self, loss: Any, is_last: bool) -> None:
        """Accumulate gradients of one micro-batch's loss; `is_last` of the step."""

    @abstractmethod
    def step(self, lr: float) -> None:
        """Apply the accumulated gradients at rate `lr`."""

    @abstractmethod
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient before clipping, None when it is not known. Waits for the device."""

    @property
    @abstractmethod
    def skipped_steps(self) -> int:
        """Steps that were not applied because a gradient was not finite. Waits for the device."""

    @property
    @abstractmethod
    def module(self) -> Any:
        """The model that computes; at ZeRO stage 3 calling it is a collective."""

    @abstractmethod
    def snapshot(self, copied: Callable[[Any], Any]) -> dict[str, Any]:
        """This rank's part of the engine's state, by the path of the file that `torch.save` will write. A collective.

        What is given is made by `copied`, which may return its argument where nothing changes before it is written.
        """

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `snapshot` gave, from files in `folder`. A collective."""

    @abstractmethod
    def copy_weights(self, into: dict[str, Any]) -> None:
        """Copy the weights that compute into tensors of this rank's device; other names are left out. A collective."""

    @abstractmethod
    def weights(self, copied: Callable[[Any], Any]) -> WeightShare:
        """What this rank holds of the fp32 weights, made by `copied` as in `snapshot`. Waits for no other rank."""


def build_engine(model: Any, settings: Settings, device: Any, accumulation: int, universal: bool) -> Engine:
    """The engine of `settings.engine`; `universal` when it will load a checkpoint of another world size."""
    if settings.engine.name == "ddp":
        return DdpEngine(model, settings, device, accumulation)
    return DeepSpeedEngine(model, settings, device, accumulation, universal)


class DeepSpeedEngine(Engine):
    """ZeRO 0-3 with a client `torch.optim.AdamW`, so that nothing has to be compiled."""

    def __init__(self, model: Any, settings: Settings, device: Any, accumulation: int, universal: bool) -> None:
        deepspeed = import_deepspeed(device)
        stage = settings.engine.zero_stage
        config = {
            "train_micro_batch_size_per_gpu": 1,  # samples are counted by the stream; only accumulation matters here
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": settings.optim.clip,
            "bf16": {"enabled": settings.engine.precision == "bf16"},
            "zero_optimization": {
                "stage": stage,
                "overlap_comm": settings.engine.overlap,
                "reduce_bucket_size": bucket_elements(settings.engine),
            },
            "zero_force_ds_cpu_optimizer": False,
            "communication_data_type": "fp32",
            "steps_per_print": 10**9,
            "checkpoint": {"load_universal": universal},
        }
        if settings.engine.precision == "bf16" and stage == 1:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        self.device = device
        optimiser = build_adamw(model, settings.optim, device)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its memory use, whatever its log level
            self._engine, *_ = deepspeed.initialize(
                model=model, model_parameters=model.parameters(), optimizer=optimiser, config=config
            )
        # It would copy its conversion scripts into every checkpoint; ours holds converted weights.
        self._engine._copy_recovery_script = lambda *_: None
        from pipeline.deepspeed_recorder import Recorder

        self._engine.checkpoint_engine = self._recorder = Recorder()

    @override
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._engine(*inputs, **named)

    @override
    def backward(self, loss: Any, is_last: bool) -> None:
        self._engine.backward(loss)
        if not is_last:
            self._engine.step()

    @override
    def step(self, lr: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()

    @override
    def grad_norm(self) -> float | None:
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    @property
    @override
    def skipped_steps(self) -> int:
        return int(self._engine.skipped_steps)

    @property
    @override
    def module(self) -> Any:
        return self._engine.module

    @override
    def snapshot(self, copied: Callable[[Any], Any]) -> dict[str, Any]:
        from deepspeed.checkpoint.constants import UNIVERSAL_CHECKPOINT_INFO

        files: dict[str, Any] = {}

        def take(path: str, state: Any) -> None:
            files[os.path.relpath(path, "snapshot")] = copied(state)

        # The empty entry is what DeepSpeed's converter asks for when the world size changes (stages 1 and 2).
        client_state: dict[str, Any] = {UNIVERSAL_CHECKPOINT_INFO: {}}
        with self._recorder.taking(take):
            self._engine.save_checkpoint("snapshot", tag=_TAG, client_state=client_state, save_latest=False)
        return files

    @override
    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise CheckpointError(f"DeepSpeed found no state in {folder / _TAG}; delete this checkpoint's folder")

    @override
    def copy_weights(self, into: dict[str, Any]) -> None:
        import torch
        from deepspeed.runtime.zero import GatheredParameters

        is_sharded = self._engine.zero_optimization_stage() == 3
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                with GatheredParameters([parameter]) if is_sharded else contextlib.nullcontext():
                    if name in into:
                        into[name].copy_(parameter)

    @override
    def weights(self, copied: Callable[[Any], Any]) -> WeightShare:
        import torch.distributed as dist

        share, rank = WeightShare(), dist.get_rank()
        for name, parameter in self._engine.module.named_parameters():
            share.shapes[name] = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if (piece := _own_piece(name, parameter, rank)) is not None:
                share.pieces.append(piece._replace(values=copied(piece.values)))
        return share


def _own_piece(name: str, parameter: Any, rank: int) -> Piece | None:
    """What this rank holds of a parameter's fp32 master, as DeepSpeed shards it; None: nothing."""
    if hasattr(parameter, "ds_id"):  # stage 3: equal shares, the last ones padded
        from deepspeed.utils import safe_get_local_fp32_param

        own = safe_get_local_fp32_param(parameter)
        values = (parameter.ds_tensor if own is None else own).detach().float().flatten()
        start = rank * parameter.ds_tensor.ds_numel
        length = min(len(values), parameter.ds_numel - start)
        return Piece(name, start, values[:length]) if length > 0 else None
    if hasattr(parameter, "_hp_mapping"):  # stages 1 and 2: a run of all parameters, None where it has none of this one
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        return Piece(name, mapping.lp_fragment_address.start, mapping.get_hp_fragment().detach().flatten())
    return Piece(name, 0, parameter.detach().float().flatten()) if rank == 0 else None


class DdpEngine(Engine):
    """Plain PyTorch: DistributedDataParallel, fp32 master weights kept by hand, no sharding.

    A step waits for the device where AdamW is not fused, on a CPU, and nowhere else.
    """

    def __init__(self, model: Any, settings: Settings, device: Any, accumulation: int) -> None:
        import torch

        self.device = device
        self._clip = settings.optim.clip
        self._accumulation = accumulation
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        model = model.to(device)
        if settings.engine.precision == "bf16":
            model = model.to(torch.bfloat16)
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        # Masters start from the rounded weights, as in DeepSpeed.
        self._masters = [torch.nn.Parameter(p.detach().float().clone()) for p in self._parameters]
        masters = _Bag(dict(zip(named, self._masters, strict=True)), model.no_weight_decay())
        self._optimiser = build_adamw(masters, settings.optim, device)
        self._is_fused = bool(self._optimiser.defaults["fused"])
        self._model = torch.nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            bucket_cap_mb=settings.engine.bucket_mib,
        )
        self._sums: list[Any] = []
        self._norm: Any = None

    @override
    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._model(*inputs, **named)

    @override
    def backward(self, loss: Any, is_last: bool) -> None:
        # DDP averages after every micro-batch, so that accumulation can be in fp32, as in DeepSpeed.
        (loss / self._accumulation).backward()
        grads = [p.grad.float() for p in self._parameters]
        self._sums = grads if not self._sums else [a + b for a, b in zip(self._sums, grads, strict=True)]
        for parameter in self._parameters:
            parameter.grad = None

    @override
    def step(self, lr: float) -> None:
        import torch

        for master, grad in zip(self._masters, self._sums, strict=True):
            master.grad = grad
        self._sums = []
        self._norm = torch.nn.utils.get_total_norm([m.grad for m in self._masters if m.grad is not None])
        is_finite = torch.isfinite(self._norm)
        self._skipped += ~is_finite
        if self._is_fused:
            # The kernel reads the flag and leaves weights and moments alone: nobody waits for the device.
            self._optimiser.found_inf, self._optimiser.grad_scale = (~is_finite).float(), None
        elif not bool(is_finite):
            return
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(self._masters, self._clip, self._norm)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters, strict=True):
                parameter.copy_(master)

    @override
    def grad_norm(self) -> float | None:
        return None if self._norm is None else float(self._norm)

    @property
    @override
    def skipped_steps(self) -> int:
        return int(self._skipped)

    @property
    @override
    def module(self) -> Any:
        return self._model.module

    @override
    def snapshot(self, copied: Callable[[Any], Any]) -> dict[str, Any]:
        import torch.distributed as dist

        if dist.get_rank() != 0:
            return {}
        state = {"masters": [m.detach() for m in self._masters], "optimiser": self._optimiser.state_dict()}
        return {f"{_TAG}/ddp.pt": copied(state | {"skipped": int(self._skipped)})}

    @override
    def load(self, folder: Path) -> None:
        import torch

        state = torch.load(folder / _TAG / "ddp.pt", map_location=self.device, weights_only=True)
        self._optimiser.load_state_dict(state["optimiser"])
        self._skipped.fill_(state["skipped"])
        with torch.no_grad():
            for parameter, master, saved in zip(self._parameters, self._masters, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(saved)

    @override
    def copy_weights(self, into: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, parameter in self._model.module.named_parameters():
                if name in into:
                    into[name].copy_(parameter)

    @override
    def weights(self, copied: Callable[[Any], Any]) -> WeightShare:
        import torch.distributed as dist

        named = [name for name, p in self._model.module.named_parameters() if p.requires_grad]
        masters = dict(zip(named, self._masters, strict=True))
        share = WeightShare(shapes={name: tuple(master.shape) for name, master in masters.items()})
        if dist.get_rank() == 0:
            share.pieces = [Piece(name, 0, copied(master.detach().flatten())) for name, master in masters.items()]
        return share


class _Bag:
    """Parameters of a model that stand in for its own."""

    def __init__(self, parameters: dict[str, Any], no_weight_decay: set[str]) -> None:
        self._parameters, self._no_weight_decay = parameters, no_weight_decay

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        return iter(self._parameters.items())

    def no_weight_decay(self) -> set[str]:
        return self._no_weight_decay


def _import_muon() -> None:
    """Import DeepSpeed's Muon uncompiled: torch's compiler, for what nobody here calls, is a second of every start.

    DeepSpeed imports it to ask of each optimiser whether it is that one.
    """
    import torch

    compile_ = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compile_


def import_deepspeed(device: Any) -> Any:
    """DeepSpeed, quiet and without a compiler.

    On the CPU its gloo backend would compile `deepspeed_shm_comm` (33-48 s, and a crash without ninja) for an
    operation that training never calls.
    """
    from pipeline.distributed import use_accelerator

    use_accelerator(device)
    import deepspeed
    import deepspeed.ops

    _import_muon()
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed 0.19.8 calls a collective that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
