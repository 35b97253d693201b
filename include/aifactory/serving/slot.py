"""One model server, as the plant speaks to it: loads and unloads lines, asks the golden rows. By gRPC alone.

Loading by HTTP would hold up the requests that the server answers meanwhile, for seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from aifactory.errors import AnswerLate, InfrastructureFault, PackageDefect
from aifactory.packaging import OUTPUT, check_golden, feeds
from aifactory.reasons import ReasonCode
from aifactory.serving.backend import SHADOW_HEADER

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_LATE = "StatusCode.DEADLINE_EXCEEDED"
_AWAY = ("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED")
_DEAD = "is not healthy"  # what Triton says, with INTERNAL, of a model whose process died
_LOOK_S = 0.02  # between two looks at whether a line is gone


class Slot:
    """A model server.

    Args:
        name: of the slot, for messages.
        address: host:port of its gRPC.
        timeout_s: longest wait for an answer, s.
        load_timeout_s: longest wait for a line to be loaded or unloaded, s.
        first_timeout_s: longest wait for the first answers of a version, which warm it up, s.
    """

    def __init__(
        self, name: str, address: str, *, timeout_s: float = 5, load_timeout_s: float = 60, first_timeout_s: float = 30
    ) -> None:
        import tritonclient.grpc as triton

        self.name = name
        self.address = address
        self._timeout_s = timeout_s
        self._load_timeout_s = load_timeout_s
        self._first_timeout_s = first_timeout_s
        self._client = triton.InferenceServerClient(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._client.close()

    def ready(self) -> bool:
        """Whether the server answers and takes requests."""
        try:
            with self._asking("whether it is ready"):
                return bool(self._client.is_server_ready(client_timeout=self._timeout_s))
        except InfrastructureFault:
            return False

    def load(self, line: str) -> None:
        """Make the server serve what its repository holds of a line; what it serves already goes on meanwhile.

        Raises:
            PackageDefect: the server refuses a version; it goes on with those that it had.
            InfrastructureFault: the server does not answer.
        """
        with self._asking(f"to load {line}"):
            self._client.load_model(line, client_timeout=self._load_timeout_s)

    def unload(self, line: str) -> None:
        """Make the server stop serving a line, after the requests that it has begun; returns when it has.

        Raises:
            InfrastructureFault: the server does not answer, or does not stop in time.
        """
        with self._asking(f"to unload {line}"):
            self._client.unload_model(line, client_timeout=self._timeout_s)
        deadline = time.monotonic() + self._load_timeout_s
        while any(entry.name == line and entry.state not in ("", "UNAVAILABLE") for entry in self._index()):
            if time.monotonic() > deadline:
                raise self._fault(f"to unload {line}", f"it still does after {self._load_timeout_s:g} s")
            time.sleep(_LOOK_S)

    def loaded(self) -> dict[str, list[str]]:
        """Versions that are served now, by line, oldest first.

        Raises:
            InfrastructureFault: the server does not answer.
        """
        found: dict[str, list[str]] = {}
        for entry in self._index():
            if entry.state == "READY":
                found.setdefault(entry.name, []).append(entry.version)
        return {line: sorted(versions, key=int) for line, versions in found.items()}

    def check_golden(self, line: str, version: str, manifest: Mapping[str, Any], *, first: bool = False) -> None:
        """Ask a version the golden rows of its manifest.

        The prediction log takes them for mirrored traffic: nobody was given these scores.

        Args:
            line: the line.
            version: of it.
            manifest: of the version.
            first: whether it has answered nothing yet, and may take longer.

        Raises:
            AnswerLate: it does not answer in time.
            PackageDefect: it does not give the trained model's outputs, or does not take the rows.
            InfrastructureFault: the server does not answer, does not serve the version, or the version's process died,
                which Triton goes on calling ready: `ModelRepository.renew` and `load` start another.
        """
        features = manifest["features"]

        def predict(table: pa.Table) -> npt.NDArray[np.float32]:
            limit_s = self._first_timeout_s if first else self._timeout_s
            return self._infer(line, version, feeds(table, features["categorical"], features["numeric"]), limit_s)

        check_golden(manifest, predict, f"{line} version {version} in slot {self.name}")

    def _infer(
        self, line: str, version: str, inputs: Mapping[str, npt.NDArray[Any]], timeout_s: float
    ) -> npt.NDArray[np.float32]:
        import tritonclient.grpc as triton

        tensors = []
        for name, values in inputs.items():
            tensor = triton.InferInput(name, list(values.shape), "BYTES" if values.dtype == object else "FP32")
            tensors.append(tensor.set_data_from_numpy(values))
        with self._asking(f"to score with {line} version {version}"):
            answer = self._client.infer(
                line,
                tensors,
                model_version=version,
                request_id=f"golden-{line}-{version}",
                headers={SHADOW_HEADER: "1"},
                client_timeout=timeout_s,
            )
        scores: npt.NDArray[np.float32] | None = answer.as_numpy(OUTPUT)
        if scores is None:
            raise PackageDefect(ReasonCode.PACKAGE_INVALID, f"{line} version {version} gives no output {OUTPUT!r}")
        return scores

    def _index(self) -> list[Any]:
        with self._asking("what it serves"):
            return list(self._client.get_model_repository_index(client_timeout=self._timeout_s).models)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            if error.status() == _LATE:
                raise AnswerLate(*self._fault(what, error.message()).args) from error
            if error.status() in _AWAY or _DEAD in error.message():
                raise self._fault(what, error.message()) from error
            raise PackageDefect(
                ReasonCode.PACKAGE_INVALID,
                f"the model server of slot {self.name} was asked {what} and refused: {error.message()}",
            ) from error

    def _fault(self, what: str, why: str) -> InfrastructureFault:
        return InfrastructureFault(
            ReasonCode.SERVER_UNREACHABLE,
            f"the model server of slot {self.name} ({self.address}) was asked {what} and cannot now: {why}",
        )
