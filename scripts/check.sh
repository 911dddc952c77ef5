#!/usr/bin/env bash
# Everything that needs no running service: format, lint, types, floors, contract, freshness of gen/.
set -uo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

step() {
  local name=$1 since=$SECONDS; shift
  if "$@" >"$work/out" 2>&1; then
    printf '  ok    %-22s %3ss\n' "$name" $((SECONDS - since))
  else
    printf '  FAIL  %-22s %3ss\n' "$name" $((SECONDS - since))
    sed 's/^/        /' "$work/out"
    failed=1
  fi
}

packages() {
  for init in */__init__.py; do
    case $init in tests/*|gen/*) ;; *) dirname "$init" ;; esac
  done
}

# proto/released.binpb is the contract as it was last released: `make release-contract` sets it anew.
breaking() {
  buf build -o "$work/contract.binpb" \
    && buf breaking "$work/contract.binpb" --against proto/released.binpb \
      --config '{"version": "v2", "breaking": {"use": ["FILE"]}}'
}

gen_is_fresh() {
  scripts/gen.sh "$work/gen" && diff -r -q -x '__pycache__' gen "$work/gen" \
    || { echo "gen/ is stale: run make gen"; return 1; }
}

step "ruff format" ruff format --check --quiet .
step "ruff check" ruff check --quiet .
# shellcheck disable=SC2046
step "mypy --strict" mypy --no-error-summary $(for package in $(packages); do printf -- '-p %s ' "$package"; done)
step "import floors" lint-imports --config .importlinter --no-cache
step "buf lint" buf lint
step "buf format" buf format -d --exit-code proto
step "buf breaking" breaking
step "gen is fresh" gen_is_fresh
step "docs/lifecycle.md" python scripts/lifecycle.py --check
step "docs/status.md" python scripts/status.py --check
step "docs/security.md" python scripts/policy.py --check
step "docs/isolation.json" python scripts/isolation.py --check
[ $failed = 0 ] && echo "check passed in ${SECONDS}s"
exit $failed
