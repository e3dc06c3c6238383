# What jobs share: train.sh and array.sh source this and call `launch OPTIONS`. It starts the program on every node, has
# it stopped in time, and queues the job again if there is something to go on with. Settings, for `NAME=... sbatch`:
export PROGRAM=${PROGRAM:-train.py}            # it takes --run.control, --run.world_size and --run.num_threads
export SETUP=${SETUP:-. .venv/bin/activate &&} # words before `accelerate`: venv, conda, module or container
export RANKS_PER_NODE=${RANKS_PER_NODE:-1}     # processes on each node of a job without GPUs; else one for each GPU
export STAGE=${STAGE:-} SCRATCH=${SCRATCH:-}   # a data folder to copy to each node, and where to (else TMPDIR)

cd "$SLURM_SUBMIT_DIR" || exit
key=$SLURM_JOB_ID # for an array's last task that is the number of the whole array
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || key=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
control=$PWD/runs/slurm/$key # where program and script leave word for each other
launch() {
    told_to_end= && mkdir -p "$control" && rm -f "$control"/{stop,stopped,saved,failed} || return
    [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f "$control/in_vain"
    trap 'touch "$control/stop"' USR1                  # the time is nearly up, or another job wants the nodes
    trap 'told_to_end=yes; touch "$control/stop"' TERM # scancel, or Slurm itself ends the job
    start_on_all_nodes "$@" &                          # no trap runs while a command is in the foreground
    while kill -0 $! 2>/dev/null; do wait $!; done
    if ! wait $! || [ -e "$control/stopped" ]; then end_or_again; fi
}
end_or_again() {
    [ ! -e "$control/saved" ] || rm -f "$control/in_vain"
    while [ "$told_to_end" ] && job_is "JobState=RUNNING .*PreemptTime=2"; do sleep 1; done # Slurm queues it again
    if [ "$told_to_end" ]; then say "ended from outside; the same command goes on from the newest checkpoint"
    elif [ -e "$control/stopped" ]; then again "stopped by $(cat "$control/stopped")"
    elif [ -e "$control/failed" ]; then say "another start would fail as well: $(cat "$control/failed")"
    elif [ -e "$control/saved" ]; then again "a process was lost after the checkpoint of $(cat "$control/saved")"
    elif echo >>"$control/in_vain" && [ "$(wc -l <"$control/in_vain")" -lt 3 ]; then again "a process was lost"
    else say "three starts in a row ended before a checkpoint"; fi
    exit 1
}
again() { # only while it runs: a job that was cancelled meanwhile would come back to life
    say "$1; to be started again"
    job_is JobState=RUNNING && scontrol requeue "$key" && exit 0
}
job_is() { scontrol --oneliner show job "$key" | grep -q "$1"; }
say() { echo "job $key: $1"; }
start_on_all_nodes() {
    local ranks=${SLURM_GPUS_ON_NODE:-0} cpus=${SLURM_CPUS_PER_TASK:-1} several=() on_cpu=
    [ "$ranks" -gt 0 ] || { ranks=$RANKS_PER_NODE && on_cpu=ACCELERATE_USE_CPU=true; }
    local world_size=$((SLURM_NNODES * ranks)) threads=$((cpus > ranks ? cpus / ranks : 1))
    export VARIABLES="$on_cpu OMP_NUM_THREADS=$threads PYTHONUNBUFFERED=1"
    ((world_size == 1)) || several=(--multi_gpu --main_process_port $((20000 + SLURM_JOB_ID % 20000))
        --main_process_ip "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)")
    exec srun --ntasks-per-node=1 --cpus-per-task="$cpus" --cpu-bind=cores --kill-on-bad-exit=1 --wait=600 \
        --export=ALL bash -c '. slurm/launch.sh && on_this_node "$@"' "$PROGRAM" --num_machines "$SLURM_NNODES" \
        --num_processes $world_size "${several[@]}" --mixed_precision no --dynamo_backend no \
        "$PROGRAM" "$@" --run.num_threads $threads --run.control "$control" --run.world_size $world_size
}
on_this_node() {
    trap '' TERM USR1 # they reach every process of a step: the launcher would die, and its ranks before they have saved
    copy= # the variables of whoever called sbatch are here, too
    eval "$SETUP bash -c 'command -v accelerate'" >/dev/null || fail "no accelerate with SETUP=$SETUP"
    [ -z "$STAGE" ] || { copy=${SCRATCH:-${TMPDIR:-/tmp}}/exactvision-$key && trap 'rm -rf "$copy"' EXIT; }
    [ -z "$STAGE" ] || { rm -rf "$copy" && cp -Lrp "$STAGE" "$copy"; } || fail "no copy of STAGE=$STAGE in $copy"
    eval "$SETUP env $VARIABLES PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT"' bash -c "trap \"\" TERM USR1
        exec accelerate launch --machine_rank \"\$@\"" launcher "$SLURM_NODEID" "$@" ${copy:+--data.root "$copy"}'
}
fail() { echo "$1 on $(hostname)" | tee "$control/failed" && exit 1; }
