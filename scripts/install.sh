#!/usr/bin/env bash
# Install a pinned requirements file into an environment (default .venv), with uv.
# usage: install.sh REQUIREMENTS [VENV [OPTION-OF-UV...]]
#
# torch: the CPU build unless AIF_TORCH_BACKEND says otherwise (auto, cu126, ...). Where PIP_FIND_LINKS or
# UV_FIND_LINKS names a folder of wheels, torch is taken from there.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
venv=${2:-.venv}
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "Python 3.11 is needed, but '$python' is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11." >&2
  exit 1
}
unset PYTHONDONTWRITEBYTECODE PYTHONPATH
if [ ! -x .venv/bin/uv ]; then
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$(sed -n 's/^uv==//p' requirements.txt)"
fi
[ -x "$venv/bin/python" ] || .venv/bin/uv venv --quiet --python "$python" "$venv"
backend=()
if [ -n "${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" ]; then
  export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS}
else
  backend=(--torch-backend "${AIF_TORCH_BACKEND:-cpu}")
fi
echo "Installing $requirements into $venv"
exec .venv/bin/uv pip install --quiet --compile-bytecode --python "$venv/bin/python" "${backend[@]}" "${@:3}" -r "$requirements"
