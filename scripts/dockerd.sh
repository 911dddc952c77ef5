#!/usr/bin/env bash
# Run a private Docker engine: own data, own socket, own mounts; no bridge, no iptables rule, no TCP port.
#   scripts/dockerd.sh start|stop|status|socket [--userns-remap] [--at DIRECTORY]
# It is adopted where it runs already. What it needs of the host is undone by `stop`; images are kept.
set -euo pipefail

SUBORDINATE_ID=1500000000  # far above what distributions hand out, and above the users of our own sandboxes
SUBORDINATE_COUNT=65536
REMAP_USER=daemon          # exists everywhere, with a group of the same name; only looked up, never changed
START_MAX_S=60
STOP_MAX_S=60

verb=${1:-start}; shift || true
remap=0
options=()
at=
while [ $# -gt 0 ]; do
  case $1 in
    --userns-remap) remap=1; options=(--userns-remap) ;;
    --at) at=$2; shift ;;
    *) echo "cannot understand '$1'" >&2; exit 2 ;;
  esac
  shift
done
[ -n "$at" ] || at=/tmp/hf-dockerd$([ $remap = 1 ] && echo -remap || true)
socket=$at/docker.sock
pidfile=$at/docker.pid

fail() { echo "cannot $verb the engine: $*" >&2; exit 1; }

answers() { curl --silent --fail --max-time 2 --unix-socket "$socket" http://engine/_ping >/dev/null 2>&1; }

ours() {  # the process of the pidfile, if it is really this engine
  local pid
  pid=$(cat "$pidfile" 2>/dev/null) && [ -n "$pid" ] \
    && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q -- "dockerd .*--data-root $at/data " && echo "$pid"
}

# An engine that was killed takes its containerd along, in a moment; a new one would try to use it.
await_successor() {
  local left deadline=$((SECONDS + START_MAX_S))
  left=$(cat "$at/exec/containerd/containerd.pid" 2>/dev/null) || return 0
  while tr '\0' ' ' <"/proc/$left/cmdline" 2>/dev/null | grep -q -- "--config $at/exec/"; do
    [ $SECONDS -lt $deadline ] || fail "its containerd, process $left, was left behind: end it first"
    sleep 0.05
  done
  rm -f "$at/exec/containerd/containerd.pid"
}

# Subordinate ids are told to this engine alone, in its own mount namespace: the host's /etc stays as it is.
enter() {
  if [ $remap = 1 ]; then
    echo "$REMAP_USER:$SUBORDINATE_ID:$SUBORDINATE_COUNT" >"$at/subordinate"
    for name in subuid subgid; do
      [ -e "/etc/$name" ] || : >"/etc/$name"
      mount --bind "$at/subordinate" "/etc/$name"
    done
    set -- "$@" --userns-remap "$REMAP_USER"
  fi
  exec "$@"
}

start() {
  [ "$(id -u)" = 0 ] || fail "it needs root"
  command -v dockerd >/dev/null || fail "there is no dockerd; install it: apt-get install docker.io"
  if answers; then return; fi
  [ -z "$(ours)" ] || fail "process $(ours) does not answer on $socket"
  mkdir -p "$at"; chmod 711 "$at"
  rm -f "$socket" "$pidfile"
  await_successor
  # Whatever the engine mounts ends with it; what the host mounts later still reaches the engine.
  setsid unshare --mount --propagation slave "$(realpath "$0")" enter "${options[@]}" --at "$at" </dev/null >"$at/log" 2>&1 &
  local deadline=$((SECONDS + START_MAX_S))
  until answers; do
    if [ $SECONDS -ge $deadline ]; then tail -n 20 "$at/log" >&2; fail "no answer within $START_MAX_S s"; fi
    if ! kill -0 $! 2>/dev/null; then tail -n 20 "$at/log" >&2; fail "it ended"; fi
    sleep 0.1
  done
}

stop() {
  local pid deadline=$((SECONDS + STOP_MAX_S))
  pid=$(ours) || return 0
  kill -CONT "$pid"; kill "$pid"
  while kill -0 "$pid" 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || fail "process $pid does not end"
    sleep 0.1
  done
}

case $verb in
  start) start; echo "unix://$socket" ;;
  stop) stop ;;
  status) if answers; then echo "answers on unix://$socket"; else echo "does not answer on unix://$socket"; exit 1; fi ;;
  socket) echo "unix://$socket" ;;
  enter)
    # Plain unpacked layers of one mount each; no containers of an earlier engine are revived.
    enter dockerd --data-root "$at/data" --exec-root "$at/exec" --pidfile "$pidfile" --host "unix://$socket" \
      --bridge none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false \
      --log-level warn --shutdown-timeout 5 ;;
  *) echo "usage: $0 start|stop|status|socket [--userns-remap] [--at DIRECTORY]" >&2; exit 2 ;;
esac
