"""What Triton's Python stub loads: one instance of it serves one version of one line, in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import select
import threading
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton

from aifactory.serving.backend import REQUEST_ID_HEADER, SHADOW_HEADER, open_log
from aifactory.serving.backend.scorer import OUTPUT, InputError, Scorer

_THREADS = "intra_op_thread_count"  # the parameter's name in the full Triton image, too


class TritonPythonModel:
    """The interface that Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the version; whatever this raises is the reason that Triton gives for refusing the load."""
        _end_with_parent()
        config = json.loads(args["model_config"])
        threads = int(config["parameters"][_THREADS]["string_value"])
        self._scorer = Scorer(Path(args["model_repository"]) / args["model_version"], threads)
        self._names = [tensor["name"] for tensor in config["input"]]
        self._log = open_log(self._scorer.identity)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: a collection between two requests need not go through it

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself: one that is wrong fails alone."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Write out what is still to be logged."""
        if self._log is not None:
            self._log.close()

    def _answer(self, request: Any) -> Any:
        try:
            request_id, units, shadow = _about(request)
            tensors = {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self._names}
            inputs = self._scorer.inputs(tensors)
            scores = self._scorer.score(inputs)
        except InputError as error:
            return _refusal(str(error), triton.TritonError.INVALID_ARG)
        except Exception as error:  # whatever one request brings, the others are served
            return _refusal(f"the model could not score the request: {error}", triton.TritonError.INTERNAL)
        if self._log is not None:
            self._log.record(request_id, units, inputs, scores, shadow)
        return triton.InferenceResponse(output_tensors=[triton.Tensor(OUTPUT, scores)])


def _about(request: Any) -> tuple[str, Any, bool]:
    """Id of a request, who is scored, and whether its answer goes to nobody.

    Raises:
        InputError: the id is no UTF-8.
    """
    try:
        parameters = {k.lower(): v for k, v in json.loads(request.parameters() or "{}").items()}
        request_id = request.request_id() or str(parameters.get(REQUEST_ID_HEADER, ""))
    except UnicodeDecodeError as error:
        raise InputError(f"the id or a parameter of the request is no UTF-8: {error}") from error
    return request_id, parameters.get("units"), SHADOW_HEADER in parameters


def _refusal(message: str, code: int) -> Any:
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(message, code))


def _end_with_parent() -> None:
    """End this process as soon as the server has: a stub whose server was killed would stay for ever."""
    parent = os.getppid()
    server = os.pidfd_open(parent)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        select.select([server], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
