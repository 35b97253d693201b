"""The plant without its processes: secrets, ports, configuration, marks."""

from __future__ import annotations

import configparser
import io
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from aifactory.serving.gateway import Limits
from aifactory.settings import REPOSITORY, Settings, load_settings
from plant import airflow, clients, containers, display, ports, postgres, processes, secrets, serving, world
from plant.errors import PlantError, PortTaken
from plant.operate import PartStatus
from plant.supervision import Program, Supervisor


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", internal_port=30000, _env_file=None)


def test_secrets_are_private_and_stay(settings: Settings) -> None:
    first = secrets.ensure_secrets(settings)
    mode = stat.S_IMODE(settings.secrets_file.stat().st_mode)
    assert mode == 0o600
    assert stat.S_IMODE(settings.secrets_file.parent.stat().st_mode) == 0o700
    assert dict(secrets.ensure_secrets(settings)) == dict(first)
    assert len({first[name] for name in secrets._GENERATORS}) == len(secrets._GENERATORS), "no two are the same"
    assert len(first["PLANT_AIRFLOW_JWT_SECRET"]) >= 64


def test_a_part_on_another_host_is_reached_there(settings: Settings) -> None:
    apart = settings.model_copy(update={"postgres_host": "postgres", "postgres_port": 5432})
    assert secrets.complete_secrets(apart, {})["AIF_LEDGER_DSN"].endswith("@postgres:5432/factory")
    assert settings.airflow_api_url == settings.airflow_url == "http://127.0.0.1:8080"
    assert settings.mlflow_ui_url == settings.mlflow_url
    published = {"airflow_uri": "http://127.0.0.1:9", "airflow_endpoint": "http://airflow-api:8080"}
    apart = settings.model_copy(update=published | {"mlflow_public_uri": "http://127.0.0.1:8"})
    assert (apart.airflow_url, apart.airflow_api_url) == ("http://127.0.0.1:9", "http://airflow-api:8080")
    assert apart.mlflow_ui_url == "http://127.0.0.1:8"


def test_a_container_gets_its_share_of_the_secrets_and_no_more(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = ("KEYS", "FACTORY", "WORLD", "SERVING", "S3", "MLFLOW", "POSTGRES", "S3_DATA", "POSTGRES_DATA")
    for name in shares:
        monkeypatch.setattr(containers, name, tmp_path / name)
        (tmp_path / name).mkdir()
    given: dict[Path, int] = {}
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, follow_symlinks: given.update({path: uid}))
    with pytest.raises(PlantError, match="compose-up"):
        containers.prepare(settings)
    values = secrets.ensure_secrets(settings)
    monkeypatch.setattr(containers, "SECRETS", settings.secrets_file)
    containers.prepare(settings)
    everything, factorys, worlds, servings = (
        secrets.read_secrets(tmp_path / name / "secrets" / "plant.env")
        for name in ("KEYS", "FACTORY", "WORLD", "SERVING")
    )
    assert dict(everything) == dict(values)
    assert set(worlds) == {"AIF_WORLD_ACCESS_KEY", "AIF_WORLD_SECRET_KEY"}
    others = ("PLANT_S3", "PLANT_POSTGRES", "PLANT_DB_MLFLOW", "PLANT_SERVING", "AIF_WORLD")
    assert not [k for k in factorys if k.startswith(others)]
    assert dict(servings) == {
        "AIF_S3_ACCESS_KEY": values["PLANT_SERVING_ACCESS_KEY"],
        "AIF_S3_SECRET_KEY": values["PLANT_SERVING_SECRET_KEY"],
        "AIF_VERIFYING_KEY": values["AIF_VERIFYING_KEY"],
    }
    assert (tmp_path / "POSTGRES" / "password").read_text() == values["PLANT_POSTGRES_PASSWORD"]
    assert given[tmp_path / "POSTGRES" / "password"] == 70
    assert given[tmp_path / "FACTORY" / "airflow" / "airflow.cfg"] == 10001
    private = [p for name in shares for p in (tmp_path / name).rglob("*") if p.is_file() and not p.is_symlink()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in private} == {0o600}


@pytest.fixture
def shares(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders that `prepare` fills, by their names."""
    names = ("KEYS", "FACTORY", "WORLD", "SERVING", "S3", "MLFLOW", "POSTGRES", "S3_DATA", "POSTGRES_DATA")
    for name in names:
        monkeypatch.setattr(containers, name, tmp_path / name)
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "chown", lambda *_, **__: None)
    secrets.ensure_secrets(settings)
    monkeypatch.setattr(containers, "SECRETS", settings.secrets_file)
    return {name: tmp_path / name for name in names}


def test_the_clients_keys_go_to_the_gateway_and_to_the_demo_alone(
    settings: Settings, shares: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "clients"
    path.write_text("planner=0123456789abcdef\n")
    containers.prepare(settings.model_copy(update={"serving_keys_file": path}))
    with_keys = [p for share in shares.values() for p in share.rglob("*") if p.name == "serving.keys"]
    assert {p.parents[1].name for p in with_keys} == {"KEYS", "SERVING"}
    assert {(p.read_text(), stat.S_IMODE(p.stat().st_mode)) for p in with_keys} == {(path.read_text(), 0o600)}
    known = secrets.read_secrets(tmp_path / "FACTORY" / "secrets" / "plant.env")
    assert known["AIF_SERVING_KEYS_FILE"] == "", "each part is told of its own copy by its environment"
    path.write_text("planner=short\n")
    with pytest.raises(PlantError, match="line 1"):
        containers.prepare(settings.model_copy(update={"serving_keys_file": path}))
    containers.prepare(settings)
    assert not [p for p in with_keys if p.exists()], "keys that are taken back are not kept"


def test_routes_of_notices_and_the_token_of_metrics_go_to_airflows_parts(
    settings: Settings, shares: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes, token = tmp_path / "routes", tmp_path / "token"
    monkeypatch.setattr(containers, "METRICS_TOKEN", token)
    routes.write_text("routes: [{to: [desk]}]\n")
    token.write_text("0123456789abcdef\n")
    containers.prepare(settings.model_copy(update={"notices_file": routes}))
    [copy] = [p for share in shares.values() for p in share.rglob("*") if p.name == "notices.yaml"]
    assert copy == shares["FACTORY"] / "secrets" / "notices.yaml"
    assert (copy.read_text(), stat.S_IMODE(copy.stat().st_mode)) == (routes.read_text(), 0o600)
    told = {name: secrets.read_secrets(share / "secrets" / "plant.env") for name, share in shares.items()}
    assert {name for name, known in told.items() if "0123456789abcdef" in known.values()} == {"KEYS", "FACTORY"}
    assert told["FACTORY"]["AIF_METRICS_TOKEN"] == "0123456789abcdef"
    assert told["FACTORY"]["AIF_NOTICES_FILE"] == "", "each part is told of its own copy by its environment"
    for wrong in ("short", "two lines of them\n0123456789abcdef", "a${HOME}0123456789abcdef", "'0123456789abcdef'"):
        token.write_text(wrong)
        with pytest.raises(PlantError, match="AIF_METRICS_TOKEN_FILE") as refused:
            containers.prepare(settings)
        assert wrong not in str(refused.value)
    token.write_text("")
    containers.prepare(settings)
    assert not copy.exists(), "routes that are taken back are not kept"
    assert secrets.read_secrets(shares["FACTORY"] / "secrets" / "plant.env")["AIF_METRICS_TOKEN"] == ""


def test_compose_hands_files_of_the_host_to_prepare_alone_and_what_they_say_stands_in_no_environment() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())
    holders = {name: service.get("secrets", []) for name, service in compose["services"].items()}
    assert {name for name, held in holders.items() if held} == {"prepare"}
    files = {"clients": "SERVING_KEYS_FILE", "notices": "NOTICES_FILE", "metrics": "METRICS_TOKEN_FILE"}
    assert {"plant", *files} == set(holders["prepare"])
    assert {name: compose["secrets"][name]["file"] for name in files} == {
        name: f"${{AIF_{variable}:-/dev/null}}" for name, variable in files.items()
    }
    environments = {name: service.get("environment", {}) for name, service in compose["services"].items()}
    told = {
        name for name, values in environments.items() if values.get("AIF_NOTICES_FILE", "").endswith("notices.yaml}")
    }
    assert told == {"airflow-api", "airflow-scheduler", "airflow-dags", "airflow-triggerer"}
    assert not [name for name, values in environments.items() if any("METRICS" in each for each in values)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no key"),
        ("# nobody\n\n", "has no key"),
        ("planner\n", "line 1 .* is no name=key"),
        ("=0123456789abcdef\n", "line 1 .* is no name=key"),
        ("planner=0123456789abcde\n", "line 1 .* is no name=key"),
        ("planner=0123456789 abcdef\n", "line 1 .* is no name=key"),
        ("a=0123456789abcdef\nb=0123456789abcdef\n", "line 2 .* an earlier line has"),
        ("a=0123456789abcdef\na=0123456789abcdeg\n", "line 2 .* an earlier line has"),
    ],
)
def test_a_file_of_keys_that_makes_no_sense_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(PlantError, match=says) as caught:
        clients.parse_keys(text, tmp_path)
    assert "0123456789" not in str(caught.value)


def test_keys_that_others_may_read_are_refused(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    asked = settings.model_copy(update={"serving_keys_file": path})
    with pytest.raises(PlantError, match=r"cannot be read: No such file"):
        serving.gateway_of(asked)
    path.write_text("planner=0123456789abcdef\n")
    path.chmod(0o640)
    with pytest.raises(PlantError, match=r"mode 0640\); chmod 600"):
        serving.gateway_of(asked)
    path.chmod(0o600)
    assert serving.gateway_of(asked).keys == {"planner": "0123456789abcdef"}
    path.write_bytes(b"\xff")
    with pytest.raises(PlantError, match="no UTF-8"):
        serving.gateway_of(asked)


def test_the_gateways_limits_are_settings(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = serving.gateway_of(settings)
    assert (usual.limits, usual.keys) == (Limits(max_request_bytes=4_000_000), {})
    keys = tmp_path / "keys"
    keys.write_text("planner=0123456789abcdef\n")
    keys.chmod(0o600)
    for name, value in {"KEYS_FILE": str(keys), "REQUESTS_PER_S": "7", "MAX_REQUEST_MB": "0.5"}.items():
        monkeypatch.setenv(f"AIF_SERVING_{name}", value)
    asked = load_settings(settings.home).model_copy(update={"serving_runtime": "own"})
    limits = serving.gateway_of(asked).limits
    assert (limits.requests_per_s, limits.burst, limits.max_request_bytes) == (7, 14, 500_000)
    control = next(p for p in serving.prepare(asked) if p.name == serving.CONTROL)
    names = ("AIF_SERVING_KEYS_FILE", "AIF_SERVING_REQUESTS_PER_S", "AIF_SERVING_MAX_REQUEST_MB")
    assert [control.environment[name] for name in names] == [str(keys), "7", "0.5"]
    assert secrets.ensure_secrets(asked)["AIF_SERVING_KEYS_FILE"] == str(keys), "a start without them finds them again"
    for name, value in {"REQUESTS_PER_S": "0", "MAX_REQUEST_MB": "9"}.items():
        monkeypatch.setenv(f"AIF_SERVING_{name}", value)
        with pytest.raises(ValidationError, match=name.lower()):
            load_settings(settings.home)
        monkeypatch.delenv(f"AIF_SERVING_{name}")


def test_secrets_do_not_show_their_values(settings: Settings) -> None:
    values = secrets.ensure_secrets(settings)
    completed = secrets.with_secrets(settings, values)
    for text in (repr(values), str(values), repr(completed)):
        assert values["AIF_S3_SECRET_KEY"] not in text
        assert values["PLANT_DB_FACTORY_PASSWORD"] not in text


def test_settings_read_the_secrets_file(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("AIF_")]:
        monkeypatch.delenv(name)
    moved = settings.model_copy(update={"airflow_port": 9123})
    values = secrets.ensure_secrets(moved)
    read = load_settings(settings.home)
    assert read.airflow_port == 9123
    assert read.s3_secret_key.get_secret_value() == values["AIF_S3_SECRET_KEY"]
    assert f":{read.postgres_port}/factory" in read.ledger_dsn.get_secret_value()


def test_a_broken_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    secrets.write_private(path, "old")
    with pytest.raises(UnicodeEncodeError):
        secrets.write_private(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_taken_port_is_named_with_setting_and_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            ports.check_free("127.0.0.1", {port: "AIF_S3_PORT"})
    message = str(caught.value)
    assert str(port) in message
    assert "AIF_S3_PORT" in message
    assert f"process {os.getpid()}" in message
    ports.check_free("127.0.0.1", {port: "AIF_S3_PORT"})


def test_internal_ports_fit_their_block(settings: Settings) -> None:
    found = ports.internal_ports(settings, "")
    assert len(found) == len(ports._INTERNAL)
    assert all(settings.internal_port <= port < settings.internal_port + 32 for port in found)


def test_airflow_configuration_carries_every_character(settings: Settings) -> None:
    odd = settings.model_copy(update={"home": Path("/tmp/100%/home")})
    values = secrets.Secrets(dict.fromkeys(secrets._GENERATORS, "x"))
    parser = configparser.ConfigParser()
    parser.read_file(io.StringIO(airflow._configuration(odd, values)))
    assert parser["logging"]["base_log_folder"] == "/tmp/100%/home/airflow/logs"
    assert parser["core"]["load_examples"] == "False"
    assert parser["usage_data_collection"]["enabled"] == "False"


def test_the_pools_have_a_keeper_of_a_small_role(settings: Settings) -> None:
    values = secrets.ensure_secrets(settings)
    airflow.write_configuration(settings, values)
    folder = airflow.home(settings)
    parser = configparser.ConfigParser()
    parser.read(folder / "airflow.cfg")
    assert parser["core"]["simple_auth_manager_users"] == "admin:admin,operator:user,viewer:viewer,capacity:op"
    passwords = json.loads((folder / "passwords.json").read_text())
    told = load_settings(settings.home).capacity_password
    assert passwords["capacity"] == told.get_secret_value() == values["AIF_CAPACITY_PASSWORD"]
    assert passwords["capacity"] not in (folder / "airflow.cfg").read_text() + repr(settings) + repr(told)


@pytest.mark.parametrize(("given", "passed_on"), [("here.yaml", f"{Path.cwd()}/here.yaml"), ("", ""), (None, None)])
def test_tasks_find_the_inventory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, passed_on: str | None
) -> None:
    monkeypatch.delenv("AIF_CAPACITY_FILE", raising=False)
    if given is not None:
        monkeypatch.setenv("AIF_CAPACITY_FILE", given)
    assert airflow.environment(load_settings(tmp_path)).get("AIF_CAPACITY_FILE") == passed_on


def test_supervisor_configuration_is_what_supervisord_reads(settings: Settings) -> None:
    from supervisor.options import ServerOptions

    supervisor = Supervisor(settings.home)
    secrets.private_folder(supervisor.run_folder)
    secrets.private_folder(supervisor.log_folder)
    odd = Program("odd", ["/bin/echo", "a b", "50%"], {"PASSWORD": "p%ss,word'=x y"}, order=7)
    secrets.write_private(supervisor.config_file, supervisor._config([odd], {"SHARED": "1"}))
    options = ServerOptions()
    options.realize(["-c", str(supervisor.config_file)])
    [group] = options.process_group_configs
    [program] = group.process_configs
    assert program.command == "/bin/echo 'a b' 50%"
    assert program.environment["PASSWORD"] == "p%ss,word'=x y"
    assert program.environment["SHARED"] == "1"
    assert program.environment[processes.MARKER] == str(settings.home)
    assert program.autorestart
    assert program.killasgroup


def test_supervisor_refuses_what_it_cannot_carry(settings: Settings) -> None:
    with pytest.raises(PlantError, match="PASSWORD"):
        Supervisor(settings.home)._config([Program("odd", ["x"], {"PASSWORD": 'a"b'})], {})


def test_socket_of_a_deep_home_fits_the_kernel(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    assert len(os.fsencode(Supervisor(deep).socket)) <= 107 - len(".4194304")
    assert Supervisor(deep).socket != Supervisor(tmp_path / ("e" * 120)).socket


def test_marked_processes_are_found_and_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    marked = subprocess.Popen(command, env={**os.environ, processes.MARKER: str(tmp_path)})
    other = subprocess.Popen(command, env={**os.environ, processes.MARKER: str(tmp_path / "other")})
    try:
        assert [p.pid for p in processes.plant_processes(tmp_path)] == [marked.pid]
        assert processes.end_all(tmp_path) == 1
        assert marked.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_the_world_gets_no_secret_of_the_factory(settings: Settings) -> None:
    values = secrets.ensure_secrets(settings)
    for program in world.prepare(settings, values):
        text = " ".join([*program.command, *program.environment.values()])
        hidden = [k for k in values if k.startswith(("PLANT_", "AIF_S3_ACCESS", "AIF_S3_SECRET", "AIF_LEDGER"))]
        assert len(hidden) == 19
        assert not [name for name in hidden if values[name] in text]
        assert load_settings(Path(program.environment["AIF_HOME"])).s3_access_key == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another account")
def test_a_home_that_postgres_cannot_reach_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(postgres.shutil, "which", lambda name: None)
    with pytest.raises(PlantError, match=r"AIF_HOME") as caught:
        postgres.choose_identity(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_plain_progress_without_a_terminal() -> None:
    out = io.StringIO()
    with display.progress(Console(file=out, width=200)) as report:
        report("s3", "starting")
        report("s3", "healthy")
    assert [line.split("s  ")[1] for line in out.getvalue().splitlines()] == ["s3: starting", "s3: healthy"]


def test_status_table_names_every_part(settings: Settings) -> None:
    out = io.StringIO()
    parts = [PartStatus("s3", "RUNNING", 7, 3_000_000, 61), PartStatus("mlflow", "STOPPED", url="http://x")]
    display.show_status(settings, parts, 3_000_000, Console(file=out, width=200))
    text = out.getvalue()
    assert "s3" in text
    assert "3 MB" in text
    assert "STOPPED" in text
    assert "0.00 GB" in text


def test_old_task_logs_are_removed(settings: Settings) -> None:
    folder = airflow.home(settings) / "logs" / "dag"
    folder.mkdir(parents=True)
    old, new = folder / "old.log", folder / "new.log"
    old.write_text("x")
    new.write_text("x")
    os.utime(old, (1, 1))
    assert airflow.prune_logs(settings) == 1
    assert not old.exists()
    assert new.exists()
