# shellcheck shell=bash
# Sourced by the batch script before it looks for Python. It may set FUSMAE_PYTHON, too.
if command -v module >/dev/null; then
    module load CUDA Python
fi
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
