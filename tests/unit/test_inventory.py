"""The inventory: what a file may say, and how it is told that it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from aifactory.capacity.inventory import load_inventory
from aifactory.errors import SpecError

WHOLE: dict[str, Any] = {
    "currency": "EUR",
    "feeds": {
        "nl": {
            "source": "prices.csv", "quantity": "price_per_mwh", "time_column": "hour", "value_column": "price",
            "low": -600, "high": 5000, "default": 80,
        },
        "grid": {
            "source": "https://grid.invalid/carbon.csv", "quantity": "grams_per_kwh", "time_column": "hour",
            "value_column": "grams", "low": 0, "high": 1500, "default": 300,
        },
    },
    "clusters": {
        "near": {
            "connection": "kubernetes_near", "region": "eu-nl", "energy": "nl", "carbon": "grid",
            "offers": {
                "own": {"gpu_class": "NVIDIA-H200", "units": 8, "unit_power_w": 900},
                "cpu": {"units": 4, "unit_power_w": 150},
            },
        },
        "cloud": {
            "connection": "kubernetes_cloud", "region": "eu-de",
            "offers": {
                "spot": {
                    "gpu_class": "NVIDIA-H200", "units": 64, "tariff": "spot", "unit_hour": 1.9,
                    "interruptions_per_hour": 0.05, "unit_power_w": 900, "energy_included": True,
                }
            },
        },
    },
    "reservations": [{"line": "flight_delay", "cluster": "near", "offer": "own", "units": 2}],
    "max_units_of_line": {"flight_delay": 16},
}  # fmt: skip


def load(folder: Path, change: str = "", value: Any = None) -> Any:
    """The whole file, but for one field, named by its path."""
    content = yaml.safe_load(yaml.safe_dump(WHOLE))
    part: Any = content
    *way, last = change.split(".") if change else ("",)
    for step in way:
        part = part[int(step)] if step.isdigit() else part[step]
    if change:
        part[last] = value
    (folder / "capacity.yaml").write_text(yaml.safe_dump(content))
    return load_inventory(folder / "capacity.yaml")


def test_a_whole_file(tmp_path: Path):
    inventory = load(tmp_path)
    assert inventory.clusters["near"].offers["own"].tariff == "reserved"
    assert inventory.clusters["cloud"].offers["spot"].interruptions_per_hour == 0.05


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("clusters.near.offers.own.unit_power_w", 0.9, ("unit_power_w", "0.9", "20")),  # kW
        ("clusters.cloud.offers.spot.unit_hour", 190, ("unit_hour", "190")),  # cents
        ("clusters.near.pue", 0.8, ("pue", "0.8")),
        ("clusters.near.offers.own.units", -1, ("units", "-1")),
        ("clusters.near.offers.own.unit_hour", -2, ("unit_hour", "-2")),
        ("clusters.near.offers.own.unit_hour", float("nan"), ("unit_hour",)),
        ("clusters.near.offers.own.tariff", "free", ("tariff", "free")),
        ("clusters.near.offers.own.interruptions_per_hour", 0.1, ("interruptions_per_hour", "reserved")),
        ("clusters.near.offers", {}, ("offers",)),
        ("clusters.near.energy", "grid", ("clusters.near.energy", "grid")),
        ("clusters.near.carbon", "nowhere", ("clusters.near.carbon", "nowhere")),
        ("clusters.cloud.connection", "kubernetes_near", ("region", "kubernetes_near", "one region")),
        (
            "clusters.near.offers.second",
            {"gpu_class": "NVIDIA-H200", "units": 1, "unit_power_w": 700},
            ("second", "near.own"),
        ),
        (
            "clusters.near.offers.second",
            {"gpu_class": "NVIDIA-H200", "units": 1, "unit_power_w": 700, "node_labels": {"tariff": "spot"}},
            ("second", "near.own", "give both"),
        ),
        ("clusters.near.colour", "red", ("colour",)),
        ("feeds.nl.default", 1e6, ("default", "high")),
        ("feeds.nl.low", 9000, ("low", "high")),
        ("feeds.nl.source", "ftp://prices.invalid/nl.csv", ("feeds.nl", "ftp://")),
        ("feeds.nl.source", "http://[", ("feeds.nl",)),
        ("reservations.0.units", 9, ("9", "near.own", "8")),
        ("reservations.0.offer", "none", ("near.none", "no offer")),
        ("currency", "euros", ("currency", "euros")),
        ("clusters", {}, ("clusters",)),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path: Path, field: str, value: Any, words: tuple[str, ...]):
    with pytest.raises(SpecError) as caught:
        load(tmp_path, field, value)
    for word in ("capacity.yaml", *words):
        assert word in str(caught.value)


def test_no_file(tmp_path: Path):
    with pytest.raises(SpecError, match="AIF_CAPACITY_FILE"):
        load_inventory(tmp_path / "nothing.yaml")
