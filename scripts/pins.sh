#!/usr/bin/env bash
# Compile requirements*.in into requirements*.txt; with --check only say whether they are in step.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
[ -n "$UV_FIND_LINKS" ] || { unset UV_FIND_LINKS; backend=(--torch-backend cpu); }
stale=0
for name in requirements requirements-dev requirements-mlflow requirements-triton requirements-trainer; do
  alone=()
  [ "$name" != requirements-triton ] || alone=(--no-deps) # it lists all that is to be there
  # Starting from the pins that stand keeps versions where they are, so that only what must change does.
  # torch's pin must not: it stands without its +cpu, and with that the build for CUDA would be taken, and 4 GB with it.
  sed '/^torch==/d' "$name.txt" >"$work/$name.txt" 2>/dev/null || true
  .venv/bin/uv pip compile --quiet --no-header --python-version 3.11 ${backend[@]+"${backend[@]}"} ${alone[@]+"${alone[@]}"} \
    "$name.in" -o "$work/$name.txt"
  # A local version such as +cpu is what one machine took; the pin is the public version. Where wheels lie is no pin either.
  sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/; /^--(find-links|extra-index-url|index-url)/d' "$work/$name.txt"
  sed -i "1i # Compiled from $name.in by \`make pins\`; do not edit." "$work/$name.txt"
  if [ "${1:-}" != "--check" ]; then
    cp "$work/$name.txt" "$name.txt"
  elif ! diff -u "$name.txt" "$work/$name.txt" >&2; then
    echo "$name.txt is not in step with $name.in: run 'make pins'" >&2
    stale=1
  fi
done
exit "$stale"
