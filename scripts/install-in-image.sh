#!/usr/bin/env bash
# Inside an image build: install a pinned requirements file into VENV (/opt/venv), with what the build was lent and
# UV_OPTIONS.
# usage: install-in-image.sh REQUIREMENTS [PACKAGE-TO-LEAVE-OUT...]
#
# Lent, each only where it is there: /run/secrets/ca (PEM bundle), /run/secrets/pip (pip.conf), /mnt/wheels (wheels).
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
shift
if [ -s /run/secrets/ca ]; then
  export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca REQUESTS_CA_BUNDLE=/run/secrets/ca
fi
if [ -s /run/secrets/pip ]; then # pip reads it by itself, uv does not
  export PIP_CONFIG_FILE=/run/secrets/pip
  UV_DEFAULT_INDEX=$("$PYTHON" -m pip config get global.index-url 2>/dev/null || true)
  UV_INDEX=$("$PYTHON" -m pip config get global.extra-index-url 2>/dev/null || true)
  [ -n "$UV_DEFAULT_INDEX" ] && export UV_DEFAULT_INDEX || unset UV_DEFAULT_INDEX
  [ -n "$UV_INDEX" ] && export UV_INDEX || unset UV_INDEX
fi
if compgen -G '/mnt/wheels/*.whl' >/dev/null && grep -q '^torch==' "$requirements"; then
  export PIP_FIND_LINKS=/mnt/wheels
fi
for package in "$@"; do
  sed -i "/^$package==/d" "$requirements"
done
scripts/install.sh "$requirements" "${VENV:-/opt/venv}" ${UV_OPTIONS:-}
