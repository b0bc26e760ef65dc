# shellcheck shell=bash
# `slurm/pretrain.sh --local`: a run on this machine, without SLURM, that goes on by itself after a failure, as a batch
# job would: the same record, the same limits, the same exit codes. Sourced by slurm/pretrain.sh after slurm/attempt.sh.
#
# Ctrl-C and SIGTERM save and stop for good, a second Ctrl-C ends at once; SIGUSR2 saves and goes on.

# There is no SLURM to ask.
job_state() { :; }
job_field() { :; }
blamed_node() { echo -; }

# run_local RUN_DIR MAX_RESTARTS COMMAND...: run COMMAND until the run is over or given up.
run_local() {
    run_dir=$1 max_restarts=$2 chain=local successor=""
    shift 2
    SLURM_JOB_NODELIST=$(uname -n)
    mkdir -p "$run_dir/attempts" || exit 1
    attempt=local
    if folder_is_held; then
        say "$run_dir is in use by $(cat "$run_dir/lock"); end it first or choose another run.dir"
        exit 1
    fi
    for ((restarts = 0; ; restarts++)); do
        attempt=$SLURM_JOB_ID.$restarts
        export FUSMAE_ATTEMPT=$attempt
        began=$(date +%FT%T)
        first_step=$(newest_step)
        suspect=-
        attempt_record interrupted
        wait_for_folder
        [ -z "$asked_to_stop" ] || attempt_stop 1 saved "stopped; the same command goes on"
        say "start at step $first_step"
        set -m # a process group of its own: the terminal's Ctrl-C comes to this script, which passes it on once
        run_and_wait "$@"
        set +m
        local_end "$rc"
    done
}

# local_end RC: as attempt_end, but whoever asked for the end gets it.
local_end() {
    if [ -n "$asked_to_stop" ] && [ "$(outcome_field outcome)" != "done" ]; then
        if [ "$(outcome_field attempt)" = "$attempt" ] && [ "$(outcome_field outcome)" = saved ]; then
            attempt_stop "$1" saved "saved; the same command goes on"
        fi
        attempt_stop 1 failed "ended before it could save; the same command goes on from the save before"
    fi
    attempt_end "$1"
}

# shellcheck disable=SC2317 # called by the traps
pass_on_local() {
    [ "$1" = USR2 ] || asked_to_stop=1
    interrupted=1
    [ -z "$srun_pid" ] || kill -s "$1" "$srun_pid" 2>/dev/null
}
