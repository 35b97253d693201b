"""The images: what is in them, as whom they run, and that they build from nothing."""

from __future__ import annotations

import ast
import json

import pytest
from tests.containers.engine import build_environment, docker, run

from aifactory.settings import REPOSITORY

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2700)]

LOCKED = (
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--network",
    "none",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
)
ANY_USER = ("--user", "54321:0")
NEEDED = (
    "aifactory.training.run", "aifactory.training.tracking", "aifactory.recipes.gradient_boosting",
    "aifactory.recipes.tabular_mlp", "aifactory.registry", "aifactory.features", "aifactory.datasets",
    "aifactory.scoring", "aifactory.evaluation", "aifactory.packaging", "mlflow.tracking", "duckdb", "onnxruntime",
)  # fmt: skip


def python(image: str, code: str, *options: str) -> str:
    return docker("run", "--rm", *LOCKED, *options, "--entrypoint", "python", image, "-c", code)


def packages(image: str) -> dict[str, str]:
    code = "import importlib.metadata as m; print({d.name.lower(): d.version for d in m.distributions()})"
    found: dict[str, str] = ast.literal_eval(python(image, code))
    return found


@pytest.mark.thorough
def test_the_trainer_builds_from_nothing():
    environment = build_environment() | {"AIF_IMAGE_TAG": "from-nothing"}
    done = run("scripts/compose.sh", "build", "--no-cache", "trainer", environment=environment, timeout=2400)
    try:
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        assert packages("ai-factory-trainer:from-nothing")["torch"]
    finally:
        run("docker", "image", "rm", "ai-factory-trainer:from-nothing")


def test_the_trainer_holds_no_airflow(images: dict[str, str]):
    held = packages(images["trainer"])
    assert not [name for name in held if "airflow" in name]
    assert not {"sqlalchemy", "great-expectations", "alembic", "psycopg2-binary"} & set(held)
    assert (
        python(images["trainer"], "import os; print(sorted(os.listdir('/factory/include')))")
        == "['aifactory', 'lines']"
    )


def test_the_trainer_computes_with_the_versions_of_the_workers(images: dict[str, str]):
    held, workers = packages(images["trainer"]), packages(images["airflow"])
    differing = {n: (v, workers.get(n)) for n, v in held.items() if workers.get(n) not in {v, None}}
    assert differing == {}
    assert {"torch", "numpy", "pyarrow", "scikit-learn", "onnx", "onnxruntime", "duckdb"} <= set(held) & set(workers)


def test_the_trainer_runs_read_only_as_any_user(images: dict[str, str]):
    code = (
        "import importlib, os, getpass, tempfile\n"
        f"[importlib.import_module(name) for name in {NEEDED!r}]\n"
        "from aifactory.settings import load_settings\n"
        "from aifactory.line import find_line\n"
        "print(os.getuid(), getpass.getuser(), find_line(load_settings().lines_dir, 'flight_delay').line)\n"
        "tempfile.TemporaryFile().write(b'x')\n"
    )
    assert python(images["trainer"], code, *ANY_USER) == "54321 factory flight_delay"


def test_the_trainer_fits_read_only(images: dict[str, str]):
    code = (
        "import torch, sklearn.ensemble, numpy as np\n"
        "x, y = np.random.rand(500, 4), np.arange(500) % 2\n"
        "sklearn.ensemble.HistGradientBoostingClassifier(max_iter=3).fit(x, y)\n"
        "m = torch.nn.Linear(4, 1); o = torch.optim.AdamW(m.parameters())\n"
        "m(torch.tensor(x, dtype=torch.float32)).mean().backward(); o.step(); print('trained')\n"
    )
    assert python(images["trainer"], code, *ANY_USER) == "trained"


def test_the_trainer_is_the_training_program(images: dict[str, str]):
    said = docker("run", "--rm", *LOCKED, *ANY_USER, images["trainer"], "--help")
    assert said.startswith("usage: aifactory.training")
    wrong = run("docker", "run", "--rm", *LOCKED, images["trainer"], "--line", "x")
    assert wrong.returncode == 2
    assert "--order" in wrong.stderr


@pytest.mark.parametrize("name", ["airflow", "mlflow", "serving", "trainer"])
def test_an_image_runs_as_nobody_special_and_carries_no_secret(images: dict[str, str], name: str):
    [described] = json.loads(docker("image", "inspect", images[name]))
    assert described["Config"]["User"] == "10001:10001"
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", images[name])
    for word in ("BEGIN CERTIFICATE", "index-url", "PASSWORD=", "SECRET_KEY="):
        assert word not in history + json.dumps(described["Config"])
    code = (
        "import os; found = [os.path.join(d, f) for top in ('/run', '/etc/pip.conf', '/root', '/build', '/factory') "
        "for d, _, files in os.walk(top) for f in files if f in ('ca', 'pip', 'pip.conf', 'plant.env', '.git')]\n"
        "print(found)"
    )
    assert python(images[name], code, "--user", "0") == "[]"


def test_images_know_their_commit(images: dict[str, str]):
    wanted = run("git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*").stdout.strip()
    for name in ("airflow", "serving", "trainer"):
        code = "from aifactory.training.run import code_revision; print(code_revision())"
        assert python(images[name], code) == wanted
        label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
        assert docker("image", "inspect", "--format", label, images[name]) == wanted


def test_a_build_sends_no_state_to_the_engine():
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line for line in ignored if line.startswith("!")} == {
        "!dags", "!include", "!plugins", "!plugins/floor/dist", "!requirements*.txt", "!scripts",
    }  # fmt: skip
