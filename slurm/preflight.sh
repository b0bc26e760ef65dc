# shellcheck shell=bash
# Before a rank is started, each node looks at itself; a node that is unfit is named, and the run goes on without it.
# Sourced beside slurm/attempt.sh, whose functions it uses; defines functions only.
#
#   preflight RANKS CPUS CONFIG.yaml [key.sub=value ...]    after attempt_begin; returns if ranks may start
#
# RANKS of a node, CPUS of a rank. The array in_rank holds the words that start Python in a task, the array srun_container
# the options of srun that it needs. FUSMAE_PREFLIGHT: 1 (default for two nodes and more), 0 (default for one), or full:
# the packages are imported too, and all ranks compute and reduce for some seconds.
#
# In RUN_DIR/preflight: JOB-RESTART/NODE.json, what each node found; JOB-RESTART/suspects; and unfit, the nodes that the
# run keeps away from, until they pass a preflight or are taken from the file.

# shellcheck disable=SC2034,SC2154 # run_dir, restarts, suspect and errors_before are attempt.sh's

# Seconds for all nodes to answer: each ends its checks by itself before that.
PREFLIGHT_LIMIT_S=150
PREFLIGHT_FULL_LIMIT_S=330

preflight() {
    local ranks=$1 cpus=$2 wanted=${FUSMAE_PREFLIGHT:-} began=$SECONDS limit nodes=${SLURM_JOB_NUM_NODES:-1}
    local quick=1 folder=$run_dir/preflight/$SLURM_JOB_ID-$restarts names=()
    shift 2
    case $wanted in
        "") [ "$nodes" -ge 2 ] || return 0 ;;
        0) return 0 ;;
        1) ;;
        full) quick="" ;;
        *) attempt_stop 2 fatal "FUSMAE_PREFLIGHT is '$wanted'; give 0, 1 or full" ;;
    esac
    limit=$PREFLIGHT_LIMIT_S
    [ "$wanted" != full ] || limit=$PREFLIGHT_FULL_LIMIT_S
    mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    mkdir -p "$folder"
    preflight_step "$limit" srun ${srun_container[@]+"${srun_container[@]}"} --nodes="$nodes" --ntasks="$nodes" \
        --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 --label "${in_rank[@]}" -m slurm.preflight "$@" ${quick:+--quick} --limit-s=$((limit - 30)) \
        --json-file="$folder/%N.json"
    preflight_judge "$folder" ${late:+--late} "${names[@]}"
    if [ "$wanted" = full ]; then
        MASTER_PORT=$((MASTER_PORT + 1)) preflight_step "$limit" srun ${srun_container[@]+"${srun_container[@]}"} \
            --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus" \
            --kill-on-bad-exit=0 --wait=0 --label "${in_rank[@]}" -m slurm.probe --folder="$folder"
        preflight_judge "$folder" --probe "$ranks" "${names[@]}"
    fi
    say "preflight passed after $((SECONDS - began)) s"
    errors_before=$(stat -c %s "$errors" 2>/dev/null || echo 0) # what is said from here on, the ranks' srun says
}

# preflight_step LIMIT COMMAND...: runs srun, in the background, since bash runs a trap only between commands or in
# `wait`. Sets late if it was ended after LIMIT seconds.
preflight_step() {
    local rc
    timeout --kill-after=20 "$@" </dev/null &
    srun_pid=$!
    while :; do
        wait "$srun_pid"
        rc=$?
        kill -0 "$srun_pid" 2>/dev/null || break # else a signal ended the wait
    done
    srun_pid=""
    late=""
    case $rc in 124 | 137) late=1 ;; esac
}

# preflight_judge FOLDER ARGUMENT...: returns if the nodes are fit; else the attempt ends here.
preflight_judge() {
    local folder=$1 rc left had step=()
    shift
    [ -z "${asked_to_stop:-}" ] || attempt_again saved
    rm -f "$folder/suspects"
    [ -z "${srun_container[*]-}" ] || step=(srun --nodes=1 --ntasks=1 "${srun_container[@]}") # its Python is there alone
    ${step[@]+"${step[@]}"} "${in_rank[@]}" -m slurm.preflight_report "$folder" "$@"
    rc=$?
    case $rc in
        0) return 0 ;;
        3) attempt_again saved ;;
    esac
    suspect=$(cat "$folder/suspects" 2>/dev/null)
    suspect=${suspect:--}
    if [ "$suspect" != - ]; then
        had=$(job_field ExcNodeList)
        left=$(nodes_without "$(bad_nodes)${had:+,$(scontrol show hostnames "$had" | paste -sd ,)}")
        if [ "$left" -lt "${SLURM_JOB_NUM_NODES:-1}" ]; then
            say "$suspect is unfit, and without it $left nodes are up where ${SLURM_JOB_NUM_NODES:-1} are needed"
            attempt_stop 1 preflight "have $suspect looked at, then submit the same command again"
        fi
    fi
    attempt_again preflight
}
