# shellcheck shell=bash
# How a job goes on when an attempt has ended and must go on. Sourced by slurm/attempt.sh; defines functions only.
#
#   FUSMAE_CHAIN=requeue   the job goes back into the queue (the default)
#               =chain     another job takes over: submitted when the attempt begins, it waits for its end
#               =none      the job ends with code 1 and says which command goes on
#   FUSMAE_CHAIN_OPTIONS   more options of sbatch for those jobs: what SLURM does not tell of a running one, as --signal
#   FUSMAE_CHAIN_ID        set by the chain itself: its first job (an element of a job array has a number of its own)
#
# A node that dies takes this script with it, so a successor that is submitted at the end of an attempt would be missing
# just then. In RUN_DIR: attempts/FIRST_JOB.chain, the jobs of a chain in the order in which they were submitted.

# The jobs of this chain, or this job alone.
chain_jobs() {
    if [ "$chain" = chain ] && [ -f "$run_dir/attempts/$FUSMAE_CHAIN_ID.chain" ]; then
        cat "$run_dir/attempts/$FUSMAE_CHAIN_ID.chain"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# The recorded attempts of this job's chain, in order.
chain_attempts() {
    local job
    for job in $(chain_jobs); do
        cat "$run_dir/attempts/$job"-*.tsv 2>/dev/null
    done | sort -t $'\t' -k 2,2n -k 1,1n
}

# chain_restarts: how many attempts there were before this one. A controller that was killed counts on from the state that
# it had last saved, so its number may have been given before.
chain_restarts() {
    local number=${SLURM_RESTART_COUNT:-0}
    if [ "$chain" = chain ]; then
        chain_attempts | grep -c .
        return
    fi
    while [ -e "$run_dir/attempts/$SLURM_JOB_ID-$number.tsv" ]; do
        number=$((number + 1))
    done
    echo "$number"
}

# state_of JOB: SLURM's word, nothing when it has forgotten the job.
state_of() {
    local state
    state=$(squeue --noheader --states=all --format=%T --jobs="$1" 2>/dev/null | head -n 1)
    [ -n "$state" ] || state=$(sacct --noheader --parsable2 --allocations --format=State --jobs="$1" 2>/dev/null | head -n 1)
    echo "${state%% *}"
}

# chain_join: whether there is anything to do for this job; it ends here when there is not.
chain_join() {
    [ "$chain" = chain ] || return 0
    local jobs=$run_dir/attempts/$FUSMAE_CHAIN_ID.chain job before="" said
    grep -qsFx "$SLURM_JOB_ID" "$jobs" || echo "$SLURM_JOB_ID" >>"$jobs"
    said=$(outcome_field attempt)
    if grep -qFx -- "${said%%.*}" "$jobs"; then
        case $(outcome_field outcome) in
            "done" | stopped) chain_leave "the run is $(outcome_field outcome) already" ;;
        esac
    fi
    # shellcheck disable=SC2013 # one number a line
    for job in $(cat "$jobs"); do
        [ "$job" != "$SLURM_JOB_ID" ] || continue
        # Both the controller and the chain may have started an attempt. The one that holds the folder goes on; while
        # nobody does, the elder.
        if [ "$(state_of "$job")" = RUNNING ] && { folder_is_held || [ "$job" -lt "$SLURM_JOB_ID" ]; }; then
            pin="" # which is that job's, too
            chain_leave "job $job is at it"
        fi
        [ "$job" -gt "$SLURM_JOB_ID" ] || before=$job
    done
    if [ -n "$before" ] && [ "$(state_of "$before")" = CANCELLED ]; then
        chain_leave "job $before was cancelled, which ends its chain; submit the same command to go on"
    fi
}

# chain_leave WHY
chain_leave() {
    say "nothing to do: $1"
    [ -z "${pin:-}" ] || rm -f "$pin"
    exit 0
}

# chain_begin: the controller must not put back a job that another one takes over from, and that one gets into the queue.
chain_begin() {
    [ "$chain" != requeue ] || return 0
    scontrol update JobId="$this_job" Requeue=0 2>/dev/null || say "SLURM may put the job back by itself, too"
    [ "$chain" = chain ] || return 0
    successor=$(chain_jobs | awk -v own="$SLURM_JOB_ID" '$1 > own' | tail -n 1)
    [ -z "$successor" ] || [ "$(state_of "$successor")" = PENDING ] || successor=""
    if [ -z "$successor" ] && [ "$restarts" -lt "$max_restarts" ]; then
        chain_submit || say "it is tried again at the end of this attempt"
    fi
}

# chain_submit: sets successor; fails when sbatch refuses.
chain_submit() {
    local options said
    mapfile -t options < <(chain_options)
    if ! said=$(submit_again "${options[@]}" --dependency="afterany:$this_job" 2>&1); then
        say "the job that is to go on was refused: $said"
        return 1
    fi
    successor=$(grep -o '^[0-9][0-9]*' <<<"$said" | tail -n 1)
    echo "$successor" >>"$run_dir/attempts/$FUSMAE_CHAIN_ID.chain"
    if [ -n "${submitit_logs:-}" ]; then # submitit looks for its task under the number of the job
        mkdir -p "$submitit_logs/$successor"
        ln -sf "$submitit_logs/$FUSMAE_CHAIN_ID/${FUSMAE_CHAIN_ID}_submitted.pkl" \
            "$submitit_logs/$successor/${successor}_submitted.pkl"
    fi
    say "job $successor goes on when this one ends"
}

# submit_again OPTION...: sbatch of this job's script and arguments, without what belongs to this job alone.
submit_again() (
    for name in "${!SLURM_@}"; do
        case $name in SLURM_CONF*) ;; *) unset "$name" ;; esac
    done
    unset MASTER_ADDR MASTER_PORT
    [ -z "${original_path+given}" ] || export PYTHONPATH=$original_path
    [ -z "${python:-}" ] || export FUSMAE_PYTHON=$python
    sbatch --parsable --export=ALL "$@" "${job_command[@]}"
)

# chain_options: one option of sbatch a line, as SLURM tells them of this job.
chain_options() {
    local job name excluded
    job=$(scontrol show job --oneliner "$this_job" 2>/dev/null)
    field() { sed -n 's/.* '"$1"'=\([^ ]*\).*/\1/p' <<<"$job" | grep -v -e '^(null)$' -e '^N/A$'; }
    option() { [ -z "$2" ] || printf -- '--%s=%s\n' "$1" "$2"; }
    option job-name "${SLURM_JOB_NAME:-$(field JobName)}"
    for name in account:Account qos:QOS partition:Partition reservation:Reservation time:TimeLimit constraint:Features \
        licenses:Licenses nodelist:ReqNodeList mem-per-cpu:MinMemoryCPU; do
        option "${name%%:*}" "$(field "${name#*:}")"
    done
    [ -n "$(field MemPerTres)" ] || option mem "$(field MinMemoryNode)" # it is one or the other
    option nodes "${SLURM_JOB_NUM_NODES:-1}"
    option ntasks-per-node "${SLURM_NTASKS_PER_NODE:-}"
    option cpus-per-task "${SLURM_CPUS_PER_TASK:-}"
    # gres:gpu:h200:4 in one version, gres/gpu:h200=4 in another; --gres=gpu:4 and --gpus-per-node=4 are told alike.
    amounts() { field "$1" | tr , '\n' | sed -n 's/^gres[:/]//; s/=/:/; '"$2" | paste -sd ,; }
    option gpus-per-node "$(amounts TresPerNode 's/^gpu://p')"
    option gres "$(amounts TresPerNode '/^gpu:/!p')"
    option gpus "$(amounts TresPerJob 's/^gpu://p')"
    option gpus-per-task "$(amounts TresPerTask 's/^gpu://p')"
    option cpus-per-gpu "$(amounts CpusPerTres 's/^gpu://p')"
    option mem-per-gpu "$(amounts MemPerTres 's/^gpu://p')"
    case $(field OverSubscribe) in
        NO) echo --exclusive ;;
        USER) echo --exclusive=user ;;
        YES) echo --oversubscribe ;;
    esac
    excluded=$(field ExcNodeList)
    option exclude "$(printf '%s\n' "$excluded" "$(usable_without_bad_nodes)" | grep . | paste -sd ,)"
    option comment "$(job_line Comment)"
    option chdir "$(job_line WorkDir)"
    option output "$(job_line StdOut)"
    [ "$(job_line StdErr)" = "$(job_line StdOut)" ] || option error "$(job_line StdErr)"
    echo --open-mode=append
    echo --no-requeue
    # shellcheck disable=SC2086 # words
    [ -z "${FUSMAE_CHAIN_OPTIONS:-}" ] || printf '%s\n' $FUSMAE_CHAIN_OPTIONS
}

# job_line NAME: a field that may hold blanks, which scontrol prints on a line of its own.
job_line() {
    scontrol show job "$this_job" 2>/dev/null | sed -n "s/^ *$1=//p" | grep -v '^(null)$' | head -n 1
}

# The run's bad nodes, nothing where too few others would be left.
usable_without_bad_nodes() {
    local bad
    bad=$(bad_nodes)
    [ -z "$bad" ] || [ "$(nodes_without "$bad")" -lt "${SLURM_JOB_NUM_NODES:-1}" ] || echo "$bad"
}

# chain_go_on END: what follows this attempt is in the queue, or cannot be.
chain_go_on() {
    if [ -z "$successor" ] || ! [[ $(state_of "$successor") =~ ^(PENDING|RUNNING|CONFIGURING)$ ]]; then
        if ! chain_submit; then
            say "$1; submit the same command to go on"
            exit 1
        fi
    fi
    say "$1; job $successor goes on"
    keep_away "$successor"
    exit 0
}

# was_cancelled STATE: whether a person ended the job, by job_state's word. SLURM gives a reason when it did so because of a
# node, and a time of preemption when it took the nodes away for another job.
was_cancelled() {
    [ "${1#* }" = None ] && ! [[ $(job_field PreemptTime) =~ ^[0-9] ]]
}

# chain_keep: leave the successor in the queue, whatever ends this job.
chain_keep() {
    successor=""
}

# chain_end: nothing follows this attempt.
chain_end() {
    [ "$chain" = chain ] && [ -n "$successor" ] || return 0
    scancel "$successor" 2>/dev/null || say "job $successor could not be cancelled; it will find nothing to do"
}

# go_on_command: what a person types to go on, for FUSMAE_CHAIN=none.
go_on_command() {
    local options
    mapfile -t options < <(chain_options)
    printf 'FUSMAE_CHAIN=none FUSMAE_PYTHON=%q sbatch' "${python:-}"
    printf ' %q' "${options[@]}" "${job_command[@]}"
}
