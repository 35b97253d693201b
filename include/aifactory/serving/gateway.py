"""The gateway's configuration: typed routes and limits in, the files of Envoy out.

Envoy is the one public port of serving, REST and gRPC. It is started once with a bootstrap file and watches three
others, which are written whole and moved into place: listeners (limits, keys), clusters (where the slots are) and
routes (who serves what). Each carries the same generation, which `GatewayAdmin.live` reads back.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aifactory.serving import envoy

Slot = Literal["a", "b"]

BOOTSTRAP = "bootstrap.json"


@dataclass(frozen=True)
class Ports:
    """Where one model server listens."""

    http: int
    grpc: int


@dataclass(frozen=True)
class Slots:
    """The two model servers."""

    a: Ports
    b: Ports
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class LineRoute:
    """Who serves one line.

    Args:
        line: name of the line, which is the name of its model.
        champion: the slot that has its champion; the other has the challenger, if there is one.
        challenger_percent: share of the requests that the challenger answers.
        mirror_percent: share of the requests that the challenger gets a copy of, its answers thrown away.
        fallback: whether the other slot may answer where the champion's cannot: it has a model that was proved.

    Raises:
        ValueError: a value is outside its range, or both shares are above 0: a copy to the challenger of what the
            challenger has answered would count twice.
    """

    line: str
    champion: Slot
    challenger_percent: int = 0
    mirror_percent: int = 0
    fallback: bool = False

    def __post_init__(self) -> None:
        if not self.line.replace("_", "").replace("-", "").isalnum() or not self.line.isascii():
            raise ValueError(f"line {self.line!r} is no name of a line: letters, digits, _ and - alone")
        if self.champion not in ("a", "b"):
            raise ValueError(f"champion of {self.line} is {self.champion!r}: a or b")
        for name in ("challenger_percent", "mirror_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} of {self.line} is {getattr(self, name)}: 0 to 100")
        if self.challenger_percent and self.mirror_percent:
            raise ValueError(
                f"{self.line} has challenger_percent {self.challenger_percent} and mirror_percent "
                f"{self.mirror_percent}: one of them is 0"
            )

    @property
    def challenger(self) -> Slot:
        """The other slot."""
        return "b" if self.champion == "a" else "a"


@dataclass(frozen=True)
class Limits:
    """What callers may ask of the gateway.

    Args:
        max_request_bytes: of a request's body; of all messages of a stream together.
        max_header_kb: of all headers of a request together, kB.
        requests_per_s: of all callers together, health included.
        burst: requests that may come at once after a pause.
        max_connections: of all callers together.
        max_in_flight: requests that one slot works on for one line; more are answered 503.
        timeout_s: until a request is answered, retries included.
        try_timeout_s: until a slot has answered; then the request is tried again, where another may answer there.
    """

    max_request_bytes: int = 4 * 1024 * 1024
    max_header_kb: int = 16
    requests_per_s: int = 2000
    burst: int = 4000
    max_connections: int = 1000
    max_in_flight: int = 512
    timeout_s: float = 10.0
    try_timeout_s: float = 4.0

    def __post_init__(self) -> None:
        low = [name for name, value in vars(self).items() if value <= 0]
        if low:
            raise ValueError(f"limits must be above 0: {', '.join(low)}")


@dataclass(frozen=True)
class Gateway:
    """All that the gateway does.

    Args:
        port: the public one.
        slots: the model servers.
        lines: who serves each line.
        limits: what callers may ask.
        keys: name of a client → its key; where there are any, callers must send one as `x-api-key` or as a bearer
            token, but for health.
        host: address that the public port is bound to.
    """

    port: int
    slots: Slots
    lines: tuple[LineRoute, ...] = ()
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        names = [route.line for route in self.lines]
        if len(set(names)) != len(names):
            raise ValueError(f"a line has more than one route: {sorted(names)}")
        if len(set(self.keys.values())) != len(self.keys) or not all(self.keys.values()):
            raise ValueError("API keys must be different from each other and not empty")


def write_bootstrap(folder: Path, admin_socket: Path) -> Path:
    """Write what Envoy is started with, and return its path.

    Args:
        folder: where the other files are, or will be.
        admin_socket: where Envoy's admin interface listens; only its owner may connect.
    """
    path = folder / BOOTSTRAP
    _write(path, envoy.bootstrap(folder, admin_socket))
    return path


def write_files(folder: Path, gateway: Gateway, generation: int, *, door_only: bool = False) -> None:
    """Write what Envoy watches; it changes to it within milliseconds, without losing a request.

    Clusters come first, because routes name them. Files are of mode 0600: keys are in them.

    Args:
        folder: of the files.
        gateway: what they are to say.
        generation: their version.
        door_only: the public port alone, with its limits and keys; routes and clusters stay what they are.
    """
    for name, resources in envoy.resources(gateway, folder).items():
        if name == envoy.LISTENERS or not door_only:
            _write(folder / name, {"version_info": str(generation), "resources": resources})


def _write(path: Path, content: object) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
