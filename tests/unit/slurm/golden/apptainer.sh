#!/bin/bash

# Parameters
#SBATCH --error=/runs/first/submitit/%j/%j_0_log.err
#SBATCH --gpus-per-node=4
#SBATCH --job-name=fusmae-small
#SBATCH --no-requeue
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/runs/first/submitit/%j/%j_0_log.out
#SBATCH --signal=USR2@120
#SBATCH --time=1440
#SBATCH --wckey=submitit

# setup
export FUSMAE_CHAIN=none
export FUSMAE_CHAIN_OPTIONS=''
original_path=${PYTHONPATH:-}
submitit_logs=/runs/first/submitit
job_command=("$submitit_logs/${FUSMAE_CHAIN_ID:-$SLURM_JOB_ID}/${FUSMAE_CHAIN_ID:-$SLURM_JOB_ID}_submission.sh")
export PYTHONPATH=/runs/first/code/submitted-NOW${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1  # python -m would take the code of the folder of submission first
source /runs/first/code/submitted-NOW/slurm/attempt.sh
source /runs/first/code/submitted-NOW/slurm/preflight.sh
attempt_begin /runs/first 20
trap : TERM  # to outlive srun, and say how the attempt ended
srun_container=()
in_rank=(apptainer exec --nv --pwd /home/user --bind /home/user:/home/user,/runs/first:/runs/first,/data/ben:/data/ben '/images/fusmae 1.sif' env PYTHONPATH=/runs/first/code/submitted-NOW PYTHONSAFEPATH=1 python3)
preflight 4 1 /runs/first/code/submitted-NOW/config.yaml

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/first/submitit/%j/%j_%t_log.out --error /runs/first/submitit/%j/%j_%t_log.err --kill-on-bad-exit=1 apptainer exec --nv --pwd /home/user --bind /home/user:/home/user,/runs/first:/runs/first,/data/ben:/data/ben '/images/fusmae 1.sif' env PYTHONPATH=/runs/first/code/submitted-NOW PYTHONSAFEPATH=1 python3 -u -m submitit.core._submit /runs/first/submitit/%j


# teardown
attempt_end $?
