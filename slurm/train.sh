#!/bin/bash
# Trains, from the project's folder: sbatch --gpus-per-node=1 slurm/train.sh --config RECIPE [--section.field VALUE ...]
# An option of sbatch goes before the line here: sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 slurm/train.sh ...
#SBATCH --job-name=train         # what squeue shows
#SBATCH --time=04:00:00          # of one start: a run not finished by then saves itself and is queued again
#SBATCH --nodes=1                # machines, all working on the one run
#SBATCH --ntasks-per-node=1      # one launcher on each, which starts a process for each GPU
#SBATCH --cpus-per-task=8        # CPUs on each machine, for all processes there together
#SBATCH --signal=B:USR1@180      # seconds before the end at which it saves itself: more than 60 + a step + a checkpoint
#SBATCH --requeue                # it may be started again under the same number: after preemption, after a node's death
#SBATCH --open-mode=append       # each start writes below the last one
#SBATCH --output=slurm-%j.out    # what appears on the screen; %j is the number
# sbatch runs a copy of this file, kept elsewhere: the rest is found in the folder it was called from
source "$SLURM_SUBMIT_DIR/slurm/launch.sh"
launch "$@"
