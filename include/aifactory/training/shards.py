"""Checkpoints of several processes, by torch's distributed checkpoint (DCP): each writes and reads its own part.

    <prefix>.checkpoints/<step>-<rank>-<hash>.safetensors    a process's parts of tensors, `<name>@<offsets>`
    <prefix>.checkpoints/<step>.json                         the note, written when all of them are there:
        {"step", "at", "metadata", "shards": {object: {"sha256", "size"}},
         "tensors": {name: {"dtype", "size", "chunks": [{"offsets", "sizes", "object"}]}}}

DCP's own metadata is a pickle; the note says the same in JSON, so nothing here can run what somebody put there. DCP
reads a checkpoint for any number of processes, also one that one process wrote, and one process reads these.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.reasons import ReasonCode
from aifactory.store import Store
from aifactory.training.checkpoints import LAST_WRITE_S, StoreCheckpoints, checked
from aifactory.training.stop import StopSignal

log = logging.getLogger(__name__)

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
"""Types of tensors, as safetensors names them."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter(StorageWriter):  # type: ignore[misc]
    """What DCP calls to write this process's part; the first process writes the note, last of all.

    Args:
        store: the factory's bucket.
        folder: of the training's checkpoints, with a slash at its end.
        step: steps that are done.
        metadata: what the recipe says of the checkpoint.
    """

    def __init__(self, store: Store, folder: str, step: int, metadata: Mapping[str, str]) -> None:
        self._store = store
        self._folder = folder
        self._step = step
        self._about = metadata

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The store is open already."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """As DCP plans it."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """As DCP plans it, each with its rank."""
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Put this process's parts into one object."""
        parts = {}
        for item in plan.items:
            if item.tensor_data is None:
                raise ValueError(f"{item.index.fqn} is no tensor; a checkpoint of several processes has tensors alone")
            parts[item.index] = planner.resolve_data(item).detach().cpu().contiguous()
        content = save_tensors({_part(index.fqn, index.offset): part for index, part in parts.items()})
        digest = hashlib.sha256(content).hexdigest()
        name = f"{self._step:010d}-{plan.storage_data}-{digest[:16]}.safetensors"
        self._store.put(f"{self._folder}{name}", content)
        shard = {"object": name, "sha256": digest, "size": len(content)}
        done: Any = torch.futures.Future()
        done.set_result(
            [
                WriteResult(index, part.nbytes, {"shard": shard, "sizes": list(part.shape)})
                for index, part in parts.items()
            ]
        )
        return done

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """Write the note: the checkpoint is whole from now on."""
        tensors: dict[str, Any] = {
            name: {"dtype": _NAMES[t.properties.dtype], "size": list(t.size), "chunks": []}
            for name, t in metadata.state_dict_metadata.items()
        }
        shards = {}
        for written in (one for of_rank in results for one in of_rank):
            shard = written.storage_data["shard"]
            shards[shard["object"]] = {"sha256": shard["sha256"], "size": shard["size"]}
            offsets = list(written.index.offset or [])
            chunk = {"offsets": offsets, "sizes": written.storage_data["sizes"], "object": shard["object"]}
            tensors[written.index.fqn]["chunks"].append(chunk)
        note = {
            "step": self._step,
            "at": datetime.now(UTC).isoformat(),
            "metadata": dict(self._about),
            "shards": shards,
            "tensors": tensors,
        }
        self._store.put_json(f"{self._folder}{self._step:010d}.json", note)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never found by a path."""
        return False


@dataclass
class Kept(StorageReader):  # type: ignore[misc]
    """A checkpoint that is whole, and what DCP calls to read this process's part of it.

    Attributes:
        step: steps that were done.
        metadata: what the recipe said of it.
        tensors: what the note says of each tensor.
    """

    store: Store
    folder: str
    step: int
    metadata: dict[str, str]
    shards: dict[str, dict[str, Any]]
    tensors: dict[str, dict[str, Any]]
    _read: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, folder: str, note: Mapping[str, Any]) -> Kept:
        """What a note tells, of one process or several.

        Raises:
            ValueError, KeyError, TypeError: it is no whole note, or what it names is not whole.
            InfrastructureFault: the store did not answer; NotFound: content is gone.
        """
        if "shards" in note:
            kept = cls(store, folder, int(note["step"]), note["metadata"], note["shards"], note["tensors"])
        else:
            kept = cls(store, folder, int(note["step"]), {}, {note["object"]: dict(note)}, {})
            kept.metadata, kept.tensors = _header(kept.content(note["object"]), note["object"])
        unknown = {t["dtype"] for t in kept.tensors.values()} - set(DTYPES)
        if unknown:
            raise ValueError(f"it has tensors of the types {sorted(unknown)}, which are unknown here")
        for name, t in kept.tensors.items():
            if sum(math.prod(chunk["sizes"]) for chunk in t["chunks"]) != math.prod(t["size"]):
                raise ValueError(f"its parts are not the whole of {name}")
        return kept

    def content(self, name: str) -> bytes:
        """An object of it, read once."""
        if name not in self._read:
            self._read[name] = checked(self.shards[name], self.store.get(f"{self.folder}{name}"))
        return self._read[name]

    def load(self, tensors: dict[str, Any], group: Any) -> None:
        """Read into tensors that are there; each process what it has of them.

        Raises:
            InfrastructureFault: it could not be read after all.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            dcp.load(tensors, storage_reader=self, planner=planner, process_group=group)
        except CheckpointException as error:
            raise _fault(f"the checkpoint after step {self.step} was whole and cannot be read", error) from error
        finally:
            self._read.clear()

    def assembled(self) -> bytes:
        """The same as one process would have written it."""
        whole = {name: torch.empty(t["size"], dtype=DTYPES[t["dtype"]]) for name, t in self.tensors.items()}
        for name, tensor in whole.items():
            for chunk in self.tensors[name]["chunks"]:
                part = self._parts(chunk["object"])[_part(name, chunk["offsets"])]
                tensor[_slices(chunk["offsets"], chunk["sizes"])] = part
        return bytes(save_tensors(whole, metadata=self.metadata))

    def reset(self, checkpoint_id: Any = None) -> None:
        """What it is does not change."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """The note as DCP knows it."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=DTYPES[t["dtype"]]),
                    torch.Size(t["size"]),
                    [ChunkStorageMetadata(torch.Size(c["offsets"]), torch.Size(c["sizes"])) for c in t["chunks"]],
                )
                for name, t in self.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The store is open already."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """As DCP plans it."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """As DCP plans it."""
        return plans

    def read_data(self, plan: Any, planner: Any) -> Any:
        """Copy what this process needs into its tensors."""
        places = {
            _part(name, chunk["offsets"]): chunk["object"] for name, t in self.tensors.items() for chunk in t["chunks"]
        }
        opened: dict[str, dict[str, Any]] = {}
        for item in plan.items:
            key = _part(item.storage_index.fqn, item.storage_index.offset)
            name = places[key]
            if name not in opened:
                opened[name] = self._parts(name)
            part = opened[name][key][_slices(item.storage_offsets, item.lengths)]
            planner.resolve_tensor(item).detach().copy_(part)
        done: Any = torch.futures.Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Never found by a path."""
        return False

    def _parts(self, name: str) -> dict[str, Any]:
        """The parts of tensors in an object; one process writes tensors whole, under their plain names."""
        parts = load_tensors(self.content(name))
        return {key if "@" in key else _part(key, [0] * part.dim()): part for key, part in parts.items()}


class ShardedCheckpoints(StoreCheckpoints):
    """The checkpoints of a training of several processes; every one of them has this, and calls it at the same step.

    Args:
        store: the factory's bucket.
        prefix: of the order and phase, without a slash at its end.
        stop: who says that the training is to stop.
    """

    def __init__(self, store: Store, prefix: str, stop: StopSignal) -> None:
        super().__init__(store, prefix, stop)
        self._rank = dist.get_rank()
        self._group = dist.new_group(backend="gloo")  # of the writers alone: the loop goes on beside them

    def due(self, step: int, every: int) -> bool:
        """Whether it is time for a checkpoint, and the one before is written: none is skipped by a process alone."""
        return self.flush(0) and super().due(step, every)

    def save_shards(
        self, step: int, tensors: Mapping[str, Any], metadata: Mapping[str, str], snapshot_s: float = 0.0
    ) -> None:
        """Write a checkpoint from another thread.

        Args:
            step: steps that are done.
            tensors: a copy of what is to be kept, by name; a process's own part where it is shared out.
            metadata: what the recipe says of the checkpoint.
            snapshot_s: seconds that the loop stood still for the copy.
        """
        self.flush(LAST_WRITE_S)
        self.write_beside(step, lambda: self._write_shards(step, tensors, metadata), snapshot_s)

    def sharded(self) -> Iterator[Kept]:
        """Every checkpoint that all processes find whole, newest first.

        Raises:
            InfrastructureFault: the store did not answer one of them, and what could be read was of no use.
        """
        lost = ""
        for note in self._notes():
            kept, wrong = self._open(note)
            wrongs: list[tuple[str, bool]] = [("", False)] * dist.get_world_size()
            dist.all_gather_object(wrongs, wrong, group=self._group)
            if kept is None or any(text for text, _ in wrongs):
                texts = [text for text, _ in wrongs if text]
                log.warning("checkpoint %s%s is passed over: %s", self._folder, note.get("step"), texts[0])
                lost = next((text for text, away in wrongs if away), lost)
                continue
            self._saved_step = kept.step
            yield kept
        self._saved_step = 0
        if lost:
            raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, lost)

    def load(self, kept: Kept, tensors: dict[str, Any]) -> None:
        """Read this process's part of a checkpoint into tensors that are there."""
        kept.load(tensors, self._group)

    def _notes(self) -> list[dict[str, Any]]:
        """The notes as the first process finds them, newest first: all must see the same."""
        box: list[Any] = [self._found() if self._rank == 0 else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        if isinstance(box[0], InfrastructureFault):
            raise box[0]
        notes: list[dict[str, Any]] = box[0]
        return notes

    def _found(self) -> list[dict[str, Any]] | InfrastructureFault:
        notes = []
        try:
            for key in self.note_keys():
                try:
                    notes.append(dict(self._store.get_json(key)))
                except (ValueError, TypeError, NotFound) as error:
                    log.warning("checkpoint %s is passed over: %s", self._store.uri(key), error)
        except InfrastructureFault as error:
            return error
        return notes

    def _open(self, note: Mapping[str, Any]) -> tuple[Kept | None, tuple[str, bool]]:
        """A checkpoint, this process's share of whose objects is whole; else why not, and whether the store is why."""
        try:
            kept = Kept.of(self._store, self._folder, note)
            for name in sorted(kept.shards)[self._rank :: dist.get_world_size()]:
                kept.content(name)
        except InfrastructureFault as error:
            return None, (str(error), not isinstance(error, NotFound))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return None, (f"{type(error).__name__}: {error}", False)
        return kept, ("", False)

    def _write_shards(self, step: int, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        writer = ShardWriter(self._store, self._folder, step, metadata)
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=self._group)
        except CheckpointException as error:  # no Exception: it must not end the thread
            raise _fault(f"the checkpoint after step {step} was not written by all", error) from error
        if self._rank == 0:
            log.info("checkpoint after step %d: by %d processes", step, dist.get_world_size())
            self.remove_old(step)


def _header(content: bytes, name: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Metadata and tensors of an object that one process wrote: 8 bytes length, JSON header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.pop("__metadata__", {})
    tensors = {
        key: {
            "dtype": t["dtype"],
            "size": t["shape"],
            "chunks": [{"offsets": [0] * len(t["shape"]), "sizes": t["shape"], "object": name}],
        }
        for key, t in header.items()
    }
    return metadata, tensors


def _part(name: str, offsets: Any) -> str:
    """Name of a part of a tensor; `@` is in no name of a parameter."""
    return f"{name}@{','.join(str(n) for n in offsets or [])}"


def _slices(offsets: Any, sizes: Any) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))


def _fault(what: str, error: CheckpointException) -> InfrastructureFault:
    causes = "; ".join(f"process {rank}: {failure[0]}" for rank, failure in error.failures.items())
    return InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"{what} ({causes})")
