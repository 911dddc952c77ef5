#!/usr/bin/env bash
# Make .venv hold this project and the named extras; do nothing when it already does.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-embedded}
venv=.venv

fail() { echo "cannot set up: $*" >&2; exit 1; }

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
    if suitable "$name"; then echo "$name"; return; fi
  done
  fail "no Python 3.11 or newer found; install one and name it: make PYTHON=/path/to/python3"
}

# A system Python may come without ensurepip (Debian's python3 without python3-venv): try what there is.
make_venv() {
  local python=$1
  "$python" -m venv "$venv" >/dev/null 2>&1 && return
  rm -rf "$venv"
  if "$python" -m pip --version >/dev/null 2>&1 && "$python" -m venv --without-pip "$venv" >/dev/null 2>&1; then
    "$python" -m pip --python "$venv/bin/python" install --quiet --no-input pip >/dev/null 2>&1 && return
    "$python" -m pip install --quiet --no-input --prefix "$venv" --ignore-installed pip >/dev/null 2>&1 \
      && "$venv/bin/python" -m pip --version >/dev/null 2>&1 && return
  fi
  rm -rf "$venv"
  "$python" -m virtualenv --quiet "$venv" >/dev/null 2>&1 && return
  rm -rf "$venv"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3-venv" >&2
    local version
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "python$version-venv" \
      || apt-get install -y -qq --no-install-recommends python3-venv; } >/dev/null 2>&1 </dev/null || true
    "$python" -m venv "$venv" >/dev/null 2>&1 && return
  fi
  rm -rf "$venv"
  fail "this Python has no venv; install it: sudo apt-get install python3-venv"
}

[ "$(uname -s)" = Linux ] || fail "the embedded stack needs Linux"
if ! suitable "$venv/bin/python"; then
  [ ! -e "$venv" ] || fail "$venv is there but its Python is not 3.11 or newer: remove it"
  python=$(find_python)
  make_venv "$python"
fi

want=$(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)
stamp=$venv/.setup-${extras//,/-}
for done in "$stamp" "$venv/.setup-embedded-dev"; do  # the larger set holds the smaller
  if [ "$(cat "$done" 2>/dev/null)" = "$want" ]; then exit 0; fi
done
echo "setting up $venv with [$extras] (once; about a minute)" >&2
if ! "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --progress-bar off \
    --constraint constraints.txt --editable ".[$extras]" >"$venv/setup.log" 2>&1 </dev/null; then
  tail -n 20 "$venv/setup.log" >&2
  fail "pip could not install the packages; the whole log is $venv/setup.log"
fi
echo "$want" >"$stamp"
