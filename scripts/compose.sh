#!/usr/bin/env bash
# The plant in containers: what `make compose-up`, `compose-demo` and `compose-down` call.
#
#   compose.sh up              build the images, generate missing secrets, start, wait until every part is healthy
#   compose.sh demo            the same, then the demo; its report comes to var/demo/report.json
#   compose.sh down [VOLUMES]  stop; all state stays, unless VOLUMES is 1
#   compose.sh ANYTHING ELSE   handed to `docker compose` with the plant's own settings (ps, logs -f mlflow, build trainer)
#
# Settings, from the environment: COMPOSE_PROJECT_NAME (ai-factory; another name is another plant), AIF_AIRFLOW_PORT,
# AIF_MLFLOW_PORT, AIF_SERVING_PORT, AIF_SCHEDULER_MEMORY, AIF_SERVING_MEMORY, AIF_SERVING_RUNTIME,
# AIF_SERVING_KEYS_FILE, AIF_SERVING_REQUESTS_PER_S, AIF_SERVING_MAX_REQUEST_MB, AIF_NOTICES_FILE,
# AIF_METRICS_TOKEN_FILE, AIF_DEMO_NIGHTS, AIF_THREADS, AIF_BASE_IMAGE, AIF_WHEELS_IMAGE, AIF_TORCH_BACKEND,
# AIF_BUILD_CA, AIF_BUILD_PIP_CONFIG, AIF_BUILD_NETWORK, AIF_POSTGRES_IMAGE, AIF_SEAWEEDFS_IMAGE.
# Needs bash and an engine, no Python.
set -euo pipefail
cd "$(dirname "$0")/.."
export DOCKER_BUILDKIT=1
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-ai-factory}
export AIF_IMAGE_TAG=${AIF_IMAGE_TAG:-dev}
AIF_CODE_REVISION=${AIF_CODE_REVISION:-$(git describe --always --abbrev=40 --dirty '--exclude=*' 2>/dev/null || true)}
export AIF_CODE_REVISION
# What this user's own tools were told about TLS and packages, builds are told too, as secrets that no layer keeps
export AIF_BUILD_CA=${AIF_BUILD_CA:-${SSL_CERT_FILE:-/dev/null}}
export AIF_BUILD_PIP_CONFIG=${AIF_BUILD_PIP_CONFIG:-${PIP_CONFIG_FILE:-/dev/null}}
folder=$PWD/var/compose/$COMPOSE_PROJECT_NAME
secrets=$folder/secrets/plant.env
began=$(date +%s)
parts=(postgres s3 mlflow airflow-api airflow-scheduler airflow-dags airflow-triggerer outside-world serving)
HEALTHY_WITHIN_S=${AIF_HEALTHY_WITHIN_S:-420}

say() { printf '%6s s  %s\n' "$(($(date +%s) - began))" "$*" >&2; }
stop_with() { printf 'The plant: %s\n' "$*" >&2; exit 1; }

check_engine() {
  command -v docker >/dev/null ||
    stop_with "there is no container engine: install Docker Engine 20.10 or newer with Compose 2.20 or newer, or use 'make demo', which needs none"
  docker compose version >/dev/null 2>&1 ||
    stop_with "docker has no compose plugin: install Docker Compose 2.20 or newer (package docker-compose-plugin or docker-compose)"
  local version
  version=$(docker compose version --short | sed 's/^v//')
  [ "$(printf '%s\n2.20\n' "$version" | sort -V | head -n1)" = 2.20 ] ||
    stop_with "Docker Compose $version is too old: 2.20 or newer is needed"
  docker version --format '{{.Server.Version}}' >/dev/null 2>&1 ||
    stop_with "the container engine does not answer: start it (systemctl start docker), or let this user use it (group docker). It says: $(docker version 2>&1 | tail -n1)"
}

# A port is taken where somebody answers on it who is no container of this plant.
check_port() {
  local setting=$1 port=$2 service=$3
  [ -z "$(docker compose ps --quiet --status running "$service" 2>/dev/null)" ] || return 0
  if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    stop_with "port $port is taken: stop what listens there ('ss -ltnp sport = :$port' names it), or set $setting to a free port"
  fi
}

build() {
  say "building the images (minutes the first time, seconds after)"
  local quiet=()
  [ -t 2 ] || quiet=(--progress quiet)
  docker compose "${quiet[@]}" build "$@" >&2 || stop_with "the images cannot be built; 'scripts/compose.sh build' shows all of it"
}

# Made by the factory's own generator in its own image, as the operator: files of mode 0600 in an ignored folder.
generate_secrets() {
  [ -s "$secrets" ] || say "generating secrets into ${secrets#"$PWD/"}"
  (umask 077 && mkdir -p "$folder/secrets")
  local who
  who=$(id -u):$(id -g)
  if docker info --format '{{.SecurityOptions}}' | grep -q rootless; then who=0:0; fi # that root is this user
  docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --user "$who" --volume "$folder:/state" --env AIF_HOME=/state "ai-factory-airflow:$AIF_IMAGE_TAG" \
    python -m plant secrets || stop_with "the secrets cannot be generated in $folder"
}

states() { # one line a part: name, state, health
  local ids
  ids=$(docker compose ps --all --quiet "${parts[@]}" 2>/dev/null) || true
  [ -n "$ids" ] || return 0
  # shellcheck disable=SC2086
  docker inspect --format '{{index .Config.Labels "com.docker.compose.service"}} {{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{else}}healthy{{end}}' $ids 2>/dev/null || true
}

wait_healthy() {
  local known="" part state health now
  while :; do
    now=$(states | sort)
    while read -r part state health; do
      [ -n "$part" ] || continue
      if [ "$state" = running ] && [ "$health" = healthy ] && ! grep -qx "$part" <<<"$known"; then
        known+=$part$'\n'
        say "$part: healthy"
      fi
    done <<<"$now"
    [ "$(grep -c . <<<"$known")" -lt ${#parts[@]} ] || return 0
    if [ $(($(date +%s) - began)) -gt "$deadline" ]; then
      stop_with "not healthy in time:
$(grep -v ' running healthy$' <<<"$now")
Look at 'scripts/compose.sh logs NAME'; raise AIF_HEALTHY_WITHIN_S on a slow machine"
    fi
    sleep 1
  done
}

start() {
  say "starting"
  deadline=$(($(date +%s) - began + HEALTHY_WITHIN_S))
  local said=$folder/up.log name code
  if ! docker compose up --detach --remove-orphans --quiet-pull "${parts[@]}" >"$said" 2>&1; then
    tail -n 5 "$said" >&2
    for name in prepare init mlflow-init; do
      code=$(docker compose ps --all --quiet "$name" | xargs -r docker inspect --format '{{.State.ExitCode}}')
      [ "${code:-0}" = 0 ] || docker compose logs --no-log-prefix --tail 15 "$name" >&2
    done
    stop_with "not everything could be started; all of what Compose said is in ${said#"$PWD/"}"
  fi
  wait_healthy
}

announce() {
  local password="is PLANT_AIRFLOW_ADMIN_PASSWORD in the secrets" # what is no terminal may be a log
  [ ! -t 1 ] || password=$(sed -n 's/^PLANT_AIRFLOW_ADMIN_PASSWORD=//p' "$secrets")
  cat <<TEXT
Airflow   http://127.0.0.1:${AIF_AIRFLOW_PORT:-8080}   user admin   password $password
MLflow    http://127.0.0.1:${AIF_MLFLOW_PORT:-5500}
Models    http://127.0.0.1:${AIF_SERVING_PORT:-8390}
Secrets   ${secrets#"$PWD/"}
Commands  scripts/compose.sh ps, scripts/compose.sh logs -f airflow-scheduler, make compose-down
TEXT
}

up() {
  check_port AIF_AIRFLOW_PORT "${AIF_AIRFLOW_PORT:-8080}" airflow-api
  check_port AIF_MLFLOW_PORT "${AIF_MLFLOW_PORT:-5500}" mlflow
  check_port AIF_SERVING_PORT "${AIF_SERVING_PORT:-8390}" serving
  build
  generate_secrets
  built=$(date +%s)
  start
  up_at=$(date +%s)
  say "every part is healthy, $((up_at - built)) s after the images"
}

# Memory of all parts together, bytes a line: only the host can see it.
memory() {
  local ids
  ids=$(docker compose ps --quiet "${parts[@]}")
  # shellcheck disable=SC2086
  while sleep 1; do
    docker stats --no-stream --format '{{.MemUsage}}' $ids 2>/dev/null | awk '
      { n = $1 + 0; if ($1 ~ /GiB/) n *= 2^30; else if ($1 ~ /MiB/) n *= 2^20; else if ($1 ~ /KiB|kB/) n *= 2^10; sum += n }
      END { printf "%.0f\n", sum }' || return 0
  done
}

demo() {
  export AIF_DEMO_STARTED=${AIF_DEMO_STARTED:-$began}
  up
  local status=0 report=${AIF_DEMO_REPORT:-var/demo/report.json}
  docker compose run --rm -T --no-deps demo python -m plant container-demo \
    --install-s $((built - AIF_DEMO_STARTED)) --start-s $((up_at - built)) < <(memory) || status=$?
  [ $status = 0 ] || stop_with "the demo stopped; the plant stays up for a look: http://127.0.0.1:${AIF_AIRFLOW_PORT:-8080}"
  mkdir -p "$(dirname "$report")"
  docker compose run --rm -T --no-deps demo cat /factory/keys/demo/report.json >"$report.part" </dev/null
  mv "$report.part" "$report"
  say "the report is in $report"
  announce
}

down() {
  local gone=()
  [ "${1:-}" != 1 ] || gone=(--volumes)
  docker compose --profile demo --profile trainer down --remove-orphans "${gone[@]}"
  # Without their volumes the secrets open nothing; without the secrets the volumes could not be opened
  [ "${1:-}" != 1 ] || rm -rf "$folder"
}

check_engine
export AIF_COMPOSE_SECRETS=$secrets
case ${1:-} in
up) up && announce ;;
demo) demo ;;
down) down "${2:-}" ;;
"") sed -n '2,7s/^# \{0,1\}//p' "$0" ;;
*)
  [ -s "$secrets" ] || [ "$1" = build ] || unset AIF_COMPOSE_SECRETS # so that Compose says what is missing
  exec docker compose "$@"
  ;;
esac
