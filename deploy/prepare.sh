#!/usr/bin/env bash
# Make what compose.yaml needs of the host: directories, secrets, and .env. Run again, it changes nothing that is there.
#   sudo deploy/prepare.sh [namespaces|docker] [--public HOST:PORT]
set -euo pipefail
umask 077
here=$(cd "$(dirname "$0")" && pwd)
home=${HF_HOME_FOR_TESTS:-/var/lib/hyperfactory}
into=${HF_DEPLOY_FOR_TESTS:-$here}
driver=namespaces
public=localhost:8443
STORE_UID=999 # of both official images

fail() { echo "cannot prepare: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
  case $1 in
    namespaces|docker) driver=$1 ;;
    --public) [ $# -ge 2 ] || fail "--public needs HOST:PORT"; public=$2; shift ;;
    *) fail "'$1' is not understood" ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || fail "it must be root: these directories belong to uid 0"

word() { head -c 32 /dev/urandom | sha256sum | cut -c1-48; }

# The directory keeps others out; the files themselves are read by the stores' users inside their containers.
put() {
  local file=$into/secrets/$1
  if [ -e "$file" ]; then return; fi
  printf '%s' "$2" >"$file.new"
  chmod 0444 "$file.new"
  mv "$file.new" "$file"
}

mkdir -p "$home"
chmod 0711 "$home" # the bus's own user must reach its folder
for part in pki pki/.versions pki/.versions/gateway pki/.versions/watchdog sandboxes sandboxes/s; do
  mkdir -p -m 0700 "$home/$part"
done
mkdir -p -m 0755 "$home/sandboxes/s/svc"
mkdir -p -m 0711 "$home/bus"
chown "$STORE_UID:$STORE_UID" "$home/bus"

mkdir -p -m 0700 "$into/secrets"
put postgres_password "$(word)"
put database_url "postgresql://hyperfactory:$(cat "$into/secrets/postgres_password")@postgres:5432/hyperfactory"
if [ ! -e "$into/secrets/bus_url" ]; then
  password=$(word)
  digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
  rm -f "$into/secrets/valkey_users" # of a run that was cut short
  put valkey_users $'user default off\nuser factory on #'"$digest"$' ~* &* +@all\n'
  put bus_url "unix://factory:$password@$home/bus/valkey.sock"
fi
[ -e "$into/.env" ] || cat >"$into/.env" <<END
COMPOSE_FILE=compose.yaml:compose.$driver.yaml
HF_DRIVER=$driver
HF_PUBLIC=$public
END
# How the command line connects, as root on this host: hyperfactory --client $home/client.json crew list
operator=$home/pki/operator
[ -e "$home/client.json" ] || cat >"$home/client.json" <<END
{"endpoint": "$public", "authority": "factory.svc", "ca": "$operator/ca.pem", "cert": "$operator/cert.pem",
 "key": "$operator/key.pem", "token": "$operator/token", "home": "$home"}
END
echo "ready: cd $into && docker compose up --build --detach"
