#!/usr/bin/env bash
# Build the agents' image without a registry, from Debian packages and pip, and import it into an engine.
#   scripts/agent_image.sh [--engine unix:///path/docker.sock] [--tag NAME:TAG] [--tar-only]
# The same sources give the same bytes: labels carry their digest and the content's, and nothing is done twice.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=bookworm
PYTHON=3.11
PACKAGES=(agent_runtime wire gen/hyperfactory gen/buf)
engine=${DOCKER_HOST:-}
tag=hyperfactory-agent:python
tar_only=0
while [ $# -gt 0 ]; do
  case $1 in
    --engine) engine=$2; shift ;;
    --tag) tag=$2; shift ;;
    --tar-only) tar_only=1 ;;
    *) echo "usage: $0 [--engine unix:///SOCKET] [--tag NAME:TAG] [--tar-only]" >&2; exit 2 ;;
  esac
  shift
done
if [ -z "$engine" ]; then
  for socket in /tmp/hf-dockerd/docker.sock /var/run/docker.sock; do
    if [ -S $socket ]; then engine=unix://$socket; break; fi
  done
fi

fail() { echo "cannot build the agents' image: $*" >&2; exit 1; }

sources() { find "${PACKAGES[@]}" -type f -not -name '*.pyc' -print0 | sort -z; }
digest=$({ sources | xargs -0 sha256sum; cat deploy/agent-requirements.txt constraints.txt "$0"; uname -m; } | sha256sum | cut -d' ' -f1)
cache=${HYPERFACTORY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hyperfactory}
image=$cache/agent-$digest.tar

call() { curl --silent --show-error --max-time 120 --unix-socket "${engine#unix://}" "$@"; }

# Debian's Python and what it needs; no apt, no dpkg, no compiler, no setuid program.
debian() {
  command -v mmdebstrap >/dev/null || fail "there is no mmdebstrap; install it: apt-get install mmdebstrap"
  local key base
  key=$(sed -n '/^debian()/,/^}/p' "$0" | sha256sum | cut -c1-16)
  base=$cache/debian-$SUITE-$(uname -m)-$key.tar
  if [ ! -e "$base" ]; then
    SOURCE_DATE_EPOCH=0 mmdebstrap --quiet --format=tar --variant=extract \
      --include="python$PYTHON-minimal,libpython$PYTHON-stdlib,base-files,netbase,libstdc++6,libssl3,ca-certificates,busybox-static" \
      $SUITE "$base.new" >&2
    mv "$base.new" "$base"
  fi
  tar --extract --file "$base" --directory "$1" --exclude ./dev --exclude ./usr/share/doc --exclude ./usr/share/man \
    --exclude ./usr/share/locale --exclude ./var/lib/dpkg --exclude ./var/cache --exclude ./usr/share/lintian
  rm -rf "$1"/var/{lib,log,cache,backups,spool}/* "$1"/usr/share/bug "$1"/usr/lib/python3*/{lib2to3,pydoc_data,idlelib,ensurepip}
  for name in sh ls cat cp mv rm mkdir rmdir ln touch chmod head tail grep sed awk find sort uniq wc cut tr tee xargs \
    env echo printf true false test sleep date id ps kill tar gzip gunzip diff patch which basename dirname stat seq; do
    [ -e "$1/bin/$name" ] || ln -s busybox "$1/bin/$name"
  done
  ln -s /bin/busybox "$1/usr/bin/env"
  ln -sf "python$PYTHON" "$1/usr/bin/python3"
  ln -sf "python$PYTHON" "$1/usr/bin/python"
  find "$1" -xdev -perm /6000 -exec chmod a-s {} +
}

build() {
  [ "$(id -u)" = 0 ] || fail "it needs root, to make files of root"
  local root machine
  mkdir -p "$cache"
  work=$(mktemp -d); root=$work/root
  trap 'rm -rf "$work"' EXIT
  mkdir -m 755 "$root"
  debian "$root"
  local pip=${PYTHON_FOR_PIP:-python3}
  if [ -x .venv/bin/python ]; then pip=.venv/bin/python; fi
  machine=$(uname -m)
  "$pip" -m pip install --quiet --no-input --disable-pip-version-check --no-compile --target "$root/app/site" \
    --python-version $PYTHON --implementation cp --only-binary=:all: \
    --platform "manylinux_2_34_$machine" --platform "manylinux_2_28_$machine" --platform "manylinux_2_17_$machine" \
    --platform "manylinux2014_$machine" --requirement deploy/agent-requirements.txt --constraint constraints.txt \
    2>"$work/pip.log" || { cat "$work/pip.log" >&2; fail "pip could not install the packages"; }
  rm -rf "$root/app/site/bin"
  mkdir -p "$root/app/src"
  for package in "${PACKAGES[@]}"; do
    mkdir -p "$root/app/src/$(basename "$package")"
    (cd "$package" && find . -type f -not -name '*.pyc' -print0 | tar --null --files-from - --create) \
      | tar --extract --directory "$root/app/src/$(basename "$package")"
  done
  mkdir -p "$root"/{proc,sys,dev,workspace,skills,run/hf/own,run/hf/peers}
  printf 'root:x:0:0::/:/usr/sbin/nologin\nagent:x:10001:10001::/workspace:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\nagent:x:10001:\n' >"$root/etc/group"
  printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
  chmod -R u+rwX,go+rX,go-w "$root/app"
  # Without its bytecode an interpreter starts three times slower, and its root is read-only.
  chroot "$root" "/usr/bin/python$PYTHON" -m compileall -q --invalidation-mode unchecked-hash \
    "/usr/lib/python$PYTHON" /app/site /app/src >/dev/null 2>&1 || true  # the standard library has files that are wrong on purpose
  tar --create --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu --directory "$root" \
    --file "$image.new" .
  mv "$image.new" "$image"
  find "$cache" -name 'agent-*.tar' -not -path "$image" -delete
}

up_to_date() {
  call "http://engine/images/$tag/json" | grep -q "\"hyperfactory.sources\":\"$digest\""
}

import() {
  local content changes=() change
  content=$(sha256sum "$image" | cut -d' ' -f1)
  for change in \
    "LABEL hyperfactory.sources=$digest hyperfactory.content=sha256:$content hyperfactory.base=python" \
    'ENV PATH=/usr/local/bin:/usr/bin:/bin' 'ENV PYTHONPATH=/app/src:/app/site' 'ENV PYTHONDONTWRITEBYTECODE=1' \
    'ENV PYTHONUNBUFFERED=1' 'ENV HOME=/workspace' 'ENV TMPDIR=/tmp' 'ENV LANG=C.UTF-8' \
    'ENV GRPC_ENABLE_FORK_SUPPORT=0' 'USER 10001:10001' 'WORKDIR /workspace' \
    'CMD ["python","-m","agent_runtime","--own","/run/hf/own","--peers","/run/hf/peers","--workspace","/workspace"]'; do
    changes+=(--data-urlencode "changes=$change")
  done
  local query
  query=$(curl --silent --get --output /dev/null --write-out '%{url_effective}' --max-time 1 \
    --unix-socket "${engine#unix://}" --data-urlencode "repo=${tag%:*}" --data-urlencode "tag=${tag##*:}" \
    --data-urlencode "fromSrc=-" "${changes[@]}" http://engine/_ping)
  local answer
  answer=$(call --request POST --header 'Content-Type: application/x-tar' --upload-file "$image" \
    "http://engine/images/create?${query#*\?}")
  case $answer in *sha256:*) ;; *) fail "the engine said: $answer" ;; esac
}

if [ $tar_only = 0 ]; then
  [ -n "$engine" ] || fail "no engine answers; start one: make dockerd"
  call http://engine/_ping >/dev/null || fail "no engine answers on $engine"
  if up_to_date; then echo "$tag is up to date"; exit 0; fi
fi
[ -e "$image" ] || build
if [ $tar_only = 1 ]; then echo "$image"; exit 0; fi
import
up_to_date || fail "the imported image has not the labels it should have"
echo "$tag ($(du -h "$image" | cut -f1), sources ${digest:0:12})"
