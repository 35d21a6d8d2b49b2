#!/usr/bin/env bash
# What has to be seen on a machine with a CUDA device before numbers of it are believed: the tests that need one, then the
# short benchmark, whose tables go into docs/speed.md. At most ten minutes; from the folder of the checkout:
#
#   bash scripts/try_gpu.sh [FOLDER]        # what is printed goes to FOLDER too, results/gpu by default
#
# The status is that of the tests. Without a GPU it says so, and ends with status 2.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit
out=${1:-results/gpu}
python=.venv/bin/python
[[ -x $python ]] || python=python3
export PYTHONPATH=$PWD/src${PYTHONPATH:+:$PYTHONPATH}  # packages that were carried along may lie on it
if ! $python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "scripts/try_gpu.sh needs a GPU with CUDA, and torch sees none here" >&2
    exit 2
fi
mkdir -p "$out"
{
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    $python -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
    $python -c 'from importlib.metadata import version; print("liger-kernel", version("liger-kernel"))' 2>/dev/null || echo "no liger-kernel"
} | tee "$out/machine.txt"
mapfile -t files < <(grep -rl --include='*.py' '^@pytest.mark.cuda' tests)  # others may need packages that are not here
timeout 180 $python -m pytest -m cuda -q -rA -p no:cacheprovider --continue-on-collection-errors "${files[@]}" 2>&1 | tee "$out/tests.txt" | grep -E "^(FAILED|ERROR|[0-9]+ passed)|ms a step|passed|failed"
status=$?
[[ $(grep -cE "^(FAILED|ERROR)" "$out/tests.txt") == 0 ]] || status=1
timeout 400 $python benchmarks/gpu.py --quick --repeat 3 2>&1 | tee "$out/benchmark.txt"
exit $status
