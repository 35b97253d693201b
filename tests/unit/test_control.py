"""What the controller must not do where it does not know what is wanted."""

from __future__ import annotations

from typing import Any

from aifactory.errors import InfrastructureFault
from aifactory.reasons import ReasonCode
from aifactory.serving.control import Controller
from aifactory.serving.gateway import LineRoute


class AwayStore:
    """A store that does not answer."""

    def get_with_etag(self, key: str) -> Any:
        raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"{key} cannot be read")


class Written:
    """Keeps the routes that it is asked for."""

    def __init__(self) -> None:
        self.lines: list[tuple[LineRoute, ...]] = []

    def ensure(self, lines: tuple[LineRoute, ...]) -> bool:
        self.lines.append(lines)
        return True


def test_a_controller_that_starts_while_the_store_is_away_leaves_the_routes_alone() -> None:
    gateway = Written()
    controller = Controller(AwayStore(), {}, gateway, lambda line, version: ({}, {}))  # type: ignore[arg-type]
    controller.turn(["small_line"])
    assert gateway.lines == [], "routes without a line take it away from its callers"
