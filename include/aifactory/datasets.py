"""Dataset versions: git commits whose DVC-tracked content is in S3.

A version is written in the order data → manifest → commit → push, so that a crash between any two steps leaves the
last good version valid and at most some unnamed objects behind. The push is a compare-and-swap: whoever loses
the race takes the winner's version and adds its own partitions to that.

DVC's own objects are written directly: adding one partition to a thousand by the stock tool costs seconds that grow
with the history, this costs hashing and uploading the new bytes (importing dvc-data's classes alone takes as long as a
whole commit). Tests prove that the bytes are those of dvc-data, and that `dvc pull`, `status` and `diff` agree.

A commit has `data.dvc` (which names the manifest), `.dvc/config` (where the content is) and `dataset.json`: hash, rows
and size of every partition, so that a version is known without asking the store.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import re
import tempfile
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import DatasetDefect, InfrastructureFault, NotFound
from aifactory.git import BRANCH, Commit, Remote, Scratch, is_revision
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

_INDEX = "dataset.json"
_DVC_FILE = "data.dvc"
_MAX_RACES = 30
_VERSIONS_A_PACK = 100
_CONNECTIONS = 8
_DAYS_AHEAD = 4
"""Partitions that are downloaded before a `DayStream` comes to them; as files, not as rows."""
_PIECE_ROWS = 16_384
"""Rows that a `DayStream` decodes at once."""
_DAYS_A_PRUNING = 16
"""So many days after the other a `DayStream` brings the cache back under its size."""
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Partition:
    """One day of a version: MD5 of its parquet bytes, how many rows, how many bytes."""

    md5: str
    rows: int
    size: int


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a line's dataset.

    Args:
        revision: git commit, 40 hex digits.
        number: counts the versions from 1.
        dir_md5: MD5 of the DVC manifest, the content's name.
        partitions: what it holds, by day.
    """

    revision: str
    number: int
    dir_md5: str
    partitions: Mapping[str, Partition]

    @property
    def tag(self) -> str:
        """Git tag, v000001 and on."""
        return _tag(self.number)

    @property
    def days(self) -> list[str]:
        """The partitions, oldest first."""
        return sorted(self.partitions)

    @property
    def num_partitions(self) -> int:
        """How many days it holds."""
        return len(self.partitions)

    @property
    def num_rows(self) -> int:
        """How many rows it holds."""
        return sum(each.rows for each in self.partitions.values())

    @property
    def size(self) -> int:
        """Bytes of all partitions."""
        return sum(each.size for each in self.partitions.values())


class DatasetRepository:
    """The dataset versions of one line.

    Raises (every method):
        DatasetDefect: what was asked for does not exist, or stored content does not match its hash.
        InfrastructureFault: git or the store does not answer.
    """

    def __init__(self, settings: Settings, line: str, store: Store) -> None:
        self.settings = settings
        self.line = line
        self.store = store
        self.url = f"{settings.git_root}/{line}.git"
        self._prefix = f"dvc/{line}"
        self._git = Remote(self.url)

    # --- writing
    def init(self) -> None:
        """Make the bare repository where it is a folder of this machine and is not there yet."""
        self._git.init()

    def commit(
        self, partitions: Mapping[str, bytes | str], message: str, removed: Sequence[str] = ()
    ) -> DatasetVersion:
        """Add or replace partitions and make that the newest version; equal content makes no new one.

        Args:
            partitions: parquet bytes by day, or the key of a staged parquet object in the store.
            message: why, for the git log.
            removed: days to take out; a day that is not there is no error, so that a rerun changes nothing.

        Raises:
            ValueError: a day is not YYYY-MM-DD, or is both added and removed.
            DatasetDefect: a partition is not parquet, or nothing would be left.
            InfrastructureFault: DATASET_CONFLICT, other writers kept winning.
        """
        _check_days(partitions, removed)
        self.init()
        with self._git.scratch() as scratch:
            with ThreadPoolExecutor(_CONNECTIONS) as pool:  # the newest version comes while the new bytes go
                newest = pool.submit(self._load, scratch)
                added = dict(zip(partitions, pool.map(self._upload, partitions, partitions.values()), strict=True))
            before = newest.result()
            for attempt in range(1, _MAX_RACES + 1):
                version = self._try_commit(scratch, before, added, message, removed)
                if version is not None:
                    return version
                log.info("another writer of %s was first; attempt %s on its version", self.line, attempt + 1)
                time.sleep(min(0.02 * attempt, 0.5) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret, only spread
                before = self._load(scratch)
        raise InfrastructureFault(
            ReasonCode.DATASET_CONFLICT,
            f"{_MAX_RACES} pushes to {self.url} lost against other writers; run the partition again",
        )

    def _try_commit(
        self,
        scratch: Scratch,
        before: DatasetVersion | None,
        added: Mapping[str, Partition],
        message: str,
        removed: Sequence[str],
    ) -> DatasetVersion | None:
        """One attempt on the newest version; None where another writer was first."""
        old = before.partitions if before else {}
        new = {day: part for day, part in {**old, **added}.items() if day not in removed}
        if not new:
            raise DatasetDefect(
                ReasonCode.DATASET_TOO_SMALL, f"{self.line}: a version without partitions is not made; add one"
            )
        if before and new == old:
            return before
        number = before.number + 1 if before else 1
        dir_md5 = self._put_manifest(new)
        files = self._files(number, dir_md5, new)
        parent = before.revision if before else None
        revision = scratch.write(parent, files, f"{_tag(number)}: {message}")
        tags = {_tag(number): revision}
        if before:
            tags[before.tag] = before.revision  # heals a crash between the branch and its tag
        if not scratch.push(revision, parent, tags):
            return None
        if number % _VERSIONS_A_PACK == 0:
            self._git.clean_up()
        return DatasetVersion(revision, number, dir_md5, new)

    def _upload(self, day: str, body: bytes | str) -> Partition:
        """Put one partition under its own hash, unless it is there."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        content = self.store.get(body) if isinstance(body, str) else body
        try:
            rows = int(pq.read_metadata(io.BytesIO(content)).num_rows)
        except pa.ArrowException as error:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{self.line} {day}: {len(content)} bytes that are not parquet ({error})"
            ) from error
        md5 = _md5(content)
        there = self.store.head(self._object(md5))
        if there is None or there.size != len(content):
            self.store.put(self._object(md5), content)
        return Partition(md5, rows, len(content))

    def _put_manifest(self, partitions: Mapping[str, Partition]) -> str:
        """Write DVC's manifest of the folder under its own hash."""
        body = manifest(partitions)
        md5 = _md5(body)
        self.store.put(f"{self._object(md5)}.dir", body)
        return md5

    def _files(self, number: int, dir_md5: str, partitions: Mapping[str, Partition]) -> dict[str, bytes]:
        """What a commit holds; keys to the store come from the environment, never from git."""
        size = sum(each.size for each in partitions.values())
        texts = {
            ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
            ".dvc/config": (
                "[core]\n    remote = factory\n    analytics = false\n    check_update = false\n"
                f"['remote \"factory\"']\n    url = {self.store.uri(self._prefix)}\n"
                f"    endpointurl = {self.settings.s3_url}\n    region = {self.settings.s3_region}\n"
            ),
            ".dvcignore": "",
            ".gitignore": "/data\n",
            _DVC_FILE: (
                f"outs:\n- md5: {dir_md5}.dir\n  size: {size}\n  nfiles: {len(partitions)}\n  hash: md5\n  path: data\n"
            ),
            _INDEX: _index(number, dir_md5, partitions),
        }
        return {path: text.encode() for path, text in texts.items()}

    # --- reading
    def latest(self) -> DatasetVersion | None:
        """The newest version; None where there is none yet."""
        return self._find(BRANCH)

    def version(self, revision: str) -> DatasetVersion:
        """One version by commit (40 hex digits) or tag.

        Raises:
            DatasetDefect: there is no such version.
        """
        found = self._find(revision) if is_revision(revision) else None
        if found is None:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{self.url} has no version {revision!r}; `git log` there lists them"
            )
        return found

    def days(self, revision: str) -> list[str]:
        """The partitions of a version, oldest first."""
        return self.version(revision).days

    def content(self, revision: str) -> dict[str, str]:
        """MD5 of every partition of a version, by day: whether a day's rows changed between versions."""
        return {day: each.md5 for day, each in self.version(revision).partitions.items()}

    def log(self, limit: int = 100) -> list[Commit]:
        """The newest versions, newest first: commit, time, and the subject `<tag>: <message>`."""
        if not self._git.exists:
            return []
        with self._git.scratch() as scratch:
            return scratch.log(limit)

    def read(self, revision: str, days: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a version, day by day, read from the store and checked against their hashes.

        A column that a partition does not have (it was made before the line had that column) is null there.

        Args:
            revision: commit or tag.
            days: which partitions, default all; rows come oldest day first.
            columns: which columns and in which order, default all.

        Raises:
            DatasetDefect: a day or column is not in the version, its content does not match its hash, or partitions
                have different types for one column.
        """
        partitions = self.version(revision).partitions
        return self._read({day: each.md5 for day, each in partitions.items()}, revision, days, columns)

    def read_content(
        self, dir_md5: str, days: Sequence[str] | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The same rows by the content's name instead of the revision's: for programs that reach S3 and no git.

        Args:
            dir_md5: MD5 of the DVC manifest, as a version and a training order name it.
            days: see `read`.
            columns: see `read`.

        Raises:
            DatasetDefect: see `read`.
        """
        return self._read(self._listed(dir_md5), dir_md5, days, columns)

    def stream_content(self, dir_md5: str, days: Sequence[str], columns: Sequence[str]) -> DayStream:
        """The same rows in pieces, for who cannot hold them all.

        Raises:
            DatasetDefect: a day is not there, or the manifest is not DVC's.
        """
        partitions = self._listed(dir_md5)
        wanted = self._wanted(partitions, dir_md5, days)
        return DayStream(self, dir_md5, {day: partitions[day] for day in wanted}, columns)

    def _listed(self, dir_md5: str) -> dict[str, str]:
        """MD5 of every partition by day, as DVC's manifest has it."""
        body = self._download(f"{dir_md5}.dir", cached=False)
        try:
            listed = {entry["relpath"]: str(entry["md5"]) for entry in json.loads(body)}
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"manifest {dir_md5} of {self.line} is not DVC's ({error!r})"
            ) from error
        return {path.removeprefix("date=").removesuffix(".parquet"): md5 for path, md5 in listed.items()}

    def _read(
        self, partitions: Mapping[str, str], name: str, days: Sequence[str] | None, columns: Sequence[str] | None
    ) -> pa.Table:
        """The rows of partitions, given as MD5 by day; `name` is what messages call them by."""
        wanted = self._wanted(partitions, name, days)
        with ThreadPoolExecutor(min(_CONNECTIONS, len(wanted))) as pool:
            tables = list(pool.map(lambda day: self._read_partition(partitions[day], columns), wanted))
        self._cache.prune()
        return self._join(tables, columns, name)

    def _wanted(self, partitions: Mapping[str, str], name: str, days: Sequence[str] | None) -> list[str]:
        """The days that are asked for, oldest first, default all."""
        wanted = sorted(partitions if days is None else set(days))
        missing = [day for day in wanted if day not in partitions]
        if missing or not wanted:
            raise DatasetDefect(
                ReasonCode.DATASET_TOO_SMALL,
                f"{self.line} {name[:12]} has no partition {', '.join(missing[:5]) or '(none was asked for)'}; "
                f"it holds {len(partitions)}, the newest is {max(partitions)}",
            )
        return wanted

    def _join(self, tables: Sequence[pa.Table], columns: Sequence[str] | None, revision: str) -> pa.Table:
        """One table of all; columns in the order that was asked for."""
        import pyarrow as pa

        try:
            joined = pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException as error:
            raise DatasetDefect(
                ReasonCode.COLUMN_TYPE,
                f"{self.line} {revision[:12]}: partitions have different types ({error}); rebuild the older ones",
            ) from error
        if columns is None:
            return joined
        unknown = [name for name in columns if name not in joined.column_names]
        if unknown:
            raise DatasetDefect(
                ReasonCode.COLUMN_MISSING, f"{self.line} {revision[:12]} has no column {', '.join(unknown)}"
            )
        return joined.select(list(columns))

    def _read_partition(self, md5: str, columns: Sequence[str] | None) -> pa.Table:
        import pyarrow.parquet as pq

        body = self.body(md5)
        return pq.ParquetFile(io.BytesIO(body)).read(columns=list(columns) if columns is not None else None)

    def body(self, md5: str) -> bytes:
        """The parquet bytes of a partition, checked against their hash."""
        return self._cache.get(md5) or self._download(md5)

    def prune_cache(self) -> None:
        """Remove from this machine's cache what is too much."""
        self._cache.prune()

    def _download(self, name: str, *, cached: bool = True) -> bytes:
        """An object by its hash, checked; DVC adds `.dir` to the name of a manifest."""
        uri, md5 = self.store.uri(self._object(name)), name.removesuffix(".dir")
        try:
            body = self.store.get(self._object(name))
        except NotFound as error:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{uri} is gone, though a version names it; restore that object"
            ) from error
        if _md5(body) != md5:
            raise DatasetDefect(ReasonCode.DATASET_CORRUPT, f"{uri} does not match its hash; restore that object")
        if cached:
            self._cache.put(md5, body)
        return body

    def _find(self, revision: str) -> DatasetVersion | None:
        if not self._git.exists:
            return None
        with self._git.scratch() as scratch:
            return self._load(scratch, revision)

    def _load(self, scratch: Scratch, revision: str = BRANCH) -> DatasetVersion | None:
        """The version that a branch, tag or commit names; None where there is none."""
        commit = scratch.fetch(revision)
        return self._read_version(scratch, commit) if commit else None

    def _read_version(self, scratch: Scratch, commit: str) -> DatasetVersion:
        """What a commit holds, checked: `data.dvc` and the index must speak of the same content."""
        files = scratch.read(commit, (_INDEX, _DVC_FILE))
        try:
            index: dict[str, Any] = json.loads(files[_INDEX])
            partitions = {day: Partition(**entry) for day, entry in index["partitions"].items()}
            version = DatasetVersion(commit, int(index["number"]), str(index["dir_md5"]), partitions)
            agree = f"md5: {version.dir_md5}.dir\n" in files[_DVC_FILE].decode()
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{self.url} {commit[:12]} is not a version of the factory ({error!r})"
            ) from error
        if not agree:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT,
                f"{self.url} {commit[:12]}: {_DVC_FILE} and {_INDEX} name different content; "
                "revert what was committed by hand",
            )
        return version

    @cached_property
    def _cache(self) -> _Cache:
        return _Cache(self.settings.home / "cache" / "partitions", self.settings.dataset_cache_mb * 1_000_000)

    def _object(self, md5: str) -> str:
        return f"{self._prefix}/files/md5/{md5[:2]}/{md5[2:]}"


class DayStream:
    """The rows of some partitions, in pieces, in any order of the days and as often as wanted.

    A partition is downloaded whole, for its hash is that of the whole, and decoded by column and piece by piece. Held
    are one piece and the files of `_DAYS_AHEAD` + 1 partitions.

    Attributes:
        days: which, oldest first.
    """

    def __init__(
        self, repository: DatasetRepository, name: str, partitions: Mapping[str, str], columns: Sequence[str]
    ) -> None:
        self.days: Sequence[str] = list(partitions)
        self._repository = repository
        self._name = name
        self._partitions = partitions
        self._columns = list(columns)

    def read(self, days: Sequence[str]) -> Generator[tuple[str, pa.Table], None, None]:
        """Day and rows, in the order of the days that are given; a day with many rows comes in several pieces.

        A column that a partition does not have is null there, as in `DatasetRepository.read`.

        Raises:
            DatasetDefect: content does not match its hash, the partitions have different types for one column, or
                all days are read and none has a column.
            InfrastructureFault: the store does not answer.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([])
        for day, body in self._bodies(days):
            file = pq.ParquetFile(io.BytesIO(body))
            there = [field for field in file.schema_arrow if field.name in self._columns]
            try:
                schema = pa.unify_schemas([schema, pa.schema(there)])
            except pa.ArrowException as error:
                raise DatasetDefect(
                    ReasonCode.COLUMN_TYPE,
                    f"{self._repository.line} {self._name[:12]}: {day} has other types than the partitions read before "
                    f"({error}); rebuild the older ones",
                ) from error
            for batch in file.iter_batches(_PIECE_ROWS, columns=[field.name for field in there]):
                lacking = {name: pa.nulls(batch.num_rows) for name in self._columns if name not in batch.schema.names}
                columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | lacking
                yield day, pa.table({name: columns[name] for name in self._columns})
        unknown = [name for name in self._columns if name not in schema.names]
        if unknown and set(days) == set(self.days):
            raise DatasetDefect(
                ReasonCode.COLUMN_MISSING,
                f"{self._repository.line} {self._name[:12]} has no column {', '.join(unknown)}",
            )

    def _bodies(self, days: Sequence[str]) -> Generator[tuple[str, bytes], None, None]:
        """Files by day, downloaded ahead; this machine's cache is kept small meanwhile."""
        with ThreadPoolExecutor(_DAYS_AHEAD, "download") as pool:
            ahead: deque[Future[bytes]] = deque()
            for number, day in enumerate(days):
                for later in days[number + len(ahead) : number + _DAYS_AHEAD]:
                    ahead.append(pool.submit(self._repository.body, self._partitions[later]))
                yield day, ahead.popleft().result()
                if number % _DAYS_A_PRUNING == 0:
                    self._repository.prune_cache()


class _Cache:
    """Partitions on the local disk, by hash, the least recently used removed first.

    Training, evaluation and scoring of a night read the same days; S3 is asked once for each.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def get(self, md5: str) -> bytes | None:
        path = self._folder / md5
        try:
            body = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return body if _md5(body) == md5 else None

    def put(self, md5: str, body: bytes) -> None:
        if len(body) > self._max_bytes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as file:
                file.write(body)
            Path(file.name).replace(self._folder / md5)
        except OSError as error:  # a full disk costs speed, not the work
            log.warning("partition %s was not cached: %s", md5, error)

    def prune(self) -> None:
        """Bring the folder back under its size; other readers may do the same at once."""
        try:
            files = sorted(
                ((e.stat().st_mtime, e.stat().st_size, e.path) for e in os.scandir(self._folder)), reverse=True
            )
        except OSError:
            return
        kept = 0
        for _, size, path in files:
            kept += size
            if kept > self._max_bytes:
                Path(path).unlink(missing_ok=True)


def manifest(partitions: Mapping[str, Partition]) -> bytes:
    """DVC's manifest of the folder: the bytes that `dvc_data.hashfile.tree.Tree.as_bytes` gives."""
    listing = [{"md5": partitions[day].md5, "relpath": f"date={day}.parquet"} for day in sorted(partitions)]
    return json.dumps(listing, sort_keys=True).encode()


def _index(number: int, dir_md5: str, partitions: Mapping[str, Partition]) -> str:
    """`dataset.json`: a line for each partition, so that `git diff` shows what changed."""
    rows = ",\n".join(
        f'  "{day}": {{"md5": "{each.md5}", "rows": {each.rows}, "size": {each.size}}}'
        for day, each in sorted(partitions.items())
    )
    return f'{{\n "number": {number},\n "dir_md5": "{dir_md5}",\n "partitions": {{\n{rows}\n }}\n}}\n'


def _check_days(partitions: Mapping[str, object], removed: Sequence[str]) -> None:
    wrong = [day for day in (*partitions, *removed) if not _DAY.fullmatch(day)]
    both = sorted(set(partitions) & set(removed))
    if wrong or both:
        raise ValueError(f"partitions are days YYYY-MM-DD, added or removed: wrong {wrong}, both {both}")


def _tag(number: int) -> str:
    return f"v{number:06d}"


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
