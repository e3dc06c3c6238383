#!/bin/bash
# One recipe, many runs, each a job of its own; sbatch takes the numbers of the runs:
#   sbatch --array=0-4 --gpus-per-node=1 slurm/array.sh --config RECIPE                     --run.seed 0 to 4
#   OVERRIDES=FILE sbatch --array=1-9 --gpus-per-node=1 slurm/array.sh --config RECIPE      lines 1 to 9 of a file
# Such a line holds options: --optim.lr 0.1 --model.args.width 64. At most two at a time: --array=0-4%2.
#SBATCH --job-name=array         # what squeue shows
#SBATCH --array=0-4              # the numbers of the runs
#SBATCH --time=04:00:00          # of one start: a run not finished by then saves itself and is queued again
#SBATCH --nodes=1                # machines for each run
#SBATCH --ntasks-per-node=1      # one launcher on each, which starts a process for each GPU
#SBATCH --cpus-per-task=8        # CPUs on each machine, for all processes there together
#SBATCH --signal=B:USR1@180      # seconds before the end at which it saves itself: more than 60 + a step + a checkpoint
#SBATCH --requeue                # it may be started again under the same number: after preemption, after a node's death
#SBATCH --open-mode=append       # each start writes below the last one
#SBATCH --output=slurm-%A_%a.out # what appears on the screen; %A is the number of the array, %a the run's
source "$SLURM_SUBMIT_DIR/slurm/launch.sh" # sbatch runs a copy of this file, kept elsewhere
options=(--run.seed "$SLURM_ARRAY_TASK_ID")
if [ -n "${OVERRIDES:-}" ]; then # xargs takes quotes off as a shell does
    mapfile -t options < <(sed -n "${SLURM_ARRAY_TASK_ID}p" "$OVERRIDES" | xargs -r -n 1 printf '%s\n')
    [ "${#options[@]}" -gt 0 ] || { echo "$OVERRIDES has no line $SLURM_ARRAY_TASK_ID" && exit 1; }
fi
launch "$@" "${options[@]}"
