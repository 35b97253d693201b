"""A kubeconfig as it goes into an Airflow connection: of one context, whole in itself."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from plant.cluster import reached_by, self_contained
from plant.errors import PlantError


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    for name in ("ca.crt", "me.crt", "me.key", "token"):
        (tmp_path / name).write_text(f"content of {name}\n")
    config: dict[str, Any] = {
        "current-context": "near",
        "contexts": [
            {"name": "near", "context": {"cluster": "a", "user": "files"}},
            {"name": "far", "context": {"cluster": "b", "user": "token"}},
        ],
        "clusters": [
            {"name": "a", "cluster": {"server": "https://a", "certificate-authority": "ca.crt"}},
            {"name": "b", "cluster": {"server": "https://b", "certificate-authority-data": "Yg=="}},
        ],
        "users": [
            {"name": "files", "user": {"client-certificate": "me.crt", "client-key": str(tmp_path / "me.key")}},
            {"name": "token", "user": {"tokenFile": "token"}},
        ],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    return path


def decoded(part: dict[str, str], name: str) -> str:
    return base64.b64decode(part[name]).decode()


def test_files_that_it_names_are_taken_in(kubeconfig: Path):
    whole = self_contained(kubeconfig)
    [cluster], [user] = whole["clusters"], whole["users"]
    assert decoded(cluster["cluster"], "certificate-authority-data") == "content of ca.crt\n"
    assert decoded(user["user"], "client-certificate-data") == "content of me.crt\n"
    assert decoded(user["user"], "client-key-data") == "content of me.key\n"
    assert not {"certificate-authority", "client-certificate", "client-key"} & {*cluster["cluster"], *user["user"]}


def test_another_context_brings_its_own_cluster_and_user_alone(kubeconfig: Path, tmp_path: Path):
    whole = self_contained(kubeconfig, "far")
    assert whole["current-context"] == "far"
    assert [c["cluster"]["server"] for c in whole["clusters"]] == ["https://b"]
    assert [u["user"] for u in whole["users"]] == [{"tokenFile": str(tmp_path / "token")}]


def test_another_url_of_the_api_keeps_the_name_on_its_certificate(kubeconfig: Path):
    [reached] = reached_by(self_contained(kubeconfig), "https://10.0.0.1:6443")["clusters"]
    assert reached["cluster"]["server"] == "https://10.0.0.1:6443"
    assert reached["cluster"]["tls-server-name"] == "a"
    assert "certificate-authority-data" in reached["cluster"]


def test_what_is_no_kubeconfig_is_named(kubeconfig: Path):
    with pytest.raises(PlantError, match="nowhere"):
        self_contained(kubeconfig, "nowhere")
    (kubeconfig.parent / "me.key").unlink()
    with pytest.raises(PlantError, match=r"me\.key"):
        self_contained(kubeconfig)
    kubeconfig.write_text("[")
    with pytest.raises(PlantError, match="no kubeconfig"):
        self_contained(kubeconfig)
    with pytest.raises(PlantError, match="no kubeconfig"):
        self_contained(kubeconfig.parent / "absent")
