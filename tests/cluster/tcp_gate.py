"""The way to the API server, which a test can close: the API is away, and the cluster does not notice."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Gate:
    """Passes connections from a port of loopback on to an address, until it is closed."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open = True
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Cut every connection, and take no more."""
        self._open = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def open(self) -> None:
        """Let connections through again."""
        self._open = True

    def _serve(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            if not self._open:
                caller.close()
                continue
            try:
                inside = socket.create_connection(self._target, timeout=10)
            except OSError:
                caller.close()
                continue
            inside.settimeout(None)
            self._ends += [caller, inside]
            for source, sink in ((caller, inside), (inside, caller)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def gated(kubeconfig: Path, own: Path) -> tuple[Gate, Path]:
    """A kubeconfig whose way to the API server leads through a gate."""
    config = yaml.safe_load(kubeconfig.read_text())
    named = {c["name"]: c["context"]["cluster"] for c in config["contexts"]}
    [found] = [c["cluster"] for c in config["clusters"] if c["name"] == named[config["current-context"]]]
    address = urlsplit(found["server"])
    gate = Gate(str(address.hostname), address.port or 443)
    found |= {"server": f"https://127.0.0.1:{gate.port}", "tls-server-name": address.hostname}
    own.write_text(yaml.safe_dump(config))
    return gate, own
