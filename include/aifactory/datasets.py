"""Dataset versions: git commits whose DVC-tracked content is in S3.

A version is written in the order data → manifest → commit → push, so that a crash between any two steps leaves the
last good version valid and at most some unnamed objects behind. The push is a compare-and-swap: whoever loses
the race takes the winner's version and adds its own partitions to that.

DVC's own objects are written directly: adding one partition to a thousand by the stock tool costs seconds that grow
with the history, this costs hashing and uploading the new bytes. `dvc pull`, `dvc status` and `dvc diff` agree with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifactory.errors import DatasetDefect, InfrastructureFault
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

_BRANCH = "main"
_INDEX = "dataset.json"
_MAX_RACES = 20
_READERS = 8
_IDENTITY = {"NAME": "AI factory", "EMAIL": "factory@localhost"}


@dataclass(frozen=True)
class DatasetVersion:
    """One version of a line's dataset.

    Args:
        revision: git commit, 40 hex digits.
        tag: git tag, v000001 and on.
        dir_md5: MD5 of the DVC manifest, the content's name.
        rows: rows by day.
        size: bytes of all partitions.
    """

    revision: str
    tag: str
    dir_md5: str
    rows: Mapping[str, int]
    size: int

    @property
    def days(self) -> list[str]:
        """The partitions, oldest first."""
        return sorted(self.rows)

    @property
    def num_partitions(self) -> int:
        """How many days it holds."""
        return len(self.rows)

    @property
    def num_rows(self) -> int:
        """How many rows it holds."""
        return sum(self.rows.values())


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
        self.remote = f"dvc/{line}"
        self.url = f"{settings.git_root}/{line}.git"

    # --- writing
    def init(self) -> None:
        """Make the bare repository where it is a folder of this machine and is not there yet."""
        if "://" in self.url or (Path(self.url) / "HEAD").exists():
            return
        Path(self.url).parent.mkdir(parents=True, exist_ok=True)
        _git(Path(self.url).parent, "init", "--quiet", "--bare", f"--initial-branch={_BRANCH}", self.url)

    def commit(
        self, partitions: Mapping[str, bytes | str], message: str, removed: Sequence[str] = ()
    ) -> DatasetVersion:
        """Add or replace partitions and make that the newest version; equal content makes no new one.

        Args:
            partitions: parquet bytes by day, or the key of a staged parquet object in the store.
            message: why, for the git log.
            removed: days to take out.

        Raises:
            DatasetDefect: DATASET_CONFLICT, other writers kept winning.
        """
        self.init()
        added = {day: self._upload(body) for day, body in sorted(partitions.items())}
        for attempt in range(_MAX_RACES):
            with tempfile.TemporaryDirectory(prefix="dataset-") as scratch:
                version = self._try_commit(Path(scratch), added, message, removed)
            if version is not None:
                return version
            log.info("another writer was first (%s); trying again on its version", self.line)
            time.sleep(0.05 * (attempt + 1))
        raise DatasetDefect(
            ReasonCode.DATASET_CONFLICT,
            f"{_MAX_RACES} pushes to {self.url} lost against other writers; run the partition again",
        )

    def _upload(self, body: bytes | str) -> dict[str, Any]:
        """Put one partition under its own hash; what the index says of it."""
        import pyarrow.parquet as pq

        content = self.store.get(body) if isinstance(body, str) else body
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if (there := self.store.head(self._object(md5))) is None or there.size != len(content):
            self.store.put(self._object(md5), content)
        return {"md5": md5, "size": len(content), "rows": pq.ParquetFile(io.BytesIO(content)).metadata.num_rows}

    def _try_commit(
        self, scratch: Path, added: dict[str, dict[str, Any]], message: str, removed: Sequence[str]
    ) -> DatasetVersion | None:
        """One attempt on the newest version; None where another writer was first."""
        _git(scratch, "init", "--quiet", "--bare", "--initial-branch=scratch")
        parent = self._fetch(scratch, _BRANCH)
        before: dict[str, Any] = self._index(scratch, parent) if parent else {"number": 0, "days": {}}
        days = {day: entry for day, entry in {**before["days"], **added}.items() if day not in removed}
        if parent and days == before["days"]:
            return self._version(parent, before)
        index = {"number": before["number"] + 1, "days": days, "dir_md5": self._put_manifest(days)}
        commit = self._write_commit(scratch, parent, index, message)
        pushed = _git(
            scratch,
            *("push", "--quiet", "--atomic", _transport(self.url)),
            *(f"{commit}:refs/heads/{_BRANCH}", f"{commit}:refs/tags/{_tag(index)}"),
            check=False,
        )
        if pushed.returncode == 0:
            return self._version(commit, index)
        if any(
            word in pushed.stderr
            for word in ("rejected", "fetch first", "already exists", "failed to lock", "cannot lock")
        ):
            return None
        raise _fault(f"push to {self.url}", pushed)

    def _put_manifest(self, days: Mapping[str, Mapping[str, Any]]) -> str:
        """Write DVC's manifest of the folder under its own hash."""
        listing = [{"md5": entry["md5"], "relpath": _file(day)} for day, entry in days.items()]
        body = json.dumps(sorted(listing, key=lambda each: each["relpath"]), sort_keys=True).encode()
        md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
        self.store.put(f"{self._object(md5)}.dir", body)
        return md5

    def _write_commit(self, scratch: Path, parent: str | None, index: dict[str, Any], message: str) -> str:
        """Write the commit's objects into the scratch repository; nobody sees them before the push."""
        files = {
            ".dvcignore": "",
            ".gitignore": "/data\n",
            "data.dvc": _data_dvc(index),
            _INDEX: json.dumps(index, sort_keys=True, indent=0) + "\n",
        }
        top = [f"100644 blob {_write_blob(scratch, text)}\t{name}" for name, text in files.items()]
        inner = {".gitignore": "/config.local\n/tmp\n/cache\n", "config": self._dvc_config()}
        dvc = _make_tree(scratch, [f"100644 blob {_write_blob(scratch, text)}\t{name}" for name, text in inner.items()])
        tree = _make_tree(scratch, [*top, f"040000 tree {dvc}\t.dvc"])
        parents = ["-p", parent] if parent else []
        return _git(scratch, "commit-tree", tree, *parents, "-m", f"{_tag(index)}: {message}").stdout.strip()

    def _dvc_config(self) -> str:
        """`.dvc/config`: where the content is; keys come from the environment, never from git."""
        return (
            "[core]\n    remote = factory\n    analytics = false\n    check_update = false\n"
            f"['remote \"factory\"']\n    url = {self.store.uri(self.remote)}\n    endpointurl = {self.settings.s3_url}\n"
            f"    region = {self.settings.s3_region}\n"
        )

    # --- reading
    def latest(self) -> DatasetVersion | None:
        """The newest version; None where there is none yet."""
        if "://" not in self.url and not (Path(self.url) / "HEAD").exists():
            return None
        return self._read_version(_BRANCH)

    def version(self, revision: str) -> DatasetVersion:
        """One version by commit or tag.

        Raises:
            DatasetDefect: there is no such version.
        """
        found = self._read_version(revision)
        if found is None:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{self.url} has no version {revision!r}; `git log` there lists them"
            )
        return found

    def days(self, revision: str) -> list[str]:
        """The partitions of a version, oldest first."""
        return self.version(revision).days

    def read(self, revision: str, days: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a version, day by day, read from the store and checked against their hashes.

        Raises:
            DatasetDefect: a day is not in the version, or its content does not match its hash.
        """
        import pyarrow as pa

        entries = self._entries(revision)
        missing = [day for day in days or () if day not in entries]
        if missing:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT, f"{self.line} {revision[:12]} has no partition {', '.join(missing[:5])}"
            )
        wanted = [entries[day]["md5"] for day in (sorted(entries) if days is None else days)]
        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(lambda md5: self._read_partition(md5, columns), wanted))
        if not tables:
            raise DatasetDefect(
                ReasonCode.DATASET_TOO_SMALL, f"{self.line} {revision[:12]}: no partition was asked for"
            )
        return pa.concat_tables(tables)

    def content(self, revision: str) -> dict[str, str]:
        """MD5 of every partition of a version, by day: whether a day's rows changed between versions."""
        return {day: str(entry["md5"]) for day, entry in self._entries(revision).items()}

    def _read_partition(self, md5: str, columns: Sequence[str] | None) -> pa.Table:
        import pyarrow.parquet as pq

        body = self.store.get(self._object(md5))
        if hashlib.md5(body, usedforsecurity=False).hexdigest() != md5:
            raise DatasetDefect(
                ReasonCode.DATASET_CORRUPT,
                f"{self.store.uri(self._object(md5))} does not match its hash; restore that object",
            )
        return pq.ParquetFile(io.BytesIO(body)).read(columns=list(columns) if columns is not None else None)

    def _entries(self, revision: str) -> dict[str, dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="dataset-") as scratch:
            commit = self._resolve(Path(scratch), revision)
            if commit is None:
                raise DatasetDefect(ReasonCode.DATASET_CORRUPT, f"{self.url} has no version {revision!r}")
            days: dict[str, dict[str, Any]] = self._index(Path(scratch), commit)["days"]
            return days

    def _read_version(self, revision: str) -> DatasetVersion | None:
        with tempfile.TemporaryDirectory(prefix="dataset-") as scratch:
            commit = self._resolve(Path(scratch), revision)
            return self._version(commit, self._index(Path(scratch), commit)) if commit else None

    def _resolve(self, scratch: Path, revision: str) -> str | None:
        _git(scratch, "init", "--quiet", "--bare", "--initial-branch=scratch")
        return self._fetch(scratch, revision)

    def _fetch(self, scratch: Path, revision: str) -> str | None:
        """Bring one commit, without its history; None where the repository has no such thing."""
        fetched = _git(
            scratch, "fetch", "--quiet", "--depth=1", "--no-tags", _transport(self.url), revision, check=False
        )
        if fetched.returncode == 0:
            return _git(scratch, "rev-parse", "FETCH_HEAD").stdout.strip()
        if "couldn't find remote ref" in fetched.stderr or "not our ref" in fetched.stderr:
            return None
        raise _fault(f"fetch {revision} from {self.url}", fetched)

    def _index(self, scratch: Path, commit: str) -> dict[str, Any]:
        index: dict[str, Any] = json.loads(_git(scratch, "show", f"{commit}:{_INDEX}").stdout)
        return index

    def _version(self, commit: str, index: Mapping[str, Any]) -> DatasetVersion:
        rows = {day: int(entry["rows"]) for day, entry in index["days"].items()}
        size = sum(int(entry["size"]) for entry in index["days"].values())
        return DatasetVersion(commit, _tag(index), str(index["dir_md5"]), rows, size)

    def _object(self, md5: str) -> str:
        return f"{self.remote}/files/md5/{md5[:2]}/{md5[2:]}"


def _tag(index: Mapping[str, Any]) -> str:
    return f"v{index['number']:06d}"


def _file(day: str) -> str:
    return f"date={day}.parquet"


def _data_dvc(index: Mapping[str, Any]) -> str:
    """`data.dvc` as DVC writes it."""
    size = sum(entry["size"] for entry in index["days"].values())
    return f"outs:\n- md5: {index['dir_md5']}.dir\n  size: {size}\n  nfiles: {len(index['days'])}\n  hash: md5\n  path: data\n"


def _transport(url: str) -> str:
    """A shallow fetch from a folder needs the file transport."""
    return url if "://" in url else f"file://{Path(url).resolve()}"


def _write_blob(scratch: Path, text: str) -> str:
    return _git(scratch, "hash-object", "-w", "--stdin", stdin=text).stdout.strip()


def _make_tree(scratch: Path, entries: list[str]) -> str:
    return _git(scratch, "mktree", stdin="\n".join(entries) + "\n").stdout.strip()


def _git(
    folder: Path, *arguments: str, stdin: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run git by itself: no user's configuration, no prompt, an identity of its own."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "gc.auto",
        "GIT_CONFIG_VALUE_1": "0",
        **{f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in _IDENTITY.items()},
    }
    for inherited in ("SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_ASKPASS"):
        if inherited in os.environ:
            environment[inherited] = os.environ[inherited]
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureFault(ReasonCode.STORE_UNREACHABLE, f"git {arguments[0]} did not run: {error}") from error
    if check and done.returncode != 0:
        raise _fault(f"git {arguments[0]}", done)
    return done


def _fault(what: str, done: subprocess.CompletedProcess[str]) -> InfrastructureFault:
    return InfrastructureFault(
        ReasonCode.STORE_UNREACHABLE, f"{what} failed ({done.returncode}): {done.stderr.strip()[:500]}"
    )
