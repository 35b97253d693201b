"""Dataset versions without stores: DVC's bytes, the cache, what is refused, git by itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from aifactory.datasets import DatasetRepository, DatasetVersion, Partition, _Cache, _index, manifest
from aifactory.errors import InfrastructureFault
from aifactory.git import BRANCH, Remote, is_revision
from aifactory.settings import Settings
from aifactory.store import Store

DAYS = {
    "2026-03-02": Partition("b" * 32, 20, 200),
    "2026-03-01": Partition("a" * 32, 10, 100),
}


def test_the_manifest_is_the_one_that_dvc_data_builds() -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for day, partition in DAYS.items():
        tree.add((f"date={day}.parquet",), None, HashInfo("md5", partition.md5))
    tree.digest()
    assert manifest(DAYS) == tree.as_bytes()
    assert f"{hashlib.md5(manifest(DAYS)).hexdigest()}.dir" == tree.oid


def test_the_index_is_json_with_a_line_for_each_partition() -> None:
    text = _index(7, "c" * 32, DAYS)
    read = json.loads(text)
    assert (read["number"], read["dir_md5"]) == (7, "c" * 32)
    assert {day: Partition(**each) for day, each in read["partitions"].items()} == DAYS
    assert sum("2026-03-0" in row for row in text.splitlines()) == 2


def test_a_version_adds_up_its_partitions() -> None:
    version = DatasetVersion("r" * 40, 7, "c" * 32, DAYS)
    assert (version.tag, version.num_partitions, version.num_rows, version.size) == ("v000007", 2, 30, 300)
    assert version.days == ["2026-03-01", "2026-03-02"]


@pytest.mark.parametrize("day", ["2026-3-1", "../2026-03-01", "2026-03-01.parquet", ""])
def test_a_partition_that_is_not_a_day_is_refused(tmp_path: Path, day: str) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    repository = DatasetRepository(settings, "any", Store(settings, "bucket"))
    with pytest.raises(ValueError, match="YYYY-MM-DD"):
        repository.commit({day: b""}, "m")
    with pytest.raises(ValueError, match="both"):
        repository.commit({"2026-03-01": b""}, "m", removed=["2026-03-01"])


@pytest.mark.parametrize(
    ("text", "good"),
    [("a" * 40, True), ("v000012", True), ("main", False), ("--upload-pack=x", False), ("a" * 7, False)],
)
def test_a_revision_is_a_whole_hash_or_a_tag(text: str, good: bool) -> None:
    assert is_revision(text) is good


# --- the cache
def test_the_cache_gives_back_what_matches_its_hash_alone(tmp_path: Path) -> None:
    cache, body = _Cache(tmp_path / "cache", 1000), b"partition"
    md5 = hashlib.md5(body).hexdigest()
    assert cache.get(md5) is None
    cache.put(md5, body)
    assert cache.get(md5) == body
    (tmp_path / "cache" / md5).write_bytes(b"partitioN")
    assert cache.get(md5) is None


def test_the_cache_keeps_its_size_and_what_was_used_last(tmp_path: Path) -> None:
    cache = _Cache(tmp_path, 250)
    bodies = {hashlib.md5(text * 100).hexdigest(): text * 100 for text in (b"a", b"b", b"c")}
    for age, (md5, body) in enumerate(bodies.items()):
        cache.put(md5, body)
        os.utime(tmp_path / md5, (1000 + age, 1000 + age))
    oldest, middle, newest = bodies
    assert cache.get(oldest) is not None
    cache.prune()
    assert {p.name for p in tmp_path.iterdir()} == {oldest, newest}
    assert cache.get(middle) is None


def test_no_cache_where_its_size_is_nothing(tmp_path: Path) -> None:
    cache = _Cache(tmp_path / "cache", 0)
    cache.put("a" * 32, b"x")
    cache.prune()
    assert not (tmp_path / "cache").exists()


# --- git
@pytest.fixture(params=["folder", "url"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """A repository as a folder, whose objects are borrowed, and as a URL, which is fetched from."""
    folder = tmp_path / "shared" / "one.git"
    Remote(str(folder)).init()
    return Remote(str(folder) if request.param == "folder" else folder.as_uri())


def commit(remote: Remote, text: str, tag: str) -> str:
    with remote.scratch() as scratch:
        parent = scratch.fetch(BRANCH)
        made = scratch.write(parent, {"folder/a.txt": text.encode()}, f"{tag}: {text}")
        assert scratch.push(made, parent, {tag: made})
    return made


def test_commits_are_found_by_branch_tag_and_hash(remote: Remote) -> None:
    with remote.scratch() as scratch:
        assert scratch.fetch(BRANCH) is None
        assert scratch.log(9) == []
    first, second = commit(remote, "one", "v000001"), commit(remote, "two", "v000002")
    with remote.scratch() as scratch:
        assert scratch.fetch(BRANCH) == second
        assert scratch.fetch("v000001") == scratch.fetch(first) == first
        assert scratch.fetch("v000009") is None
        assert scratch.fetch("1" * 40) is None
        assert scratch.read(first, ["none", "folder/a.txt"]) == {"folder/a.txt": b"one"}
    with remote.scratch() as scratch:
        told = scratch.log(9)
        assert [(c.revision, c.subject) for c in told] == [(second, "v000002: two"), (first, "v000001: one")]
        assert abs(told[0].at - time.time()) < 600


def test_what_a_commit_does_not_name_stays(remote: Remote) -> None:
    with remote.scratch() as scratch:
        made = scratch.write(None, {"README": b"by hand", "a": b"1"}, "m")
        scratch.push(made, None, {})
        later = scratch.write(made, {"a": b"2"}, "m")
        assert scratch.read(later, ["README", "a"]) == {"README": b"by hand", "a": b"2"}


def test_the_push_is_a_compare_and_swap_with_all_its_tags(remote: Remote) -> None:
    first = commit(remote, "one", "v000001")
    with remote.scratch() as scratch:
        assert scratch.fetch(BRANCH) == first
        mine = scratch.write(first, {"a": b"mine"}, "v000002: mine")
        theirs = commit(remote, "theirs", "v000002")
        assert scratch.push(mine, first, {"v000002": mine, "extra": mine}) is False
        assert scratch.fetch(BRANCH) == scratch.fetch("v000002") == theirs
        assert scratch.fetch("extra") is None


def test_a_first_push_does_not_overwrite_anothers_first(remote: Remote) -> None:
    with remote.scratch() as scratch:
        mine = scratch.write(None, {"a": b"mine"}, "m")
        theirs = commit(remote, "theirs", "v000001")
        assert scratch.push(mine, None, {"v000001": mine}) is False
        assert scratch.fetch(BRANCH) == theirs


def test_a_lock_whose_holder_died_is_removed_and_a_live_one_is_not(remote: Remote, tmp_path: Path) -> None:
    first = commit(remote, "one", "v000001")
    lock = tmp_path / "shared" / "one.git" / "refs" / "heads" / "main.lock"
    lock.touch()
    with remote.scratch() as scratch:
        assert scratch.fetch(BRANCH) == first
        made = scratch.write(first, {"a": b"2"}, "m")
        assert scratch.push(made, first, {}) is False
        assert lock.exists()
        os.utime(lock, (1000, 1000))
        assert scratch.push(made, first, {}) is False
        if remote.folder is None:
            assert lock.exists()
            return
        assert not lock.exists()
        assert scratch.push(made, first, {}) is True


def test_nobodys_configuration_is_used(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitconfig").write_text("[user\nthis is broken")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    made = commit(remote, "one", "v000001")
    monkeypatch.undo()
    folder = tmp_path / "shared" / "one.git"
    told = subprocess.run(
        ["git", "-C", folder, "log", "-1", "--format=%an <%ae>", made], check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == "AI factory <factory@localhost>"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another account")
def test_a_repository_of_another_account_is_used(remote: Remote, tmp_path: Path) -> None:
    commit(remote, "one", "v000001")
    for path in [tmp_path / "shared" / "one.git", *(tmp_path / "shared" / "one.git").rglob("*")]:
        os.chown(path, 12345, 12345)
    commit(remote, "two", "v000002")


def test_making_a_repository_at_once_makes_one(tmp_path: Path) -> None:
    remotes = [Remote(str(tmp_path / "r.git")) for _ in range(6)]
    threads = [threading.Thread(target=each.init) for each in remotes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    commit(remotes[0], "one", "v000001")
    assert [p.name for p in tmp_path.iterdir()] == ["r.git"]


def test_a_repository_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    with (
        Remote((tmp_path / "none.git").as_uri()).scratch() as scratch,
        pytest.raises(InfrastructureFault, match="fetch"),
    ):
        scratch.fetch(BRANCH)


def test_cleaning_up_keeps_every_version(tmp_path: Path) -> None:
    remote = Remote(str(tmp_path / "r.git"))
    remote.init()
    made = [commit(remote, str(n), f"v00000{n}") for n in range(1, 4)]
    remote.clean_up()
    assert not list((tmp_path / "r.git" / "objects").glob("[0-9a-f][0-9a-f]/*"))
    with remote.scratch() as scratch:
        assert [scratch.fetch(f"v00000{n}") for n in range(1, 4)] == made
