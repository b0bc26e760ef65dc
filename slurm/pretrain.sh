#!/usr/bin/env bash
# Pretraining as a batch job: one rank a GPU, saved and requeued before the time limit and after a failure.
#
#   sbatch [-N nodes --gpus-per-node=G --cpus-per-gpu=C ...] slurm/pretrain.sh CONFIG.yaml [key.sub=value ...]
#   sbatch --array=... slurm/pretrain.sh --elements FOLDER        for slurm.sweep: the arguments lie in FOLDER/INDEX.args
#   slurm/pretrain.sh --local CONFIG.yaml [key.sub=value ...]
#
# Ranks a node: --ntasks-per-node, else the node's GPUs, else 1. Any sbatch option overrides a line below.
# --local, without SLURM: run.num_processes ranks on this machine, started again after a failure (slurm/local.sh).
# Without either it is `python -m pipeline.pretrain`, once.
#
#   FUSMAE_PYTHON         the Python to use (default: .venv beside this folder, else python3; in a container python3)
#   FUSMAE_MAX_RESTARTS   how often the run may go on after an attempt that ended early (default 20)
#   FUSMAE_CHAIN          how it goes on: requeue (default), chain or none; see slurm/chain.sh
#   FUSMAE_SETUP, FUSMAE_CONTAINER, FUSMAE_CONTAINER_MOUNTS, FUSMAE_RUN_PREFIX    see slurm/container.sh
#   FUSMAE_PREFLIGHT      1: each node looks at itself first (default for two nodes and more); 0: none does; full: the
#                         packages are imported too, and all ranks compute and reduce for some seconds
#
# Exit code: 0 done, or the run goes on in the queue; 1 failed; 2 wrong usage or settings, not tried again.
#SBATCH --job-name=fusmae
#SBATCH --requeue --open-mode=append --signal=B:USR1@120
set -u

# sbatch runs a copy of this file from its spool folder, so the file's own place may say nothing.
find_root() {
    local root command=""
    [ -n "$is_local" ] || [ -z "${SLURM_JOB_ID:-}" ] ||
        command=$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null | head -n 1 | sed -n 's/.* Command=\([^ ]*\).*/\1/p')
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
    scancel --signal=USR2 "$this_job" 2>/dev/null || [ "$1" = TERM ] || say "scancel could not signal the ranks"
}

# run_and_wait COMMAND...: sets rc to its exit code. It runs in the background, since bash runs a trap only between
# commands or in `wait`, which the trap then ends.
run_and_wait() {
    "$@" &
    srun_pid=$!
    while :; do
        interrupted=""
        wait "$srun_pid"
        rc=$?
        [ -n "$interrupted" ] || break
    done
    srun_pid=""
}

# Where a job's copy of the code and its Python are, for the attempts after the first: those know no more than the number
# of the job, or of the first of their chain, until they have found the code.
pin_file() {
    local state=${XDG_STATE_HOME:-${HOME:-/nonexistent}/.local/state}
    echo "$state/fusmae/${SLURM_CLUSTER_NAME:-cluster}-${FUSMAE_CHAIN_ID:-${SLURM_JOB_ID:-none}}"
}

is_later_attempt() {
    [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || [ "${FUSMAE_CHAIN_ID:-${SLURM_JOB_ID:-}}" != "${SLURM_JOB_ID:-}" ]
}

# take_copy: the job's own copy of code and settings, from which all its attempts run.
take_copy() {
    code=$run_dir/code/$SLURM_JOB_ID
    once "$python" -m slurm.snapshot "$code" "$config" || exit 1
    [ -z "${FUSMAE_SETUP:-}" ] || keep_setup "$FUSMAE_SETUP" "$code"
    [ -z "$is_local" ] || return 0
    pin=$(pin_file)
    { mkdir -p "$(dirname "$pin")" && printf '%s\n' "$code" "$python" >"$pin"; } 2>/dev/null ||
        echo "warning: $pin cannot be written; after a requeue the job runs the code of $root" >&2
}

code="" pin="" is_local=""
if [ "${1:-}" = --elements ]; then
    # An element of a job array (slurm.sweep): its config and settings, one a line.
    mapfile -t words <"${2:-.}/${SLURM_ARRAY_TASK_ID:-none}.args" || exit 2
    set -- "${words[@]}"
fi
if [ "${1:-}" = --local ]; then
    is_local=1
    shift
    # Nothing of an allocation in whose shell this may run; the number tells one start from another.
    unset "${!SLURM_@}" FUSMAE_CHAIN
    SLURM_JOB_ID=$(date +%s)
fi
config=${1:-}
if [ -z "$config" ]; then
    echo "usage: [sbatch] slurm/pretrain.sh [--local] CONFIG.yaml [key.sub=value ...]" >&2
    exit 2
fi
shift
case ${FUSMAE_CHAIN:=requeue} in
    chain) ;;
    requeue | none) unset FUSMAE_CHAIN_ID ;;
    *)
        echo "error: FUSMAE_CHAIN is '$FUSMAE_CHAIN'; write requeue, chain or none" >&2
        exit 2
        ;;
esac
if is_later_attempt && [ -f "$(pin_file)" ]; then
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

[ -n "$code" ] || root=$(find_root) || exit 2
# shellcheck source=slurm/container.sh
source "$root/slurm/container.sh"
if [ -n "$code" ] && [ -f "$code/setup.sh" ]; then
    source_setup "$code/setup.sh"
elif [ -n "${FUSMAE_SETUP:-}" ]; then
    source_setup "$FUSMAE_SETUP"
fi
container_begin
if [ -z "$code" ]; then
    python=${FUSMAE_PYTHON:-$root/.venv/bin/python}
    [ -n "${FUSMAE_PYTHON:-}" ] || { [ -x "$python" ] && [ -z "$container" ]; } || python=python3
fi
original_path=${PYTHONPATH:-}
export PYTHONPATH=$root${original_path:+:$original_path}
container_sees "$PWD" "$root" "$(dirname "$config")"

if [ -z "${SLURM_JOB_ID:-}" ]; then
    exec ${prefix[@]+"${prefix[@]}"} "$python" -m pipeline.pretrain "$config" "$@"
fi
export PYTHONSAFEPATH=1 # python -m would take the code of the folder of submission first

srun_pid="" asked_to_stop=""
if [ -n "$is_local" ]; then
    for signal in INT TERM USR2; do
        # shellcheck disable=SC2064 # its name
        trap "pass_on_local $signal" $signal
    done
    trap 'pass_on_local TERM' HUP
else
    this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    this_job=${this_job:-$SLURM_JOB_ID}
    trap 'pass_on USR1' USR1
    trap 'pass_on TERM' TERM
fi

# Settings that cannot work end here, before a rank starts.
run_dir=$(once "$python" -m pipeline.pretrain "$config" "$@" --print run.dir)
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

if [ -z "$is_local" ]; then
    ranks=$(ranks_per_node)
    cpus=$(cpus_per_node)
    if [ "$cpus" -lt "$ranks" ]; then
        echo "error: $ranks ranks a node but $cpus CPUs; give sbatch --cpus-per-gpu=N or --exclusive" >&2
        exit 2
    fi
fi

if [ -n "$container" ]; then
    mkdir -p "$run_dir" || exit 1
    mapfile -t folders < <(once "$python" -m pipeline.local_folders "$config" "$@")
    container_sees "$run_dir" ${folders[@]+"${folders[@]}"}
fi
[ -n "$code" ] || take_copy
export PYTHONPATH=$code${original_path:+:$original_path}
container_sees "$code"
# shellcheck source=slurm/attempt.sh
source "$code/slurm/attempt.sh"
# shellcheck source=slurm/preflight.sh
source "$code/slurm/preflight.sh"
read -ra rank_prefix <<<"${FUSMAE_RUN_PREFIX:-}"
in_rank=(${rank_prefix[@]+"${rank_prefix[@]}"} ${prefix[@]+"${prefix[@]}"} "$python")
if [ -n "$is_local" ]; then
    # shellcheck source=slurm/local.sh
    source "$code/slurm/local.sh"
    run_local "$run_dir" "$max_restarts" "${in_rank[@]}" -m pipeline.pretrain "$code/config.yaml" "$@"
fi
job_command=("$code/slurm/pretrain.sh" "$code/config.yaml" "$@")
attempt_begin "$run_dir" "$max_restarts"
[ -z "$asked_to_stop" ] || attempt_again saved
# The step's CPUs are given in one way only: srun refuses --cpus-per-gpu beside --cpus-per-task.
unset SLURM_CPUS_PER_GPU
cpus_per_rank=${SLURM_CPUS_PER_TASK:-$((cpus / ranks))}
preflight "$ranks" "$cpus_per_rank" "$code/config.yaml" "$@"
run_and_wait srun ${srun_container[@]+"${srun_container[@]}"} --kill-on-bad-exit=1 --label \
    --ntasks=$((SLURM_JOB_NUM_NODES * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus_per_rank" \
    "${in_rank[@]}" -u -m slurm.task "$code/config.yaml" "$@"
attempt_end "$rc"
