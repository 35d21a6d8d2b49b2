#!/usr/bin/env bash
# One task of a Slurm array runs one run of a study:
#
#     fedfault study main --plan | tail -1                       # how many runs there are: 180
#     sbatch --array=1-180%20 scripts/study_slurm.sh main        # FILE and settings as for `fedfault study`
#     fedfault study report results/main                         # when they are done
#
# A task that is requeued or submitted again goes on from its last finished round.
#SBATCH --job-name=fedfault-study
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%A_%a.out
set -euo pipefail
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-4}"
exec fedfault study "$@" --task "$SLURM_ARRAY_TASK_ID" --quiet
