"""The plant's stock of compute: clusters, what machines they have under which tariff, and what those cost.

One typed file, see `Settings.capacity_file`. Money is in one currency, that of the price feeds. A *unit* is a GPU, or,
where an offer names no class of GPU, room for one pod without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from aifactory.specfile import Name, Spec, read_spec

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,61}$")]


class Feed(Spec):
    """Hourly values of the outside world: energy prices, or the carbon of energy."""

    source: str = Field(
        min_length=1,
        description="Path of a CSV file, relative to the inventory, or its http(s) URL. The hours ahead are "
        "forecast from what it has told so far: a year is best; with less than six weeks the means of the last serve.",
    )
    quantity: Literal["price_per_mwh", "price_per_kwh", "grams_per_kwh"] = Field(description="What a value is.")
    time_column: str = Field(description="Column of the hour's beginning, UTC.")
    value_column: str = Field(description="Column of the value.")
    time_formats: list[str] = Field(
        default_factory=lambda: ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"],
        min_length=1,
        description="Formats of the hour; each row's first that fits is taken.",
    )
    low: float = Field(description="Values below are errors, in the feed's quantity.")
    high: float = Field(description="Values above are errors, in the feed's quantity.")
    max_bad_share: float = Field(0.1, ge=0, lt=1, description="With more bad rows than this the delivery is refused.")
    stale_hours: float = Field(
        12, ge=0, description="A feed whose newest hour lies so far in the past is not used, hours."
    )
    default: float = Field(description="Value where the feed is stale or away, in the feed's quantity.")

    @model_validator(mode="after")
    def _consistent(self) -> Feed:
        scheme = urlsplit(self.source).scheme
        if scheme not in ("", "http", "https"):
            raise ValueError(f"source {self.source!r} is neither a path nor an http(s) URL")
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if not self.low <= self.default <= self.high:
            raise ValueError(f"default {self.default:g} lies outside of low {self.low:g} and high {self.high:g}")
        return self


class Offer(Spec):
    """Machines of one class under one tariff."""

    gpu_class: Label | None = Field(None, description="Value of the node label of the class; none: no GPU.")
    node_labels: dict[str, str] = Field(
        default_factory=dict,
        description="Labels of its nodes, which pods placed there must have; the class's label goes without saying.",
    )
    units: int = Field(ge=0, le=100_000, description="GPUs; without a class, pods at a time.")
    tariff: Literal["reserved", "on_demand", "spot"] = Field(
        "reserved", description="reserved: paid for whether used or not; spot: may be taken away."
    )
    unit_hour: float = Field(
        0, ge=0, le=100, description="Price of a unit for an hour of use; 0 where it is paid for anyway. Not cents."
    )
    interruptions_per_hour: float = Field(0, ge=0, le=10, description="How often a spot machine is taken away.")
    unit_power_w: float = Field(
        ge=20, le=5000, description="Power of a unit at work with its share of the machine, W. Not kW."
    )
    energy_included: bool = Field(False, description="Whether unit_hour pays for energy too.")
    speed: float = Field(1, gt=0, le=100, description="Speed against the class that expected_minutes of lines are of.")

    @model_validator(mode="after")
    def _consistent(self) -> Offer:
        if self.interruptions_per_hour and self.tariff != "spot":
            raise ValueError(f"interruptions_per_hour is {self.interruptions_per_hour:g} but tariff is {self.tariff!r}")
        return self


class Cluster(Spec):
    """A Kubernetes cluster, or a namespace of one."""

    connection: str = Field(min_length=1, description="The Airflow connection to it.")
    region: Label = Field(description="Where it is: what `residency.regions` of lines names.")
    pue: float = Field(1.2, ge=1, le=3, description="Power usage effectiveness: energy drawn ÷ energy of the machines.")
    energy: Name | None = Field(None, description="Feed of its energy price; none: energy costs nothing extra.")
    carbon: Name | None = Field(None, description="Feed of its energy's carbon; none: not weighed.")
    offers: dict[Name, Offer] = Field(min_length=1)


class Reservation(Spec):
    """Units of an offer that are kept free for one line."""

    line: Name
    cluster: Name
    offer: Name
    units: int = Field(gt=0)


class Inventory(Spec):
    """All of the plant's compute."""

    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="ISO 4217 code of all money in the file.")
    carbon_price_per_t: float = Field(
        0, ge=0, le=10_000, description="What a tonne of CO2 weighs in a decision, in money; 0: nothing."
    )
    cool_off_minutes: float = Field(
        10, gt=0, description="A cluster that failed, or had no room, is passed over for so long, minutes."
    )
    follow_minutes: float = Field(
        3, ge=0, le=8, description="Work in a cluster that stopped to answer is moved after so long, minutes."
    )
    stock_stale_hours: float = Field(
        24, gt=0, description="What a cluster was seen to have counts for so long; then what is declared does, hours."
    )
    feeds: dict[Name, Feed] = Field(default_factory=dict)
    clusters: dict[Name, Cluster] = Field(min_length=1)
    reservations: list[Reservation] = Field(default_factory=list)
    max_units_of_line: dict[Name, int] = Field(
        default_factory=dict, description="Line -> units that it may have at work at a time, over all clusters."
    )

    @model_validator(mode="after")
    def _across_sections(self) -> Inventory:
        for name, cluster in self.clusters.items():
            for field, wanted in (("energy", "price"), ("carbon", "grams")):
                feed = getattr(cluster, field)
                if feed is not None and not (feed in self.feeds and self.feeds[feed].quantity.startswith(wanted)):
                    raise ValueError(f"clusters.{name}.{field} is {feed!r}, which is no feed of {wanted} under feeds")
        self._distinct()
        held: dict[tuple[str, str], int] = {}
        for each in self.reservations:
            place = each.cluster, each.offer
            if each.cluster not in self.clusters or each.offer not in self.clusters[each.cluster].offers:
                raise ValueError(f"reservations: {each.line} names {'.'.join(place)}, which is no offer")
            held[place] = held.get(place, 0) + each.units
        for (cluster_name, offer), units in held.items():
            there = self.clusters[cluster_name].offers[offer].units
            if 0 < there < units:  # 0: it is drained
                raise ValueError(f"reservations: {units} units of {cluster_name}.{offer} are promised, it has {there}")
        return self

    def _distinct(self) -> None:
        """One connection is in one region; pods of two offers behind it must not land on each other's nodes."""
        regions: dict[str, str] = {}
        seen: dict[tuple[str, str | None], list[tuple[str, dict[str, str]]]] = {}
        for name, cluster in self.clusters.items():
            if regions.setdefault(cluster.connection, cluster.region) != cluster.region:
                raise ValueError(
                    f"clusters.{name}.region is {cluster.region!r}, but its connection {cluster.connection!r} is in "
                    f"{regions[cluster.connection]!r}: one cluster is in one region"
                )
            for key, offer in cluster.offers.items():
                others = seen.setdefault((cluster.connection, offer.gpu_class), [])
                for other, labels in others:
                    if not any(offer.node_labels.get(label, value) != value for label, value in labels.items()):
                        raise ValueError(
                            f"clusters.{name}.offers.{key} and {other} have the same connection and gpu_class, and no "
                            f"label of node_labels with two values, so pods of one could land on machines of the "
                            f"other; give both a label"
                        )
                others.append((f"{name}.{key}", offer.node_labels))


def load_inventory(path: Path) -> Inventory:
    """Read and validate the inventory.

    Raises:
        SpecError: names the file, and each wrong field with its value.
    """
    return read_spec(path, Inventory, "see AIF_CAPACITY_FILE")
