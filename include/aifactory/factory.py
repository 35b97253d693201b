"""The open factory: the stores that every stage works with, made on first use."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from aifactory.settings import Settings, load_settings
from aifactory.store import Store

if TYPE_CHECKING:
    from aifactory.datasets import DatasetRepository
    from aifactory.ledger import Ledger
    from aifactory.line import LineSpec
    from aifactory.registry import Registry


class Factory:
    """Handles to the plant's stores. Cheap to make: each connects when it is first used.

    Args:
        settings: of the plant.
        pooled: whether the ledger keeps its connections; see `Ledger`.
    """

    def __init__(self, settings: Settings, *, pooled: bool = False) -> None:
        self.settings = settings
        self._pooled = pooled

    @cached_property
    def store(self) -> Store:
        """The factory's own bucket."""
        return Store(self.settings, self.settings.factory_bucket)

    @cached_property
    def landing(self) -> Store:
        """The bucket that the outside world delivers into; the factory only reads it."""
        return Store(self.settings, self.settings.landing_bucket)

    @cached_property
    def ledger(self) -> Ledger:
        """The production record."""
        from aifactory.ledger import Ledger

        return Ledger(self.settings.ledger_dsn.get_secret_value(), pooled=self._pooled)

    def datasets(self, line: LineSpec) -> DatasetRepository:
        """The dataset versions of a line."""
        from aifactory.datasets import DatasetRepository

        return DatasetRepository(self.settings, line.line, self.store)

    def registry(self, line: LineSpec) -> Registry:
        """The model versions of a line."""
        from aifactory.registry import Registry

        return Registry(self.settings, line.line, self.store)


def open_factory(*, pooled: bool = False) -> Factory:
    """The factory that the environment describes; `pooled` as of `Factory`."""
    return Factory(load_settings(), pooled=pooled)
