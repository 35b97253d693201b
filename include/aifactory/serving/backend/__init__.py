"""Triton's `onnxruntime` backend in Python, for builds of Triton that have none.

Runs in Triton's own environment: imports nothing but the standard library, numpy, onnxruntime, and modules of
`aifactory.serving` that do the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifactory.serving.predictionlog import PredictionLog

LOG_FOLDER_VARIABLE = "AIF_PREDICTION_LOG"
"""Environment variable with the folder of the prediction log; without it nothing is logged."""

SLOT_VARIABLE = "AIF_SERVING_SLOT"
"""Environment variable with the name of the slot."""

REQUEST_ID_HEADER = "x-request-id"
"""Header with the id of a request that has none of its own."""

SHADOW_HEADER = "x-shadow"
"""Header that marks a request whose answer goes to nobody."""


def open_log(identity: Mapping[str, Any]) -> PredictionLog | None:
    """The prediction log of a version, by its `identity.json`; None where the environment names no folder for it."""
    folder = os.environ.get(LOG_FOLDER_VARIABLE)
    if not folder:
        return None
    from aifactory.serving.predictionlog import Identity, PredictionLog

    features = identity["features"]
    whose = Identity(
        line=identity["line"],
        version=identity["version"],
        dataset_revision=identity["dataset_revision"],
        slot=os.environ[SLOT_VARIABLE],
        categorical=tuple(features["categorical"]),
        numeric=tuple(features["numeric"]),
    )
    return PredictionLog.open(Path(folder), whose)
