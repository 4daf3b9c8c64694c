#!/usr/bin/env bash
# Make .venv: `tools/setup_env.sh [python3.11]`. The marker .venv/ready is written last, so that a set-up that was cut off
# is done again. Chooses the engine by what it finds (a GPU or none); EXTRAS=cpu,dev overrules the choice.
set -euo pipefail
cd "$(dirname "$0")/.."

stop() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

python=${1:-python3.11}
command -v "$python" >/dev/null || stop "needs $python, which is not on the PATH. Install Python 3.11, or: make PYTHON=/path/to/python3.11"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || stop "needs Python 3.11 or later, but $python does not run or is older"
"$python" -c 'import ensurepip, venv' 2>/dev/null || stop "$python lacks the venv module (on Debian and Ubuntu: the package python3.11-venv)"

extras=${EXTRAS:-}
if [[ -z $extras ]]; then
    if nvidia-smi -L >/dev/null 2>&1; then engine=gpu; else engine=cpu; fi
    extras=$engine,alfworld,dev
fi
if [[ ,$extras, == *,alfworld,* ]] && ! command -v g++ >/dev/null && ! command -v c++ >/dev/null; then
    stop "needs a C++ compiler (g++): ALFWorld's planner builds from source. Without ALFWorld: EXTRAS=${extras//alfworld,/} make setup"
fi

echo "set-up: .venv with the extras $extras (about five minutes)"
rm -f .venv/ready
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --upgrade pip
.venv/bin/python -m pip install -qq --editable ".[$extras]"

# vLLM's dependencies bring a torchvision that may not fit torch; then transformers cannot be imported. Nothing needs it.
if .venv/bin/python -m pip show --quiet torchvision 2>/dev/null &&
    ! .venv/bin/python -c 'import torchvision' 2>/dev/null; then
    echo "set-up: removing a torchvision that does not fit this torch"
    .venv/bin/python -m pip uninstall -qq --yes torchvision torchaudio torchcodec
fi
.venv/bin/python -c 'import lightning, transformers' || stop "the installed packages do not import (see above)"
touch .venv/ready
echo "set-up: done"
