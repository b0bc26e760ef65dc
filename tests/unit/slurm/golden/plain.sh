#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --error=/runs/first/submitit/%j/%j_0_log.err
#SBATCH --gpus-per-node=4
#SBATCH --job-name=fusmae-small
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/runs/first/submitit/%j/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
export FUSMAE_CHAIN=requeue
export PYTHONPATH=/runs/first/code/submitted-NOW${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # python -m would take the code of the folder of submission first
source /runs/first/code/submitted-NOW/slurm/attempt.sh
source /runs/first/code/submitted-NOW/slurm/preflight.sh
attempt_begin /runs/first 20
trap : TERM  # to outlive srun, and say how the attempt ended
srun_container=()
in_rank=(/usr/bin/python3)
preflight 4 8 /runs/first/code/submitted-NOW/config.yaml

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/first/submitit/%j/%j_%t_log.out --error /runs/first/submitit/%j/%j_%t_log.err --kill-on-bad-exit=1 --cpus-per-task=8 /usr/bin/python3 -u -m submitit.core._submit /runs/first/submitit/%j


# teardown
attempt_end $?
