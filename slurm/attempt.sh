# shellcheck shell=bash
# One attempt of a training job on SLURM: how it is recorded, how it meets, how it ends.
# Sourced by slurm/pretrain.sh and by the batch files that slurm.submit writes; defines functions only.
#
#   attempt_begin RUN_DIR MAX_RESTARTS   record the attempt, export MASTER_ADDR and MASTER_PORT
#   attempt_end RC                       after srun, with its exit code: go on (slurm/chain.sh) or exit
#
# The array job_command holds the script and its arguments, as sbatch takes them, for whatever goes on.
#
# In RUN_DIR: attempts/JOB-RESTART.tsv, one file an attempt, written when it begins ("interrupted") and again
# when it ends, so that a kill at any moment leaves a true record; attempts.tsv is all of them, in order.
# The trainer says how it ended in outcome.json, {"outcome": "done|saved|stopped|failed|fatal", "step": N, "attempt":
# "JOB.RESTART"} (FUSMAE_ATTEMPT); srun's exit code does not tell: it is the highest of all ranks, and that of a rank which srun
# ended (143) hides the one that mattered.

MAX_STUCK_ATTEMPTS=3
# Failures of a run for which a node is blamed, after which the run is kept away from it.
BAD_NODE_AFTER=2
# Longer than the watchdog of a rank that is behind a cut network takes to end it (watchdog.data_s, and a minute).
MAX_WAIT_FOR_FOLDER_S=360

# shellcheck source=slurm/chain.sh
source "${BASH_SOURCE[0]%/*}/chain.sh"

say() { echo "$(date +%FT%T) [$attempt] $*"; }

attempt_begin() {
    run_dir=$1
    max_restarts=$2
    # To scontrol and scancel, the number of an array's last element is the whole array.
    this_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    this_job=${this_job:-$SLURM_JOB_ID}
    began=$(date +%FT%T)
    mkdir -p "$run_dir/attempts" || exit 1
    chain=${FUSMAE_CHAIN:-requeue}
    successor=""
    [ "$chain" != chain ] || export FUSMAE_CHAIN_ID=${FUSMAE_CHAIN_ID:-$SLURM_JOB_ID}
    restarts=$(chain_restarts)
    attempt=$SLURM_JOB_ID.$restarts
    export FUSMAE_ATTEMPT=$attempt
    chain_join
    first_step=$(newest_step)
    suspect=-
    errors=$(job_field StdErr)
    errors_before=$(stat -c %s "$errors" 2>/dev/null || echo 0)
    attempt_record interrupted
    chain_begin
    wait_for_folder

    MASTER_ADDR=$(first_host)
    # Below the kernel's ephemeral ports; another one for each restart, as the last one may still be held.
    MASTER_PORT=$((15000 + (SLURM_JOB_ID * 7 + restarts) % 15000))
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
    say "start on ${SLURM_JOB_NODELIST:-this node} at step $first_step, rendezvous at $MASTER_ADDR:$MASTER_PORT"
}

# Until the first rank of an earlier attempt has left the run folder. Behind a cut network it lives on, and to start
# beside it is an attempt that fails.
wait_for_folder() {
    local waited=0
    while folder_is_held && [ -z "${asked_to_stop:-}" ]; do
        if [ $waited -ge $MAX_WAIT_FOR_FOLDER_S ]; then
            say "$run_dir is still in use by $(cat "$run_dir/lock")"
            return 0
        fi
        [ $waited -gt 0 ] || say "waiting for $(cat "$run_dir/lock") to leave the run folder"
        waited=$((waited + 1))
        sleep 1 &
        wait $! # which a signal ends
    done
}

# Whether a rank 0 trains in the run folder. flock says 75 when another holds the lock, and something else where the file
# system has no locks.
folder_is_held() {
    [ -e "$run_dir/lock" ] || return 1
    flock --nonblock --conflict-exit-code=75 "$run_dir/lock" true 2>/dev/null
    [ $? -eq 75 ]
}

# Where rank 0 runs: by name, or by address when the name does not resolve.
first_host() {
    local host
    host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    if ! getent hosts "$host" >/dev/null; then
        host=$(scontrol show node "$host" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p' | head -n 1)
    fi
    echo "${host:-127.0.0.1}"
}

# The last step that the run folder knows of: of its checkpoints (a folder bears its name once it is whole) and
# of its metrics (for checkpoints on an object store).
newest_step() {
    local newest=0 path step
    for path in "$run_dir"/checkpoints/step-*; do
        step=${path##*/step-}
        [[ $step =~ ^[0-9]+$ ]] && ((10#$step > newest)) && newest=$((10#$step))
    done
    if [ -f "$run_dir/metrics.jsonl" ]; then
        while read -r step; do
            ((step > newest)) && newest=$step
        done < <(tail -n 2 "$run_dir/metrics.jsonl" | sed -n 's/.*"step": *\([0-9][0-9]*\).*/\1/p')
    fi
    echo "$newest"
}

# Columns: job, restart, nodes, began, ended, first step, last step, end, the node that is blamed for it.
attempt_record() {
    local file=$run_dir/attempts/$SLURM_JOB_ID-$restarts.tsv ended=-
    [ "$1" = interrupted ] || ended=$(date +%FT%T)
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$SLURM_JOB_ID" "$restarts" "${SLURM_JOB_NODELIST:--}" "$began" \
        "$ended" "$first_step" "$(newest_step)" "$1" "$suspect" >"$file.tmp" && mv "$file.tmp" "$file"
    cat "$run_dir"/attempts/*.tsv | sort -t $'\t' -k 1,1n -k 2,2n >"$run_dir/.attempts.$attempt" &&
        mv "$run_dir/.attempts.$attempt" "$run_dir/attempts.tsv"
}

# stuck_attempts END: how many attempts of this job or its chain in a row, this one included, ended without a step forward
# and without a save. Those that failed in the preflight, which started no rank, are counted apart from the others.
stuck_attempts() {
    chain_attempts |
        awk -F '\t' -v end="$1" '$8 == "saved" || $7 > $6 { stuck = 0; next }
            ($8 == "preflight") == (end == "preflight") { stuck++ } END { print stuck + 0 }'
}

# outcome_field outcome|step|attempt: a value of outcome.json, nothing when there is none.
outcome_field() {
    sed -n 's/.*"'"$1"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$run_dir/outcome.json" 2>/dev/null | head -n 1
}

# job_field NAME [JOB]: a field of scontrol's of this job or of another; "(null)" is nothing.
job_field() {
    scontrol show job --oneliner "${2:-$this_job}" 2>/dev/null | sed -n 's/.* '"$1"'=\([^ ]*\).*/\1/p' | grep -v '^(null)$'
}

# The node that is to blame for a failed attempt, "-" when that is not clear: the one whose rank held up the others, by
# the watchdog's word, else the one whose rank ended first, by srun's. Those after it were ended because of it.
blamed_node() {
    local node="" hosts
    if [ "$run_dir/stacks/HANG" -nt "$run_dir/attempts/$SLURM_JOB_ID-$restarts.tsv" ]; then
        hosts=$(tail -qn 1 "$run_dir"/events-rank*.jsonl 2>/dev/null | grep '"event": "hang"' |
            grep -o 'host [^, .;)]*' | sort -u | cut -d ' ' -f 2)
        [ "$(wc -w <<<"$hosts")" -eq 1 ] && node=$hosts
    elif [ -n "$errors" ]; then
        node=$(tail -c "+$((errors_before + 1))" "$errors" 2>/dev/null |
            sed -n 's/^srun: error: \([^ :]*\): tasks\{0,1\} [^:]*: .*/\1/p' | head -n 1)
    fi
    scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -Fx -- "${node:--}" || echo -
}

# Nodes that were blamed for so many failures of this run that it is to keep away from them, and those that failed its
# preflight, with commas.
bad_nodes() {
    {
        awk -F '\t' -v least="$BAD_NODE_AFTER" '$8 == "failed" && $9 != "-" && $9 != "" { count[$9]++ }
            END { for (node in count) if (count[node] >= least) print node }' "$run_dir"/attempts/*.tsv
        cat "$run_dir/preflight/unfit" 2>/dev/null
    } | sort -u | paste -sd ,
}

# How many nodes of the partition are up and not among those given.
nodes_without() {
    sinfo --noheader -N -p "$SLURM_JOB_PARTITION" -t idle,alloc,mix,comp -o %N 2>/dev/null | sort -u |
        grep -vcFx -f <(tr ',' '\n' <<<"$1")
}

# keep_away JOB: have the job that goes on run without the run's bad nodes, as long as enough others are left. SLURM takes
# this of a waiting job only, and this script lives on for a moment after a requeue.
keep_away() {
    local job=$1 bad had why="failed $BAD_NODE_AFTER times"
    bad=$(bad_nodes)
    [ -n "$bad" ] || return 0
    [ ! -s "$run_dir/preflight/unfit" ] || why+=" or a preflight"
    if [ "$(nodes_without "$bad")" -lt "${SLURM_JOB_NUM_NODES:-1}" ]; then
        say "$bad $why, but without it too few nodes are left"
        return 0
    fi
    had=$(job_field ExcNodeList "$job")
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        if scontrol update JobId="$job" ExcNodeList="${had:+$had,}$bad" 2>/dev/null; then
            say "$bad $why; the run keeps away from it"
            return 0
        fi
        sleep 0.2
    done
    say "$bad $why, but SLURM does not exclude it; give sbatch --exclude=$bad"
}

# State and reason, as in "RUNNING None". A job that is being ended says COMPLETING, whether it was cancelled,
# preempted or ran out of time; only the last has a reason, TimeLimit.
job_state() {
    scontrol show job --oneliner "$this_job" 2>/dev/null |
        sed -n 's/.*JobState=\([A-Z_]*\) Reason=\([^ ]*\).*/\1 \2/p'
}

attempt_end() {
    local rc=$1 outcome="" step=""
    # An outcome of an earlier attempt, or of one that lives on behind a cut network, is not ours.
    if [ "$(outcome_field attempt)" = "$attempt" ]; then
        outcome=$(outcome_field outcome)
        step=$(outcome_field step)
    fi
    say "$([ "$chain" = local ] && echo launcher || echo srun) ended with $rc, the trainer said '${outcome:-nothing}'${step:+ at step $step}"
    case ${outcome:-none-$rc} in
        "done") attempt_stop 0 "done" "finished" ;;
        saved) attempt_again saved ;;
        stopped) attempt_stop 0 stopped "stopped by the file STOP; submit the same command to go on" ;;
        fatal | none-2) attempt_stop 2 fatal "the command or its settings cannot work; not tried again" ;;
        none-0) attempt_stop 1 unknown "the ranks ended well but left no outcome in $run_dir; not tried again" ;;
        *) attempt_again failed ;;
    esac
}

# attempt_stop RC END SENTENCE: the job ends here.
attempt_stop() {
    attempt_record "$2"
    say "$3"
    chain_end
    [ -z "${pin:-}" ] || rm -f "$pin" # no attempt of this job will look for its code
    exit "$1"
}

# attempt_again END: have the run go on, unless that cannot help or is not wanted.
attempt_again() {
    local end=$1 state
    [ "$end" != failed ] || suspect=$(blamed_node)
    attempt_record "$end"
    state=$(job_state)
    case $state in
        "COMPLETING TimeLimit") ;; # late, but it may still go back
        COMPLETING* | CANCELLED*)
            pin=""
            was_cancelled "$state" || chain_keep
            attempt_stop 1 "$end" "the job was ended from outside ($state); the run goes on only if SLURM says so"
            ;;
    esac
    if [ "$end" != saved ] && [ "$(stuck_attempts "$end")" -ge "$MAX_STUCK_ATTEMPTS" ]; then
        attempt_stop 1 "$end" "no step forward in $MAX_STUCK_ATTEMPTS attempts; mend the cause, then submit again"
    fi
    if [ "$restarts" -ge "$max_restarts" ]; then
        attempt_stop 1 "$end" "restarted $restarts times, which is the limit; submit the same command to go on"
    fi
    case $state in
        PENDING*)
            say "$end; SLURM has put the job back into the queue"
            exit 0
            ;;
    esac
    [ "$chain" = local ] || trap '' TERM USR1 # a requeue ends this script with a signal
    case $chain in
        chain) chain_go_on "$end" ;;
        local)
            say "$end; trying again"
            return 0
            ;;
        none) attempt_stop 1 "$end" "$end; FUSMAE_CHAIN is none, go on with: $(go_on_command)" ;;
    esac
    say "$end; back into the queue"
    scontrol requeue "$this_job" && keep_away "$this_job" && exit 0
    say "the requeue was refused; submit the same command to go on"
    exit 1
}
