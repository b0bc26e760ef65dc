"""Training as submitit's documentation shows it: a `Checkpointable` that is submitted again as it was.

What trains is the loop of DeepSpeed's documentation (`tests.dist.deepspeed_own`), which saves every few steps and
begins at its newest checkpoint. `checkpoint()` is submitit's own: the same call once more.
"""

import submitit
from submitit.helpers import Checkpointable, TorchDistributedEnvironment


class Training(Checkpointable):
    """One rank, with the environment that submitit makes."""

    def __call__(self, *arguments: str) -> None:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        from tests.dist import deepspeed_own

        deepspeed_own.main(list(arguments))


def submit(folder: str, arguments: list[str]) -> submitit.Job[None]:
    """On two nodes, one rank on each, and all else as submitit has it."""
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(nodes=2, ntasks_per_node=1, time=30, signal_delay_s=60, job_name="own")
    return executor.submit(Training(), *arguments)
