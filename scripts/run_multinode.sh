#!/usr/bin/env bash
# One run on several nodes as a Slurm job: the clients of every round train on all of them. From the folder of the checkout:
#
#   sbatch --nodes=4 --gres=gpu:8 scripts/run_multinode.sh CONFIG [KEY=VALUE]...      # a process for each GPU
#   sbatch --nodes=8 --cpus-per-task=32 scripts/run_multinode.sh CONFIG               # without GPUs one for each node
#
# All nodes need the same checkout, models and data at the same paths; one of them writes the results. What stops
# and requeues the job is that of run_slurm.sh, and so are its words, limits and output.
#SBATCH --job-name=fedfault
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-1}
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun asks for one else
launch=(srun --kill-on-bad-exit=1) # the end of one node is the end of all
spread=(-m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node="$processes" --rdzv-backend=c10d
    --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))")
source "${SLURM_SUBMIT_DIR:-.}/scripts/run_slurm.sh"
