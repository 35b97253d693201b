#!/usr/bin/env bash
# A Kubernetes cluster on this machine (kind), with the trainer image in it and the plant connected to it.
# usage: cluster.sh up|down      AIF_KIND_NAME names the cluster (default ai-factory)
set -euo pipefail
cd "$(dirname "$0")/.."
name=${AIF_KIND_NAME:-ai-factory}
image=${AIF_TRAINER_IMAGE:-ai-factory-trainer:dev}
for tool in docker kind; do
  command -v "$tool" >/dev/null || {
    echo "'$tool' is not installed; see docs/kubernetes.md. A cluster of your own is connected with 'make cluster-connect'." >&2
    exit 1
  }
done

case ${1:-} in
  up)
    kind get clusters 2>/dev/null | grep -qx "$name" || kind create cluster --name "$name" --wait 120s
    echo "Building $image"
    docker build --quiet --target trainer --tag "$image" \
      --build-arg AIF_CODE_REVISION="$(git rev-parse HEAD 2>/dev/null || true)" . >/dev/null
    kind load docker-image "$image" --name "$name"
    # Pods reach this machine at the gateway of kind's network; only S3 and MLflow are offered there.
    door=$(docker network inspect kind -f '{{range .IPAM.Config}}{{println .Gateway}}{{end}}' | grep -m1 -E '^[0-9.]+$')
    .venv/bin/python -m plant down
    AIF_POD_DOORWAY=$door AIF_TRAINER_IMAGE=$image .venv/bin/python -m plant up
    kind get kubeconfig --name "$name" >var/kind-kubeconfig && chmod 600 var/kind-kubeconfig
    .venv/bin/python -m plant connect --kubeconfig var/kind-kubeconfig
    ;;
  down)
    [ ! -x .venv/bin/python ] || .venv/bin/python -m plant disconnect || true
    kind delete cluster --name "$name"
    rm -f var/kind-kubeconfig
    ;;
  *)
    echo "usage: cluster.sh up|down" >&2
    exit 2
    ;;
esac
