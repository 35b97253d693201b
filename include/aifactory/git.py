"""Git without a working copy: one commit is fetched, read, replaced by a new one and pushed as a compare-and-swap.

A `Scratch` repository lives as long as one piece of work, so that writers never share anything but the remote. It
takes few git processes, because each costs milliseconds: `fetch --depth=1` (a folder's objects are borrowed instead),
`cat-file --batch`, `fast-import`, `push`.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aifactory.errors import InfrastructureFault
from aifactory.reasons import ReasonCode

log = logging.getLogger(__name__)

BRANCH = "main"
_TIMEOUT_S = 120
_STALE_LOCK_S = 60.0
_LOCKED = re.compile(r"(cannot|failed to|unable to) lock|\.lock'", re.IGNORECASE)
_IDENTITY = "AI factory <factory@localhost>"
_KEPT_VARIABLES = ("GIT_ASKPASS", "GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_EXEC_PATH")
# Our own global file, not variables: git hands it on to the processes that it starts in the other repository.
_SCRATCH_CONFIG = "[safe]\n\tdirectory = *\n[fastimport]\n\tunpackLimit = 1\n[core]\n\tcompression = 1\n"
# What a version names must survive a power cut, so every object is flushed before its ref moves. Git would clean up
# in the background after a push: a process that nobody ends; see `Remote.clean_up`.
_SHARED_CONFIG = "[core]\n\tfsync = committed\n\tfsyncMethod = batch\n[receive]\n\tautogc = false\n"


@dataclass(frozen=True)
class Commit:
    """One commit: its hash, its time (seconds since the epoch) and its subject line."""

    revision: str
    at: int
    subject: str


class Remote:
    """A bare repository that several writers share.

    Args:
        url: URL, or a folder of this machine.

    Raises (every method):
        InfrastructureFault: git does not run, or the repository does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        local = "://" not in url and ":" not in url.split("/", maxsplit=1)[0]
        self.folder = Path(url).resolve() if local else None

    @property
    def exists(self) -> bool:
        """Whether it is there, as far as this machine can see without asking."""
        return self.folder is None or (self.folder / "HEAD").exists()

    @property
    def transport(self) -> str:
        """What git is given: a folder is served like a host, else git ignores the depth of a fetch."""
        return self.url if self.folder is None else self.folder.as_uri()

    def init(self) -> None:
        """Make it where it is a folder and not there; whole or not at all, whoever else does the same."""
        if self.exists or self.folder is None:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".init-", dir=self.folder.parent) as temporary:
            fresh = Path(temporary) / "repository"
            _git(Path(temporary), "init", "--quiet", "--bare", "--template=", f"--initial-branch={BRANCH}", str(fresh))
            with (fresh / "config").open("a") as config:
                config.write(_SHARED_CONFIG)
            try:
                fresh.rename(self.folder)
            except OSError:
                if not self.exists:
                    raise

    def clean_up(self) -> None:
        """Pack what has gathered, where it is a folder; others may write and read meanwhile."""
        if self.folder is not None:
            with self.scratch() as scratch:
                scratch.pack(self.folder)

    @contextmanager
    def scratch(self) -> Iterator[Scratch]:
        """A repository of one's own to work on it."""
        with tempfile.TemporaryDirectory(prefix="dataset-") as folder:
            yield Scratch(self, Path(folder))


class Scratch:
    """A bare repository of one's own, thrown away after the work; see `Remote.scratch`."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.remote = remote
        self._folder = folder
        (folder / ".gitconfig").write_text(_SCRATCH_CONFIG)
        (folder / "HEAD").write_text("ref: refs/heads/scratch\n")  # these three are what makes a bare repository
        (folder / "objects" / "info").mkdir(parents=True)
        (folder / "refs").mkdir()
        if remote.folder is not None:
            (folder / "objects" / "info" / "alternates").write_text(f"{remote.folder / 'objects'}\n")

    def fetch(self, revision: str, depth: int = 1) -> str | None:
        """Bring a branch, tag or commit, without its history; its commit, or None where there is no such thing."""
        if self.remote.folder is not None:
            return self._look_up(self.remote.folder, revision)
        done = self._git(
            *("fetch", "--quiet", "--no-auto-gc", f"--depth={depth}", "--no-tags", self.remote.transport, revision),
            check=False,
        )
        if done.returncode == 0:
            return (self._folder / "FETCH_HEAD").read_text()[:40]
        said = _said(done)
        if "couldn't find remote ref" in said or "not our ref" in said:
            return None
        raise _fault(f"fetch of {revision} from {self.remote.url}", done)

    def read(self, commit: str, paths: Sequence[str]) -> dict[str, bytes]:
        """The content of these files in a commit; those that it does not have are left out."""
        asked = "".join(f"{commit}:{path}\n" for path in paths)
        answer, at, found = self._git("cat-file", "--batch", stdin=asked.encode()).stdout, 0, {}
        for path in paths:
            header, _, _ = answer[at:].partition(b"\n")
            at += len(header) + 1
            if header.endswith(b" missing"):
                continue
            size = int(header.rsplit(b" ", 1)[1])
            found[path] = answer[at : at + size]
            at += size + 1
        return found

    def write(self, parent: str | None, files: Mapping[str, bytes], message: str) -> str:
        """Write a commit that sets these files on top of its parent; nobody sees it before it is pushed."""
        stream = [f"commit refs/heads/next\nmark :1\ncommitter {_IDENTITY} {int(time.time())} +0000\n".encode()]
        stream += [_data(message.encode())]
        if parent:
            stream += [f"from {parent}\n".encode()]
        for path, body in files.items():
            stream += [f"M 100644 inline {path}\n".encode(), _data(body)]
        stream += [b"\nget-mark :1\ndone\n"]
        return self._git("fast-import", "--quiet", "--force", "--done", stdin=b"".join(stream)).stdout.decode().strip()

    def push(self, commit: str, parent: str | None, tags: Mapping[str, str]) -> bool:
        """Move the branch from parent to commit and set tags (name -> commit), all or nothing.

        A tag of a number that the branch has not reached is what a crash left behind, so it is replaced.

        Returns:
            False where another writer was first.
        """
        lease = f"--force-with-lease=refs/heads/{BRANCH}:{parent or ''}"
        refs = [f"{commit}:refs/heads/{BRANCH}", *(f"+{target}:refs/tags/{name}" for name, target in tags.items())]
        done = self._git("push", "--quiet", "--atomic", lease, self.remote.transport, *refs, check=False)
        if done.returncode == 0:
            return True
        if _LOCKED.search(_said(done)):
            self._remove_stale_locks()
            return False
        if self.fetch(BRANCH) != parent:
            return False
        raise _fault(f"push to {self.remote.url}", done)

    def log(self, limit: int) -> list[Commit]:
        """The newest commits of the branch, newest first."""
        tip = self.fetch(BRANCH, depth=limit)
        if tip is None:
            return []
        told = self._git("log", f"--max-count={limit}", "--format=%H %ct %s", tip).stdout.decode()
        return [Commit(each[0], int(each[1]), each[2]) for each in (row.split(" ", 2) for row in told.splitlines())]

    def pack(self, folder: Path) -> None:
        """Pack the objects of a repository on this machine; what nobody names and is older than two weeks goes."""
        self._git(f"--git-dir={folder}", "gc", "--quiet")

    def _look_up(self, folder: Path, revision: str) -> str | None:
        done = self._git(f"--git-dir={folder}", "rev-parse", "--verify", f"{revision}^{{commit}}", check=False)
        if done.returncode == 0:
            return done.stdout.decode().strip()
        if re.search("Needed a single revision|bad object|unknown revision", _said(done)):
            return None
        raise _fault(f"look-up of {revision} in {folder}", done)

    def _remove_stale_locks(self) -> None:
        """Free the refs of a folder from locks whose holder died (git holds one for milliseconds)."""
        if self.remote.folder is None:
            return
        for lock in [*self.remote.folder.glob("*.lock"), *self.remote.folder.glob("refs/**/*.lock")]:
            try:
                if time.time() - lock.stat().st_mtime > _STALE_LOCK_S:
                    log.warning("%s was left by a process that died; removed", lock)
                    lock.unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def _git(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
        return _git(self._folder, *arguments, stdin=stdin, check=check)


def is_revision(text: str) -> bool:
    """Whether this is a full commit hash or a version's tag."""
    return re.fullmatch(r"[0-9a-f]{40}|v\d{6,}", text) is not None


def _git(folder: Path, *arguments: str, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run git by itself: nobody's configuration, no prompt."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_") or k in _KEPT_VARIABLES}
    environment |= {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": str(folder / ".gitconfig"),
    }
    command = ["git", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, input=stdin, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InfrastructureFault(
            ReasonCode.STORE_UNREACHABLE, f"git {arguments[0]} did not run to its end: {error}; is git installed?"
        ) from error
    if check and done.returncode != 0:
        raise _fault(f"git {arguments[0]}", done)
    return done


def _data(body: bytes) -> bytes:
    """A `data` command of fast-import."""
    return b"data %d\n%s\n" % (len(body), body)


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    return done.stderr.decode(errors="replace")


def _fault(what: str, done: subprocess.CompletedProcess[bytes]) -> InfrastructureFault:
    return InfrastructureFault(
        ReasonCode.STORE_UNREACHABLE, f"{what} failed with status {done.returncode}: {_said(done).strip()[:500]}"
    )
