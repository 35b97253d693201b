"""Gradient-boosted trees: scikit-learn's HistGradientBoostingClassifier, exported node by node.

Categories are numbered by their share of positives, so that one split of a tree can part the late from the
punctual. Rare ones count as unknown, so that the trees learn what to do with a category that they have not seen.

Training takes seconds and keeps no checkpoints: scikit-learn's trees cannot be written in the middle but by pickle.
SIGTERM ends it at once, and the next try starts anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from aifactory.errors import TrainingDefect
from aifactory.reasons import ReasonCode
from aifactory.recipes.base import Checkpoints, Parameters, Progress, TrainingFrame, codes, matrix
from aifactory.recipes.clock import Part, StepClock
from aifactory.recipes.graph import Graph

_SMOOTHING_ROWS = 20.0
_REPORT_EVERY = 10
_LOOK_EVERY_S = 0.2


class GradientBoostingParameters(Parameters):
    """What can be turned. The number of trees is fixed: a refit on more days must be the same model."""

    num_trees: int = Field(120, ge=1, le=5000, description="Boosting rounds.")
    learning_rate: float = Field(0.08, gt=0, le=1, description="Shrinkage of each tree.")
    max_leaves: int = Field(31, ge=2, le=1024, description="Leaves of a tree.")
    min_leaf_rows: int = Field(60, ge=1, description="Fewest rows of a leaf.")
    l2: float = Field(1.0, ge=0, description="L2 regularisation of leaf values.")
    feature_share: float = Field(0.5, gt=0, le=1, description="Share of features that a split may choose from.")
    max_bins: int = Field(255, ge=2, le=255, description="Bins of a feature.")
    min_category_rows: int = Field(30, ge=1, description="A category with fewer rows counts as unknown.")


@dataclass(frozen=True)
class FittedTrees:
    """The trained trees with the numbers of the categories, by column."""

    model: Any
    vocabularies: dict[str, dict[str, float]]
    numeric: tuple[str, ...]

    def predict(self, table: pa.Table) -> npt.NDArray[np.float64]:
        """Probability by scikit-learn itself."""
        found: npt.NDArray[np.float64] = self.model.predict_proba(_features(table, self.vocabularies, self.numeric))[
            :, 1
        ]
        return found

    def to_onnx(self) -> bytes:
        """The trees as one TreeEnsembleRegressor over the joined columns."""
        graph = Graph(list(self.vocabularies), self.numeric)
        columns = [graph.lookup(c, v, float("nan")) for c, v in self.vocabularies.items()]
        joined = graph.join([*columns, *self.numeric], "features")
        graph.add("TreeEnsembleRegressor", [joined], "logit", domain="ai.onnx.ml", **_ensemble(self.model))
        return graph.finish("logit")

    def to_safetensors(self) -> bytes | None:
        """Trees are always grown anew."""
        return None


class GradientBoosting:
    """See the module."""

    parameters = GradientBoostingParameters

    def fit(
        self,
        frame: TrainingFrame,
        params: GradientBoostingParameters,
        *,
        seed: int,
        threads: int,
        warm_start: bytes | None = None,
        progress: Progress = lambda step, steps, metrics: None,
        checkpoints: Checkpoints | None = None,
        clock: StepClock | None = None,
    ) -> FittedTrees:
        """Number the categories, then grow the trees; the training loss is reported meanwhile."""
        labels = frame.labels
        if len(np.unique(labels)) < 2:
            raise TrainingDefect(
                ReasonCode.TRAINING_FAILED,
                f"all {frame.num_rows} rows have the same {frame.target}; give the recipe days with both outcomes",
            )
        vocabularies = {c: _vocabulary(frame, c, labels, params.min_category_rows) for c in frame.categorical}
        features = _features(frame.table, vocabularies, frame.numeric)
        model = _new_model(params, seed)
        clock = clock or StepClock()
        clock.step(0)
        clock.enter(Part.COMPUTE)
        # scikit-learn's OpenMP would take every core; on two cores the scheduler and the stores want one of them, and
        # two threads that wait for each other in a spin are ten times slower there than one
        with threadpool_limits(limits=1 if threads <= 2 else threads), _watched(model, params.num_trees, progress):
            model.fit(features, labels)
        clock.step(params.num_trees)
        if not np.isfinite(model.train_score_).all():
            raise TrainingDefect(
                ReasonCode.LOSS_NOT_FINITE,
                f"the loss is not finite after {params.num_trees} trees; lower learning_rate",
            )
        return FittedTrees(model, vocabularies, frame.numeric)


def _new_model(params: GradientBoostingParameters, seed: int) -> Any:
    return HistGradientBoostingClassifier(
        max_iter=params.num_trees,
        learning_rate=params.learning_rate,
        max_leaf_nodes=params.max_leaves,
        min_samples_leaf=params.min_leaf_rows,
        l2_regularization=params.l2,
        max_features=params.feature_share,
        max_bins=params.max_bins,
        # "early stopping" on the training loss that never stops early: it keeps the loss of every tree for the asking
        early_stopping=True,
        scoring="loss",
        validation_fraction=None,
        n_iter_no_change=params.num_trees,
        random_state=seed,
    )


@contextmanager
def _watched(model: Any, num_trees: int, progress: Progress) -> Iterator[None]:
    """Report the loss while trees grow, from a thread beside: growing them in parts would cost twice the time."""
    done = threading.Event()
    failed: list[Exception] = []
    told = 0

    def tell(losses: Sequence[float]) -> None:
        nonlocal told
        for tree in range(told + 1, len(losses)):
            told = tree
            if tree % _REPORT_EVERY == 0 or tree == num_trees:
                progress(tree, num_trees, {"train_loss": -float(losses[tree])})

    def watch() -> None:
        try:
            while not done.wait(_LOOK_EVERY_S):
                tell(list(getattr(model, "train_score_", [])))
        except Exception as error:  # raised again below, in the thread that trains
            failed.append(error)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    if failed:
        raise failed[0]
    tell(model.train_score_)


def _vocabulary(frame: TrainingFrame, column: str, labels: npt.NDArray[np.float32], min_rows: int) -> dict[str, float]:
    """Number the categories that have enough rows by their smoothed share of positives, rising."""
    encoded = frame.table[column].cast(pa.string()).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    which = encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    count = np.bincount(which, minlength=len(names) + 1)[: len(names)]
    positive = np.bincount(which, labels, minlength=len(names) + 1)[: len(names)]
    share = (positive + _SMOOTHING_ROWS * labels.mean()) / (count + _SMOOTHING_ROWS)
    kept = sorted((float(s), name) for name, s, n in zip(names, share, count, strict=True) if n >= min_rows)
    return {name: float(number) for number, (_, name) in enumerate(kept)} or {"": 0.0}


def _features(
    table: pa.Table, vocabularies: Mapping[str, Mapping[str, float]], numeric: tuple[str, ...]
) -> npt.NDArray[np.float32]:
    """What the trees see, float32 [n, categorical + numeric], NaN for missing and unknown."""
    columns = [codes(table, c, v, float("nan")) for c, v in vocabularies.items()]
    return np.column_stack([*columns, matrix(table, numeric)])


def _ensemble(model: Any) -> dict[str, Any]:
    """The attributes of the TreeEnsembleRegressor.

    A split sends x ≤ threshold to the left. scikit-learn's thresholds are 64-bit midpoints between 32-bit values;
    rounded to nearest they could reach the value above and send it left. Rounded down to 32 bits they part the same
    32-bit values as before.
    """
    nodes: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes")}
    nodes |= {k: [] for k in ("truenodeids", "falsenodeids", "missing_value_tracks_true")}
    leaves: dict[str, list[Any]] = {k: [] for k in ("treeids", "nodeids", "ids", "weights")}
    for tree, [predictor] in enumerate(model._predictors):  # one tree a round: the target is binary
        for number, node in enumerate(predictor.nodes):
            leaf = bool(node["is_leaf"])
            row = (
                tree, number, 0 if leaf else int(node["feature_idx"]), 0.0 if leaf else _down(node["num_threshold"]),
                "LEAF" if leaf else "BRANCH_LEQ", 0 if leaf else int(node["left"]), 0 if leaf else int(node["right"]),
                int(not leaf and node["missing_go_to_left"]),
            )  # fmt: skip
            for name, value in zip(nodes, row, strict=True):
                nodes[name].append(value)
            if leaf:
                for name, value in zip(leaves, (tree, number, 0, float(node["value"])), strict=True):
                    leaves[name].append(value)
    attributes = {f"nodes_{k}": v for k, v in nodes.items()} | {f"target_{k}": v for k, v in leaves.items()}
    return attributes | {"n_targets": 1, "base_values": [float(np.ravel(model._baseline_prediction)[0])]}


def _down(threshold: float) -> float:
    """The largest 32-bit float that is not above a 64-bit one."""
    nearest = np.float32(threshold)
    return float(nearest if nearest <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


RECIPE = GradientBoosting()
