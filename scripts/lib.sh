# Shared by the scripts: where things are, and what to say when something is missing.
# shellcheck shell=bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD
CACHE=${MRM_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/mrm}
export ROOT CACHE
export PATH=$CACHE/bin:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH

say() { printf '\033[1m==> %s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need COMMAND REMEDY: fails with the one command that brings what is missing.
need() {
    command -v "$1" >/dev/null 2>&1 || die "$1 is missing; get it with: $2"
}

# need_room MIB: fails before minutes of building rather than in the midst of a link. What was built
# before counts as room.
need_room() {
    local target=${CARGO_TARGET_DIR:-$ROOT/target} built free
    mkdir -p "$target"
    built=$(du -sm "$target" | cut -f1)
    free=$(df -Pm "$target" | awk 'NR == 2 { print $4 }')
    [ $((built + free)) -ge "$1" ] ||
        die "this builds up to $1 MiB in $target, where $built are built and $free free;" \
            "free some (what older commits built goes by: cargo clean)"
}

need_rust() {
    need cargo "curl --proto '=https' -sSf https://sh.rustup.rs | sh"
    find_toolchains
}

# A rustup that was installed under another HOME does not find its toolchains by itself.
find_toolchains() {
    cargo --version >/dev/null 2>&1 && return
    local home
    home=$(dirname "$(dirname "$(dirname "$(command -v cargo)")")")
    if [ -d "$home/.rustup" ]; then
        export RUSTUP_HOME=$home/.rustup
        if [ -w "$home/.cargo" ]; then export CARGO_HOME=$home/.cargo; fi
    fi
    cargo --version >/dev/null 2>&1 ||
        die "cargo is there but has no toolchain; get one with: rustup default stable"
}

need_cc() { need cc "apt-get install -y gcc g++ (Debian), dnf install gcc gcc-c++ (Fedora)"; }

# The Python that made the environment below; 3.10 or newer.
need_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            PYTHON=$candidate
            return
        fi
    done
    die "Python 3.10 or newer with venv is missing; get it with: apt-get install -y python3 python3-venv"
}

# A Python environment of our own in the cache, with the packages that tests and demo use.
python_env() {
    need_python
    local venv=$CACHE/venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    local stamp=$venv/.mrm-requirements
    if ! cmp -s scripts/requirements.txt "$stamp"; then
        say "Python environment in $venv"
        rm -rf "$venv"
        "$PYTHON" -m venv "$venv" ||
            die "cannot make a Python environment; get venv with: apt-get install -y python3-venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r scripts/requirements.txt
        cp scripts/requirements.txt "$stamp"
    fi
    PY=$venv/bin/python
    export PY
}

# cargo_tool NAME VERSION: a cargo subcommand in the cache, built once.
cargo_tool() {
    command -v "$1" >/dev/null 2>&1 && return
    say "building $1 $2 (once; kept in $CACHE/bin)"
    cargo install --quiet --locked --version "$2" --root "$CACHE" "$1"
}
