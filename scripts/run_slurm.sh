#!/usr/bin/env bash
# One run as a Slurm job. Submit it from the folder of the checkout:
#
#   sbatch scripts/run_slurm.sh CONFIG [KEY=VALUE]...
#   sbatch --gres=gpu:1 --time=1-00:00:00 scripts/run_slurm.sh CONFIG          # sbatch's own words come first, and win
#   sbatch --array=0-4 scripts/run_slurm.sh CONFIG seed=%a experiment_name=NAME-%a      # %a: the task of the array
#
# Two minutes before the time limit the run is stopped, and the job goes back to the queue and on from the last round.
# What it prints is in slurm-JOB.out (Slurm's default: a folder such as results/ would have to be there already).
#SBATCH --job-name=fedfault
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit
python=.venv/bin/python
[[ -x $python ]] || python=python3
threads=$((${SLURM_CPUS_PER_TASK:-1} / ${processes:-1})) # processes, launch and spread: of run_multinode.sh
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
[[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"

stop() {
    kill -TERM "$!" 2>/dev/null # not a variable of our own: a signal may come before it is set
    wait "$!"
}

requeue() {
    stop && exit 0 # it was just done
    if ((${SLURM_RESTART_COUNT:-0} >= 50)); then
        echo "error: not done after 50 restarts; give it more --time, at least that of a round" >&2
        exit 143
    fi
    scontrol requeue "$SLURM_JOB_ID"
    exit 143
}

trap 'stop; exit $?' TERM
trap requeue USR1
${launch[@]+"${launch[@]}"} "$python" ${spread[@]+"${spread[@]}"} -m fedfault run "$@" & # in the background, because a trap waits for what is in front
wait "$!"
