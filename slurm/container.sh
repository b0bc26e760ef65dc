# shellcheck shell=bash
# What a site needs around Python: a set-up file and a container. Sourced by slurm/pretrain.sh; functions only.
#
#   FUSMAE_SETUP=FILE         sourced before Python is looked for (module load ..., conda activate ...). It may set any
#                             variable of this list. The job keeps a copy beside its code, which its later attempts source.
#   FUSMAE_CONTAINER          pyxis:IMAGE (srun --container-image=IMAGE) or apptainer:IMAGE. The ranks run in it, and what
#                             this script asks of Python; what the script decides, and SLURM's commands, stay outside.
#   FUSMAE_CONTAINER_MOUNTS   more folders for it, SOURCE[:TARGET[:FLAGS]] with commas. There already: the working folder,
#                             the code, the run folder, and data and checkpoints where they are folders.
#   FUSMAE_RUN_PREFIX         words before each rank's command, such as `numactl --localalloc`; with pyxis in the container
#
# In a container, FUSMAE_PYTHON is a command of the image, python3 by default.

# source_setup FILE
source_setup() {
    if [ ! -f "$1" ]; then
        echo "error: FUSMAE_SETUP is '$1', and there is no such file" >&2
        exit 2
    fi
    set +u # conda's and many sites' files count on it
    # shellcheck disable=SC1090
    if ! source "$1"; then
        echo "error: the set-up file $1 failed" >&2
        exit 1
    fi
    set -u
}

# keep_setup FILE CODE: the copy that later attempts source, with its name and hash for whoever asks what ran.
keep_setup() {
    cp "$1" "$2/setup.sh" || exit 1
    echo "$(sha256sum <"$2/setup.sh" | cut -d ' ' -f 1)  $1" >"$2/SETUP"
    echo "set-up file $(cat "$2/SETUP")"
}

# container_begin: read FUSMAE_CONTAINER; refuse what cannot work.
container_begin() {
    container="" image="" mounts=() srun_container=() prefix=()
    case ${FUSMAE_CONTAINER:-} in
        "") return 0 ;;
        pyxis:?* | apptainer:?*)
            container=${FUSMAE_CONTAINER%%:*} image=${FUSMAE_CONTAINER#*:}
            ;;
        *)
            echo "error: FUSMAE_CONTAINER is '$FUSMAE_CONTAINER'; write pyxis:IMAGE or apptainer:IMAGE" >&2
            exit 2
            ;;
    esac
    if [ "$container" = pyxis ] && { [ -z "${SLURM_JOB_ID:-}" ] || [ -n "$is_local" ]; }; then
        echo "error: FUSMAE_CONTAINER is '$FUSMAE_CONTAINER', which needs a job of SLURM; write apptainer:IMAGE" >&2
        exit 2
    fi
    [ "$container" = apptainer ] || return 0
    apptainer=$(command -v apptainer || command -v singularity)
    if [ -z "$apptainer" ]; then
        echo "error: neither apptainer nor singularity is on PATH; load its module in FUSMAE_SETUP" >&2
        exit 2
    fi
    case $image in
        *://*) ;;
        *)
            if [ ! -e "$image" ]; then
                echo "error: FUSMAE_CONTAINER names the image '$image', and there is no such file" >&2
                exit 2
            fi
            ;;
    esac
}

# container_sees PATH...: mount these, as far as they exist and are not within what is mounted.
container_sees() {
    local path mount
    [ -n "$container" ] || return 0
    for path; do
        [ -e "$path" ] || continue
        path=$(realpath "$path")
        for mount in ${mounts[@]+"${mounts[@]}"}; do
            [[ $path/ != "$mount"/* ]] || continue 2
        done
        mounts+=("$path")
    done
    local binds
    binds=$(printf '%s\n' "${mounts[@]}" | sed 's/.*/&:&/' | paste -sd ,)${FUSMAE_CONTAINER_MOUNTS:+,$FUSMAE_CONTAINER_MOUNTS}
    # An image's own PYTHONPATH would win over the job's.
    local environment=(env "PYTHONPATH=$PYTHONPATH" PYTHONSAFEPATH=1)
    case $container in
        pyxis)
            srun_container=(--container-image="$image" --container-mounts="$binds" --container-workdir="$PWD")
            prefix=("${environment[@]}")
            ;;
        apptainer) prefix=("$apptainer" exec --nv --pwd "$PWD" --bind "$binds" "$image" "${environment[@]}") ;;
    esac
}

# once COMMAND...: run it once on this node, where the ranks will run: in the container if there is one.
once() {
    case $container in
        pyxis) srun --nodes=1 --ntasks=1 "${srun_container[@]}" "${prefix[@]}" "$@" ;;
        *) ${prefix[@]+"${prefix[@]}"} "$@" ;;
    esac
}
