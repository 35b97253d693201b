"""The exceptions of the factory, one tree.

    FactoryError                 carries a reason code
    ├── Defect                   bad data, bad model, bad code: never retried
    │   ├── SpecError            a line's specification is not valid
    │   ├── LandingDefect        the landed raw material cannot be used
    │   ├── GateRefused          a quality gate said no
    │   ├── DatasetDefect        a dataset version cannot be made or read as asked
    │   ├── TrainingDefect       the training program failed by its own fault
    │   ├── PackageDefect        a model package is incomplete, altered or wrong
    │   └── ReleaseDefect        a version cannot be promoted or rolled back as asked
    └── InfrastructureFault      store unreachable, process killed: retried with backoff
        ├── NotFound             the store has no such object (callers turn it into a defect where it is one)
        └── AnswerLate           a server is there and has not answered in time

`Waiting` is no error: it says that work has not begun, and when to ask again.

Messages say what failed, with which value, and what to do.
"""

from __future__ import annotations

from datetime import datetime

from aifactory.reasons import ReasonCode


class FactoryError(Exception):
    """Base of every error that the factory raises on purpose.

    Args:
        reason: the code that the ledger, the task log and the UI carry.
        message: what failed, with the value, and what to do about it.
    """

    def __init__(self, reason: ReasonCode, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(reason, message)  # both in args, so that the error survives pickling between processes

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.message}"


class Defect(FactoryError):
    """Bad data, bad model or bad code: trying again would give the same."""


class SpecError(Defect):
    """A line's specification is not valid."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.SPEC_INVALID, message)
        self.args = (message,)


class LandingDefect(Defect):
    """The landed raw material cannot be used."""


class GateRefused(Defect):
    """A quality gate said no."""


class DatasetDefect(Defect):
    """A dataset version cannot be made or read as asked."""


class TrainingDefect(Defect):
    """The training program failed by its own fault."""


class PackageDefect(Defect):
    """A model package is incomplete, altered or wrong."""


class ReleaseDefect(Defect):
    """A version cannot be promoted or rolled back as asked."""


class InfrastructureFault(FactoryError):
    """The world around the work failed: trying again later may succeed."""


class NotFound(InfrastructureFault):
    """The store has no such object."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.STORE_UNREACHABLE, message)
        self.args = (message,)


class AnswerLate(InfrastructureFault):
    """A server is there and has not answered in time: it is slow, or hangs."""


class Waiting(Exception):
    """Work has its turn later; nothing of it was begun.

    Args:
        until: when to ask again.
        why: what it waits for.
    """

    def __init__(self, until: datetime, why: str) -> None:
        self.until = until
        self.why = why
        super().__init__(until, why)

    def __str__(self) -> str:
        return f"{self.why}; asked again at {self.until:%Y-%m-%d %H:%M} UTC"
