#!/usr/bin/env bash
# Generate the stubs in gen/ (or in the directory given) from proto/ with the pinned compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gen}
python=${PYTHON:-.venv/bin/python}
bin=$(dirname "$python")
mkdir -p "$out"
find "$out" -name '*_pb2*' -delete
files=$(cd proto && find hyperfactory -name '*.proto' | sort)
# shellcheck disable=SC2086
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I proto -I third_party \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" $files
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I third_party --python_out="$out" --pyi_out="$out" \
  buf/validate/validate.proto
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I third_party \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" lf/a2a/v1/a2a.proto
"$python" -m grpc_tools.protoc -I proto -I third_party --include_imports --include_source_info \
  --descriptor_set_out="$out/hyperfactory.binpb" $files
"$python" scripts/comments.py "$out"
# Files without a service get empty service stubs; drop them.
grep -L 'class .*Servicer' "$out"/hyperfactory/v1/*_pb2_grpc.py | while read -r empty; do rm -f "$empty" "${empty}i"; done
