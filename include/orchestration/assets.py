"""The assets that tie a line's DAGs into a loop.

The `x-` scheme keeps Airflow from loading a provider's URI handler in every task (a CPU-second each).
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow.sdk import Asset, PartitionedAssetTimetable


@dataclass(frozen=True)
class LineAssets:
    """What the stages of one line hand to each other; every event carries the partition key and ids in `extra`."""

    dataset: Asset
    candidate: Asset
    champion: Asset
    predictions: Asset
    retrain: Asset


def assets_of(line: str) -> LineAssets:
    """The assets of a line; equal in whichever DAG file they are made."""

    def asset(noun: str) -> Asset:
        return Asset(name=f"{line}.{noun}", uri=f"x-factory://{line}/{noun}", group=line)

    return LineAssets(
        dataset=asset("dataset"),
        candidate=asset("candidate"),
        champion=asset("champion"),
        predictions=asset("predictions"),
        retrain=asset("retrain"),
    )


def whenever(asset: Asset) -> PartitionedAssetTimetable:
    """One run for each partition of an asset, the partition key carried on."""
    return PartitionedAssetTimetable(assets=asset)
