#!/bin/bash
# Fine-tunes, from the project's folder: sbatch --gpus-per-node=1 slurm/finetune.sh --data.root DIR --model.name NAME
# Nodes that reach no network: load the weights once where there is one; HF_HOME and TORCH_HOME say where they lie.
# An option of sbatch goes before the line here: sbatch --time=24:00:00 --gpus-per-node=1 slurm/finetune.sh ...
#SBATCH --job-name=finetune      # what squeue shows
#SBATCH --time=04:00:00          # of one start: a run not finished by then saves itself and is queued again
#SBATCH --nodes=1                # machines, all working on the one run
#SBATCH --ntasks-per-node=1      # one launcher on each, which starts a process for each GPU
#SBATCH --cpus-per-task=8        # CPUs on each machine, for all processes there together
#SBATCH --signal=B:USR1@180      # seconds before the end at which it saves itself: more than 60 + a step + a checkpoint
#SBATCH --requeue                # it may be started again under the same number: after preemption, after a node's death
#SBATCH --open-mode=append       # each start writes below the last one
#SBATCH --output=slurm-%j.out    # what appears on the screen; %j is the number
PROGRAM=finetune.py
# sbatch runs a copy of this file, kept elsewhere: the rest is found in the folder it was called from
source "$SLURM_SUBMIT_DIR/slurm/launch.sh"
launch "$@"
