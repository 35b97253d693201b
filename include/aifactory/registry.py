"""The model versions of a line, and which of them is in service.

MLflow's registry is the record of models: one registered model a line, one version a released candidate. The
serving repository in S3 is what serves: `models/<line>/<version>/` holds immutable packages, and
`serving/<line>/champion.json` says which one is in service. That pointer is the truth; it is switched by
compare-and-swap, so two releases cannot both win, and MLflow's aliases follow it (and are repaired on a rerun).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aifactory.errors import NotFound, ReleaseDefect
from aifactory.packaging import copy_package, package_exists, read_manifest
from aifactory.reasons import ReasonCode
from aifactory.signing import sign_package
from aifactory.training.tracking import mlflow_client, mlflow_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from aifactory.settings import Settings
    from aifactory.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelVersion:
    """One registered version. `tags` has order_id, phase, dataset_revision, dir_md5, trained_until, metrics."""

    version: str
    order_id: str
    trained_until: str
    dataset_revision: str
    package: str
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Champion:
    """The pointer `champion.json`: which version is in service, since when, and the reigns before it.

    `history` has every reign, oldest first, the current one last: {version, order_id, dataset_revision,
    trained_until, package, since, how ("promoted" | "rolled_back"), by, why}. `etag` is what `switch` compares.
    """

    version: str
    order_id: str
    dataset_revision: str
    trained_until: str
    package: str
    previous: str | None
    since: str
    history: list[dict[str, Any]]
    etag: str

    def to_dict(self) -> dict[str, Any]:
        """The pointer as it is stored."""
        return {k: v for k, v in vars(self).items() if k != "etag"}


class Registry:
    """Versions and champion of one line."""

    def __init__(self, settings: Settings, line: str, store: Store) -> None:
        self.settings = settings
        self.line = line
        self.store = store

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow, connected on first use; the champion is read without it."""
        return mlflow_client(self.settings)

    @property
    def champion_key(self) -> str:
        """Key of the pointer."""
        return f"serving/{self.line}/champion.json"

    def package_prefix(self, version: str) -> str:
        """Where the package of a version lies, immutable."""
        return f"models/{self.line}/{version}"

    # --- versions
    def register(
        self, order: Mapping[str, Any], package_prefix: str, metrics: Mapping[str, float], run_id: str | None
    ) -> ModelVersion:
        """Make a package a version. Registering the same order again returns the version that it has.

        Args:
            order: the training order.
            package_prefix: where training left the package.
            metrics: what the evaluation measured; become tags `metric.<name>`.
            run_id: the MLflow run that made the package.
        """
        manifest = read_manifest(self.store, package_prefix)
        found = self._of_order(str(order["order_id"]))
        version = found or self._create(order, manifest, package_prefix, metrics, run_id)
        target = self.package_prefix(version)
        if not package_exists(self.store, target):
            copy_package(self.store, package_prefix, target)
        sign_package(self.settings, self.store, target)
        with mlflow_errors(self.settings):
            self.client.set_model_version_tag(self.line, version, "package", target)
        return self.version(version)

    def version(self, version: str) -> ModelVersion:
        """One version.

        Raises:
            ReleaseDefect: there is no such version, or its package is not whole.
        """
        known = {v.version: v for v in self.versions()}
        if version not in known:
            raise ReleaseDefect(
                ReasonCode.VERSION_UNKNOWN,
                f"{self.line} has no version {version!r}; there are {sorted(known, key=int)}",
            )
        return known[version]

    def versions(self) -> list[ModelVersion]:
        """Every whole version whose package is in this store, oldest first."""
        with mlflow_errors(self.settings):
            found = self.client.search_model_versions(f"name = '{self.line}'", max_results=1000)
        mine = [v for v in found if v.tags.get("store") == self.store.bucket and v.tags.get("package")]
        return [_model_version(v) for v in sorted(mine, key=lambda v: int(v.version))]

    # --- the one in service
    def champion(self) -> Champion | None:
        """The version in service, or None where there is none yet."""
        try:
            raw, etag = self.store.get_with_etag(self.champion_key)
        except NotFound:
            return None
        return Champion(**json.loads(raw), etag=etag)

    def champions(self) -> list[dict[str, Any]]:
        """Every reign, oldest first, the current one last; see `Champion.history`."""
        champion = self.champion()
        return champion.history if champion else []

    def switch(
        self,
        version: str,
        *,
        expected_etag: str | None,
        how: str = "promoted",
        by: str = "",
        why: str = "",
    ) -> Champion:
        """Put a version into service atomically; the one before it is kept for rollback.

        Args:
            version: a registered version.
            expected_etag: `etag` of the champion that the caller saw; None where it saw none.
            how: "promoted" or "rolled_back".
            by: who asked for it.
            why: in a few words.

        Raises:
            Conflict: somebody else switched meanwhile.
            ReleaseDefect: there is no such version.
        """
        current = self.champion()
        if current is not None and current.version == version:
            self.follow(current)
            return current
        wanted = self.version(version)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        reign = {
            "version": wanted.version,
            "order_id": wanted.order_id,
            "dataset_revision": wanted.dataset_revision,
            "trained_until": wanted.trained_until,
            "package": wanted.package,
            "since": since,
        }
        history = [*(current.history if current else []), {**reign, "how": how, "by": by, "why": why}]
        pointer: dict[str, Any] = {**reign, "previous": current.version if current else None, "history": history}
        etag = self.store.put_json(self.champion_key, pointer, if_match=expected_etag, if_absent=expected_etag is None)
        switched = Champion(**pointer, etag=etag)
        self.follow(switched)
        return switched

    def follow(self, champion: Champion) -> None:
        """Make MLflow's aliases `champion` and `previous` say what the pointer says."""
        with mlflow_errors(self.settings):
            self.client.set_registered_model_alias(self.line, "champion", champion.version)
            if champion.previous:
                self.client.set_registered_model_alias(self.line, "previous", champion.previous)

    # --- inside
    def _of_order(self, order_id: str) -> str | None:
        with mlflow_errors(self.settings):
            found = self.client.search_model_versions(f"name = '{self.line}' and tags.order_id = '{order_id}'")
        mine = [v.version for v in found if v.tags.get("store") == self.store.bucket]
        return str(min(mine, key=int)) if mine else None

    def _create(
        self,
        order: Mapping[str, Any],
        manifest: Mapping[str, Any],
        package_prefix: str,
        metrics: Mapping[str, float],
        run_id: str | None,
    ) -> str:
        from mlflow.exceptions import RestException

        tags = {
            "order_id": str(order["order_id"]),
            "store": self.store.bucket,
            "recipe": str(order["recipe"]),
            "dataset_revision": str(order["revision"]),
            "dir_md5": str(order["dir_md5"]),
            "trained_until": str(manifest["trained_until"]),
            "package_digest": str(manifest["digest"]),
            **{f"metric.{name}": f"{value:.6f}" for name, value in metrics.items()},
        }
        with mlflow_errors(self.settings):
            with suppress(RestException):  # it is there already
                self.client.create_registered_model(self.line)
            made = self.client.create_model_version(
                self.line,
                source=self.store.uri(package_prefix),
                run_id=run_id,
                tags=tags,
                await_creation_for=0,
                description=f"order {order['order_id']}, {order['recipe']}, learned up to {manifest['trained_until']}",
            )
        log.info("order %s is version %s of %s", order["order_id"], made.version, self.line)
        return str(made.version)


def _model_version(found: Any) -> ModelVersion:
    tags = dict(found.tags)
    return ModelVersion(
        version=str(found.version),
        order_id=tags["order_id"],
        trained_until=tags["trained_until"],
        dataset_revision=tags["dataset_revision"],
        package=tags["package"],
        tags=tags,
    )
