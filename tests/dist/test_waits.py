"""Between two log lines no step of ours waits for the device, and no rank collects garbage by itself."""

from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.dist.conftest import Run, said_by_ranks

pytestmark = pytest.mark.dist

NewRun = Callable[..., Run]
QUIET: Final = ("train.steps=6", "log.every=100", "checkpoint.every=100", "log.trace=false")
LAST_CALL: Final = 12
OURS: Final = {"pipeline/stop.py:StopRequest.agreed: _local_scalar_dense"}
"""A flag of the step before, in the host's memory: no device is waited for."""
DEEPSPEED: Final = {
    "zero0": {"utils.py:clip_grad_norm_: tensor"},
    "zero1": {
        "utils.py:mask_nan_or_inf_with_val_inplace: tensor",
        "utils.py:is_invalid_grad_norm: _local_scalar_dense",
        "utils.py:clip_tensors_by_global_norm: _local_scalar_dense",
    },
    "zero2": {
        "zero/stage_1_and_2.py:DeepSpeedZeroOptimizer.has_overflow: _local_scalar_dense",
        "utils.py:mask_nan_or_inf_with_val_inplace: tensor",
        "utils.py:is_invalid_grad_norm: _local_scalar_dense",
    },
    "zero3": {
        "zero/stage3.py:DeepSpeedZeroOptimizer_Stage3.get_grad_norm_direct: tensor",
        "utils.py:is_invalid_grad_norm: _local_scalar_dense",
    },
}
"""As docs/design/engine.md has them, below deepspeed/runtime."""


def _said(run: Run, kind: str) -> list[dict[str, Any]]:
    """What both ranks of `tests.dist.waits` say."""
    said = said_by_ranks("tests.dist.waits", kind, *run.command[3:])
    assert len(said) == 2
    return said


def test_ddp_waits_nowhere_and_collects_when_all_do(new_run: NewRun) -> None:
    for said in _said(new_run("run", *QUIET, "engine.name=ddp", "engine.gc_every=2"), "fused"):
        assert said["waits"].keys() == OURS
        assert [call for call in said["collections"] if call < LAST_CALL] == [4, 8]  # two micro-batches a step


def test_what_waits_and_what_collects_by_chance_is_seen(new_run: NewRun) -> None:
    for said in _said(new_run("run", *QUIET, "engine.name=ddp", "engine.gc_every=0"), "plain"):
        own = "pipeline/engine.py:DdpEngine.step: _local_scalar_dense"  # on a CPU, where AdamW is not fused
        assert said["waits"].keys() == OURS | {own}
        assert [call for call in said["collections"] if call < LAST_CALL] not in ([], [4, 8])


@pytest.mark.parametrize(
    "engine", ["zero1", *(pytest.param(f"zero{stage}", marks=pytest.mark.slow) for stage in (0, 2, 3))]
)
def test_deepspeed_waits_where_its_design_page_says(new_run: NewRun, engine: str) -> None:
    precision = "fp32" if engine == "zero0" else "bf16"
    options = (f"engine.zero_stage={engine[-1]}", f"engine.precision={precision}")
    for said in _said(new_run("run", *QUIET, *options), "fused"):
        reads = {where for where in said["waits"] if not where.endswith(": all_reduce")}  # NCCL's do not stop the host
        assert reads == OURS | {f"deepspeed/runtime/{where}" for where in DEEPSPEED[engine]}
        assert [call for call in said["collections"] if call < LAST_CALL] == []
