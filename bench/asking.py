"""A light load generator for a model server: one row, asked over and over, half by REST and half by gRPC.

It shares two cores with what it measures, so it is one thread that sends requests made beforehand over plain sockets
and of an answer reads its end and its score alone: some 50 us of CPU a request.
Requests are those of `tritonclient`: binary tensors by REST, raw contents by gRPC, `units` for the prediction log.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

PROTOCOLS = ("rest", "grpc")
UNITS = '{"carrier":["UA"],"flight":[1545],"origin":["EWR"],"prediction_time":["2013-01-01T10:15:00+00:00"]}'
_TIMEOUT_S = 10.0
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8  # HTTP/2 frames
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1


class WrongAnswer(Exception):
    """What came is not the answer; whatever is measured so is worth nothing."""


@dataclass(frozen=True)
class Row:
    """One row that is asked for, and the scores that are right, one of each version."""

    line: str
    values: Mapping[str, bytes | float]
    scores: tuple[float, ...]

    def check(self, answer: bytes | bytearray) -> None:
        """Look at the score, the last four bytes of an answer by either protocol."""
        (score,) = struct.unpack("<f", answer[-4:]) if len(answer) >= 4 else (float("nan"),)
        if not any(abs(score - right) < 1e-5 for right in self.scores):
            raise WrongAnswer(f"not one of {self.scores}: {bytes(answer[-300:])!r}")


@dataclass
class Told:
    """What a run of the generator saw: seconds of each answer by protocol, and what it cost."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PROTOCOLS})
    lasted_s: float = 0.0
    own_cpu_s: float = 0.0

    @property
    def all(self) -> npt.NDArray[np.float64]:
        """Seconds of every answer."""
        return np.concatenate([self.seconds[name] for name in PROTOCOLS])

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.all) / self.lasted_s

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latency, ms."""
        return float(np.quantile(self.all, share)) * 1000

    @property
    def cost_us(self) -> float:
        """The generator's own CPU a request, us."""
        return self.own_cpu_s / len(self.all) * 1e6


class Connection(ABC):
    """A connection that asks for a row, one request at a time."""

    protocol: ClassVar[str]

    def __init__(self, address: str, row: Row) -> None:
        self._row = row
        self._socket = _connect(address)
        self._buffer = bytearray()
        self.due = 0.0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @abstractmethod
    def send(self, due: float) -> None:
        """Ask; `due` is when that was to be."""

    @abstractmethod
    def answered(self) -> bool:
        """Read what is there: whether the answer is whole now."""


class Rest(Connection):
    """By REST."""

    protocol = "rest"

    def __init__(self, address: str, row: Row) -> None:
        super().__init__(address, row)
        self._request = _rest_request(address, row)

    def send(self, due: float) -> None:
        self.due = due
        self._socket.sendall(self._request)

    def answered(self) -> bool:
        self._buffer += _received(self._socket)
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return False
        text = self._buffer[:head].lower()
        length = int(text.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        if len(self._buffer) < head + 4 + length:
            return False
        if not text.startswith(b"http/1.1 200"):
            raise WrongAnswer(bytes(self._buffer).decode(errors="replace"))
        self._row.check(self._buffer)
        self._buffer.clear()
        return True


class Grpc(Connection):
    """By gRPC."""

    protocol = "grpc"

    def __init__(self, address: str, row: Row) -> None:
        super().__init__(address, row)
        self._headers, self._message = _grpc_request(address, row)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0) + _frame(_WINDOW, 0, 0, b"\x70\0\0\0")
        )
        self._stream = -1
        self._answer = b""

    def send(self, due: float) -> None:
        self.due = due
        self._stream += 2
        self._answer = b""
        self._socket.sendall(
            _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
            + _frame(_DATA, _END_STREAM, self._stream, self._message)
        )

    def answered(self) -> bool:
        self._buffer += _received(self._socket)
        buffer, at, whole = self._buffer, 0, False
        while len(buffer) - at >= 9:
            size, kind, flags = int.from_bytes(buffer[at : at + 3]), buffer[at + 3], buffer[at + 4]
            if len(buffer) - at < 9 + size:
                break
            body = bytes(buffer[at + 9 : at + 9 + size])
            at += 9 + size
            if kind == _DATA:
                self._answer += body
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
                self._row.check(self._answer)
                whole = True
            elif kind in (_RESET, _GOAWAY):
                raise WrongAnswer(f"HTTP/2 frame {kind}: {body!r}")
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, body if kind == _PING else b""))
        del buffer[:at]
        return whole


@contextmanager
def connected(rest: str, grpc: str, row: Row, each: int) -> Iterator[list[Connection]]:
    """Connections of both protocols.

    Args:
        rest: host:port of REST.
        grpc: host:port of gRPC.
        row: what is asked.
        each: connections of each protocol.
    """
    with ExitStack() as stack:
        found: list[Connection] = [
            kind(address, row) for kind, address in ((Rest, rest), (Grpc, grpc)) for _ in range(each)
        ]
        for connection in found:
            stack.callback(connection.close)
        yield found


def saturate(connections: Sequence[Connection], lasts_s: float) -> Told:
    """Closed loop: every connection asks again as soon as it is answered."""
    told, cpu = Told(), time.thread_time()
    began = now = time.perf_counter()
    for connection in connections:
        connection.send(now)
    busy = set(connections)
    while busy:
        for connection in _ready(busy, _TIMEOUT_S):
            if connection.answered():
                now = time.perf_counter()
                told.seconds[connection.protocol].append(now - connection.due)
                if now - began < lasts_s:
                    connection.send(now)
                else:
                    busy.remove(connection)
    told.lasted_s, told.own_cpu_s = now - began, time.thread_time() - cpu
    return told


def pace(
    connections: Sequence[Connection], rate: float, lasts_s: float, seed: int, ended: Callable[[], bool] | None = None
) -> Told:
    """Open loop: requests leave when they are due, at random (Poisson), the protocols by turns.

    An answer's time counts from when its request was due, even if all connections of the protocol were busy then.

    Args:
        connections: of both protocols.
        rate: requests a second.
        lasts_s: how long requests are due.
        seed: of when they are.
        ended: ends it earlier.
    """
    chance = random.Random(seed)
    told, cpu = Told(), time.thread_time()
    idle = {name: [c for c in connections if c.protocol == name] for name in PROTOCOLS}
    waiting: dict[str, deque[float]] = {name: deque() for name in PROTOCOLS}
    busy: set[Connection] = set()
    began = now = time.perf_counter()
    due, turn, sending = began + chance.expovariate(rate), 0, True
    while sending or busy:
        while sending and due <= now:
            waiting[PROTOCOLS[turn]].append(due)
            due, turn = due + chance.expovariate(rate), 1 - turn
            sending = due - began < lasts_s and not (ended and ended())
        for name in PROTOCOLS:
            while waiting[name] and idle[name]:
                connection = idle[name].pop()
                connection.send(waiting[name].popleft())
                busy.add(connection)
        for connection in _ready(
            busy, max(0.0, due - time.perf_counter()) if sending else _TIMEOUT_S, idle_too=sending
        ):
            if connection.answered():
                told.seconds[connection.protocol].append(time.perf_counter() - connection.due)
                busy.remove(connection)
                idle[connection.protocol].append(connection)
        now = time.perf_counter()
    told.lasted_s, told.own_cpu_s = now - began, time.thread_time() - cpu
    return told


def _ready(busy: set[Connection], timeout_s: float, *, idle_too: bool = False) -> list[Connection]:
    """Connections with something to read; `select` and not `epoll`, whose timeouts are whole milliseconds."""
    found, _, _ = select.select(busy, (), (), timeout_s)
    if not found and not idle_too:
        raise WrongAnswer(f"{len(busy)} requests have no answer after {timeout_s:g} s")
    return found


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    found = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


def _received(connection: socket.socket) -> bytes:
    found = connection.recv(65536)
    if not found:
        raise WrongAnswer("the server closed the connection")
    return found


def _rest_request(address: str, row: Row) -> bytes:
    from tritonclient.http import InferenceServerClient, InferInput

    inputs = []
    for name, value in row.values.items():
        text = isinstance(value, bytes)
        tensor = InferInput(name, [1, 1], "BYTES" if text else "FP32")
        inputs.append(tensor.set_data_from_numpy(np.array([[value]], dtype=object if text else np.float32)))
    body, size = InferenceServerClient.generate_request_body(inputs, parameters={"units": UNITS})
    head = [
        f"POST /v2/models/{row.line}/infer HTTP/1.1",
        f"Host: {address}",
        f"Inference-Header-Content-Length: {size}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _grpc_request(address: str, row: Row) -> tuple[bytes, bytes]:
    """Headers, as HPACK writes them without its table or Huffman's code, and the message with its length."""
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelInferRequest(model_name=row.line)
    message.parameters["units"].string_param = UNITS
    for name, value in row.values.items():
        text = isinstance(value, bytes)
        message.inputs.add(name=name, datatype="BYTES" if text else "FP32", shape=[1, 1])
        message.raw_input_contents.append(
            struct.pack("<I", len(value)) + value if isinstance(value, bytes) else struct.pack("<f", value)
        )
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": address,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    packed = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    body = message.SerializeToString()
    return packed, b"\0" + struct.pack(">I", len(body)) + body


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body
