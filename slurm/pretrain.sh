#!/usr/bin/env bash
# Pretraining as a batch job: one rank a GPU, saved and requeued before the time limit and after a failure.
#
#   sbatch [-N nodes --gpus-per-node=G --cpus-per-gpu=C ...] slurm/pretrain.sh CONFIG.yaml [key.sub=value ...]
#
# Ranks a node: --ntasks-per-node, else the node's GPUs, else 1. Any sbatch option overrides a line below.
# Without SLURM it starts `python -m pipeline.pretrain`, which starts run.num_processes ranks by itself.
#
#   FUSMAE_PYTHON         the Python to use (default: .venv beside this folder, else python3)
#   FUSMAE_MAX_RESTARTS   how often the job may be put back into the queue (default 20)
#
# Exit code: 0 done, or back in the queue; 1 failed; 2 wrong usage or settings, not tried again.
#SBATCH --job-name=fusmae
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
set -u

# sbatch runs a copy of this file from its spool folder, so the file's own place may say nothing.
find_root() {
    local root command=""
    [ -z "${SLURM_JOB_ID:-}" ] ||
        command=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
    for root in "$(dirname "${BASH_SOURCE[0]}")/.." ${command:+"$(dirname "$command")/.."} "${SLURM_SUBMIT_DIR:-.}"; do
        if [ -f "$root/slurm/attempt.sh" ]; then
            (cd "$root" && pwd)
            return
        fi
    done
    echo "error: slurm/attempt.sh not found; submit from the repository: sbatch slurm/pretrain.sh CONFIG.yaml" >&2
    return 1
}

# Ranks a node: as asked for with --ntasks-per-node, else one a GPU, else one.
ranks_per_node() {
    local gpus=${SLURM_GPUS_ON_NODE:-0}
    echo "${SLURM_NTASKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}"
}

# CPUs that the job holds on its smallest node; SLURM writes them as 16(x2),8.
cpus_per_node() {
    tr ',' '\n' <<<"${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-1}}" | sed 's/(.*//' | sort -n | head -n 1
}

# The warning before the time limit goes to this script alone; the ranks take SIGUSR2 as "save and stop".
# Without --batch, scancel signals the job's steps and not this script.
# shellcheck disable=SC2317 # called by the traps
pass_on() {
    asked_to_stop=1
    interrupted=1
    [ -n "$srun_pid" ] || return
    say "got SIG$1; the ranks are asked to save and stop"
    # Whoever ends the whole job with SIGTERM has sent it to the ranks too, and scancel knows the job no more.
    scancel --signal=USR2 "$SLURM_JOB_ID" 2>/dev/null || [ "$1" = TERM ] || say "scancel could not signal the ranks"
}

# run_ranks SRUN_ARGUMENT...: sets rc to srun's exit code. srun runs in the background, since bash runs a trap
# only between commands or in `wait`, which the trap then ends.
run_ranks() {
    srun "$@" &
    srun_pid=$!
    while :; do
        interrupted=""
        wait "$srun_pid"
        rc=$?
        [ -n "$interrupted" ] || break
    done
}

# Where a job's copy of the code and its Python are, for the attempts after the first: those know no more than the job's
# number until they have found the code.
pin_file() {
    echo "${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}/fusmae/${SLURM_CLUSTER_NAME:-cluster}-${SLURM_JOB_ID:-none}"
}

# take_copy: the job's own copy of code and settings, from which all its attempts run.
take_copy() {
    code=$run_dir/code/$SLURM_JOB_ID
    "$python" -m slurm.snapshot "$code" "$config" || exit 1
    pin=$(pin_file)
    { mkdir -p "$(dirname "$pin")" && printf '%s\n' "$code" "$python" >"$pin"; } 2>/dev/null ||
        echo "warning: $pin cannot be written; after a requeue the job runs the code of $root" >&2
}

code="" config=${1:-}
if [ -z "$config" ]; then
    echo "usage: [sbatch] slurm/pretrain.sh CONFIG.yaml [key.sub=value ...]" >&2
    exit 2
fi
shift
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -f "$(pin_file)" ]; then
    { read -r code && read -r python; } <"$(pin_file)"
    if [ -f "$code/slurm/attempt.sh" ]; then
        root=$code config=$code/config.yaml pin=$(pin_file)
    else
        code=""
    fi
fi
if [ ! -f "$config" ]; then
    echo "error: no config file '$config' (in $PWD); give the path of a YAML file, such as configs/NAME.yaml" >&2
    exit 2
fi
max_restarts=${FUSMAE_MAX_RESTARTS:-20}
if ! [[ $max_restarts =~ ^[0-9]+$ ]]; then
    echo "error: FUSMAE_MAX_RESTARTS is '$max_restarts'; give a whole number" >&2
    exit 2
fi

if [ -z "$code" ]; then
    root=$(find_root) || exit 2
    python=${FUSMAE_PYTHON:-$root/.venv/bin/python}
    [ -n "${FUSMAE_PYTHON:-}" ] || [ -x "$python" ] || python=python3
fi
original_path=${PYTHONPATH:-}
export PYTHONPATH=$root${original_path:+:$original_path}

if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec "$python" -m pipeline.pretrain "$config" "$@"
fi
export PYTHONSAFEPATH=1 # python -m would take the code of the folder of submission first

srun_pid="" asked_to_stop=""
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

# Settings that cannot work end here, before a rank starts.
run_dir=$("$python" -m pipeline.pretrain "$config" "$@" --print run.dir)
rc=$?
if [ $rc -ne 0 ]; then
    [ $rc -eq 2 ] || rc=1
    exit $rc
fi
run_dir=${run_dir##*$'\n'}
case $run_dir in
    *://*)
        echo "error: run.dir is $run_dir; under SLURM it must be a folder that all nodes share" >&2
        exit 2
        ;;
    /*) ;;
    *) run_dir=$PWD/$run_dir ;;
esac

ranks=$(ranks_per_node)
cpus=$(cpus_per_node)
if [ "$cpus" -lt "$ranks" ]; then
    echo "error: $ranks ranks a node but $cpus CPUs; give sbatch --cpus-per-gpu=N or --exclusive" >&2
    exit 2
fi

[ -n "$code" ] || take_copy
export PYTHONPATH=$code${original_path:+:$original_path}
# shellcheck source=slurm/attempt.sh
source "$code/slurm/attempt.sh"
attempt_begin "$run_dir" "$max_restarts"
[ -z "$asked_to_stop" ] || attempt_again saved
# The step's CPUs are given in one way only: srun refuses --cpus-per-gpu beside --cpus-per-task.
unset SLURM_CPUS_PER_GPU
run_ranks --kill-on-bad-exit=1 --label --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-$((cpus / ranks))}" "$python" -u -m slurm.task "$code/config.yaml" "$@"
attempt_end "$rc"
