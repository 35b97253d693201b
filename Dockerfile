# The embedded plant in one container. BASE may be any Debian 12 with apt.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv git make ca-certificates libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 plant \
 && mkdir -p /factory/var && chown -R plant /factory
WORKDIR /factory
USER plant
COPY --chown=plant requirements.txt requirements-dev.txt requirements-mlflow.txt ./
COPY --chown=plant scripts ./scripts
# An extra CA (companies that inspect TLS need one) and an index are build secrets: never part of an image.
RUN --mount=type=secret,id=ca,uid=10001 --mount=type=secret,id=pip,uid=10001 \
    if [ -f /run/secrets/ca ]; then export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca; fi; \
    if [ -f /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip UV_CONFIG_FILE=; fi; \
    PYTHON=python3 scripts/install.sh requirements.txt \
 && PYTHON=python3 scripts/install.sh requirements-mlflow.txt .venv-mlflow \
 && touch .venv/installed .venv-mlflow/installed
COPY --chown=plant . .
ENV PYTHON=python3 PYTHONPATH=include
VOLUME /factory/var
# `serve` starts the plant, waits, and stops it in order when the container is stopped.
CMD [".venv/bin/python", "-m", "plant", "serve"]
