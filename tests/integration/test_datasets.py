"""Dataset versions in real git and S3: the stock DVC agrees, writers race, writers die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aifactory.datasets import DatasetRepository
from aifactory.errors import DatasetDefect, InfrastructureFault
from aifactory.factory import Factory
from aifactory.git import Remote, Scratch
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings
from aifactory.store import Store, parquet_bytes

pytestmark = pytest.mark.integration

DIED = 9


@pytest.fixture
def repository(factory: Factory) -> DatasetRepository:
    return repository_of(factory)


def repository_of(factory: Factory, line: str = "one") -> DatasetRepository:
    """A repository with a cache of its own, so that no test reads what another has read."""
    home = Path(factory.settings.dataset_git_root).parent / "home"
    settings = factory.settings.model_copy(update={"home": home})
    return DatasetRepository(settings, line, Store(settings, settings.factory_bucket))


def table(day: str, num_rows: int = 3, **more: Any) -> pa.Table:
    return pa.table({"date": [day] * num_rows, "value": [float(n) for n in range(num_rows)], **more})


def body(day: str, num_rows: int = 3, **more: Any) -> bytes:
    return parquet_bytes(table(day, num_rows, **more))


def object_of(repository: DatasetRepository, md5: str) -> str:
    return f"dvc/{repository.line}/files/md5/{md5[:2]}/{md5[2:]}"


# --- versions
def test_versions_grow_and_the_old_ones_stay_as_they_were(repository: DatasetRepository) -> None:
    assert repository.latest() is None
    assert repository.log() == []
    first = repository.commit({"2026-03-02": body("2026-03-02"), "2026-03-01": body("2026-03-01", 5)}, "two days")
    then = repository.read(first.revision)
    second = repository.commit({"2026-03-01": body("2026-03-01", 9), "2026-03-03": body("2026-03-03")}, "corrected")
    third = repository.commit({}, "too old", removed=["2026-03-02", "2020-01-01"])

    assert [v.tag for v in (first, second, third)] == ["v000001", "v000002", "v000003"]
    assert (first.num_partitions, first.num_rows) == (2, 8)
    assert second.days == repository.days("v000002") == ["2026-03-01", "2026-03-02", "2026-03-03"]
    assert third.days == ["2026-03-01", "2026-03-03"]
    assert third.num_rows == 12
    assert repository.latest() == third
    assert repository.version(first.revision) == repository.version("v000001") == first
    assert repository.read(first.revision).equals(then)
    assert then.column("date").to_pylist() == ["2026-03-01"] * 5 + ["2026-03-02"] * 3
    assert [c.subject for c in repository.log(2)] == ["v000003: too old", "v000002: corrected"]
    assert repository.log(2)[0].revision == third.revision
    before, after = repository.content(first.revision), repository.content(second.revision)
    assert before["2026-03-02"] == after["2026-03-02"]
    assert before["2026-03-01"] != after["2026-03-01"]


def test_equal_content_makes_no_new_version(repository: DatasetRepository) -> None:
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "once")
    assert repository.commit({"2026-03-01": body("2026-03-01")}, "again") == first
    assert repository.commit({}, "nothing there", removed=["2020-01-01"]) == first
    assert len(repository.log()) == 1


def test_a_staged_object_is_committed_as_it_is(repository: DatasetRepository) -> None:
    repository.store.put("staging/one/r/date=2026-03-01.parquet", body("2026-03-01"))
    staged = repository.commit({"2026-03-01": "staging/one/r/date=2026-03-01.parquet"}, "staged")
    assert repository.read(staged.revision).equals(table("2026-03-01"))
    assert repository.commit({"2026-03-01": body("2026-03-01")}, "the same bytes") == staged


def test_what_is_no_dataset_is_refused_and_changes_nothing(repository: DatasetRepository) -> None:
    with pytest.raises(DatasetDefect) as empty:
        repository.commit({}, "nothing")
    assert empty.value.reason is ReasonCode.DATASET_TOO_SMALL
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    with pytest.raises(DatasetDefect, match="not parquet") as broken:
        repository.commit({"2026-03-02": body("2026-03-02")[:-9]}, "truncated")
    assert broken.value.reason is ReasonCode.DATASET_CORRUPT
    with pytest.raises(DatasetDefect):
        repository.commit({}, "everything", removed=["2026-03-01"])
    assert repository.latest() == first


@pytest.mark.parametrize("revision", ["v000099", "0" * 40, "main", "HEAD", "--all", ""])
def test_an_unknown_version_is_a_defect(repository: DatasetRepository, revision: str) -> None:
    repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    with pytest.raises(DatasetDefect, match="no version"):
        repository.read(revision)


# --- reading
def test_days_and_columns_are_chosen(repository: DatasetRepository) -> None:
    days = [f"2026-03-{n:02d}" for n in range(1, 13)]
    revision = repository.commit({day: body(day, n + 1) for n, day in enumerate(days)}, "many").revision
    chosen = repository.read(revision, days=[days[7], days[2]], columns=["value", "date"])
    assert chosen.column_names == ["value", "date"]
    assert chosen.column("date").to_pylist() == [days[2]] * 3 + [days[7]] * 8
    assert repository.read(revision).num_rows == sum(range(1, 13))
    with pytest.raises(DatasetDefect, match="2026-04-01"):
        repository.read(revision, days=["2026-04-01"])
    with pytest.raises(DatasetDefect, match="none was asked"):
        repository.read(revision, days=[])
    with pytest.raises(DatasetDefect, match="no column nothing") as missing:
        repository.read(revision, columns=["value", "nothing"])
    assert missing.value.reason is ReasonCode.COLUMN_MISSING


def test_a_column_that_came_later_is_null_before(repository: DatasetRepository) -> None:
    new = body("2026-03-02", 2, added=pa.array([1.5, 2.5]))
    revision = repository.commit({"2026-03-01": body("2026-03-01", 1), "2026-03-02": new}, "new feature").revision
    assert repository.read(revision, columns=["added"]).column("added").to_pylist() == [None, 1.5, 2.5]
    text = parquet_bytes(pa.table({"date": ["2026-03-03"], "value": ["text"]}))
    revision = repository.commit({"2026-03-03": text}, "other type").revision
    with pytest.raises(DatasetDefect, match="different types"):
        repository.read(revision)


@pytest.mark.parametrize("harm", ["altered", "gone"])
def test_content_that_does_not_match_its_hash_is_never_read(repository: DatasetRepository, harm: str) -> None:
    version = repository.commit({"2026-03-01": body("2026-03-01"), "2026-03-02": body("2026-03-02")}, "two")
    key = object_of(repository, version.partitions["2026-03-01"].md5)
    if harm == "altered":
        repository.store.put(key, body("2026-03-01", 4))
    else:
        repository.store.delete(key)
    with pytest.raises(DatasetDefect) as corrupt:
        repository.read(version.revision)
    assert corrupt.value.reason is ReasonCode.DATASET_CORRUPT
    assert repository.read(version.revision, days=["2026-03-02"]).num_rows == 3


def test_what_was_read_once_is_read_from_the_disk(repository: DatasetRepository) -> None:
    version = repository.commit({"2026-03-01": body("2026-03-01", 7)}, "one")
    first = repository.read(version.revision)
    repository.store.delete(object_of(repository, version.partitions["2026-03-01"].md5))
    assert repository.read(version.revision).equals(first)
    elsewhere = repository.settings.model_copy(update={"dataset_cache_mb": 0, "home": repository.settings.home / "b"})
    with pytest.raises(DatasetDefect):
        DatasetRepository(elsewhere, repository.line, repository.store).read(version.revision)


def test_a_dead_store_is_a_fault_and_leaves_the_last_version(repository: DatasetRepository) -> None:
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    dead = repository.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    broken = DatasetRepository(dead, repository.line, Store(dead, repository.store.bucket))
    with pytest.raises(InfrastructureFault):
        broken.commit({"2026-03-02": body("2026-03-02")}, "two")
    assert repository.latest() == first


# --- the stock tool
class Stock:
    """A clone worked on by git and dvc as anybody would install them."""

    def __init__(self, folder: Path, repository: DatasetRepository, settings: Settings) -> None:
        self.folder = folder
        keys = {
            "AWS_ACCESS_KEY_ID": settings.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key.get_secret_value(),
        }
        self.environment = {**os.environ, **keys, "DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(folder / "g")}
        subprocess.run(["git", "clone", "--quiet", repository.url, folder], check=True)

    def dvc(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"dvc {arguments}: {done.stdout} {done.stderr}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True, text=True).stdout


def test_the_stock_dvc_agrees(repository: DatasetRepository, tmp_path: Path) -> None:
    days = ["2026-03-01", "2026-03-02", "2026-03-03"]
    first = repository.commit({day: body(day) for day in days}, "three days")
    second = repository.commit(
        {"2026-03-02": body("2026-03-02", 8), "2026-03-04": body("2026-03-04")}, "changes", removed=["2026-03-01"]
    )
    stock = Stock(tmp_path / "clone", repository, repository.settings)

    stock.dvc("pull")
    here = {p.name: p.read_bytes() for p in (stock.folder / "data").iterdir()}
    assert here == {
        "date=2026-03-02.parquet": body("2026-03-02", 8),
        "date=2026-03-03.parquet": body("2026-03-03"),
        "date=2026-03-04.parquet": body("2026-03-04"),
    }
    assert json.loads(stock.dvc("status", "--json")) == {}
    assert json.loads(stock.dvc("status", "--cloud", "--json")) == {}

    stock.dvc("fetch", "--all-commits")
    changes = json.loads(stock.dvc("diff", "--json", first.revision, second.tag))
    named = {kind: sorted(each["path"] for each in changes[kind]) for kind in ("added", "deleted", "modified")}
    assert named == {
        "added": ["data/date=2026-03-04.parquet"],
        "deleted": ["data/date=2026-03-01.parquet"],
        "modified": ["data/", "data/date=2026-03-02.parquet"],
    }

    stock.dvc("commit", "--force")  # the tool hashes the folder itself and writes its own data.dvc
    assert stock.git("status", "--porcelain") == ""

    stock.git("checkout", "--quiet", first.revision)
    stock.dvc("checkout")
    pulled = pa.concat_tables(pq.read_table(p) for p in sorted((stock.folder / "data").glob("*.parquet")))
    assert pulled.select(["date", "value"]).equals(repository.read(first.revision))
    assert f"{first.dir_md5}.dir" in (stock.folder / "data.dvc").read_text()


def test_no_key_is_in_git(repository: DatasetRepository, tmp_path: Path) -> None:
    repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    stock = Stock(tmp_path / "clone", repository, repository.settings)
    everything = stock.git("log", "--patch", "--all")
    assert "endpointurl" in everything
    assert repository.settings.s3_access_key not in everything
    assert repository.settings.s3_secret_key.get_secret_value() not in everything


def test_content_committed_past_the_factory_is_noticed(repository: DatasetRepository, tmp_path: Path) -> None:
    repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    stock = Stock(tmp_path / "clone", repository, repository.settings)
    named = (stock.folder / "data.dvc").read_text()
    (stock.folder / "data.dvc").write_text(named.replace("md5: ", "md5: 0", 1))
    stock.git("-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "-am", "by hand")
    stock.git("push", "--quiet", "origin", "main")
    with pytest.raises(DatasetDefect, match="name different content"):
        repository.latest()


# --- writers at once
def in_child(work: Callable[[], object]) -> int:
    """Run in a process of its own; its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # a fork must not run the rest of the test
            os._exit(1)
        os._exit(0)
    return child


def exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_eight_writers_of_two_lines_lose_nothing(factory: Factory) -> None:
    days = [f"2026-03-{n:02d}" for n in range(1, 7)]
    jobs = [("one", day) for day in days] + [("two", day) for day in days[:2]]

    def job(line: str, day: str) -> Callable[[], object]:
        return lambda: repository_of(factory, line).commit({day: body(day)}, day)

    children = [in_child(job(line, day)) for line, day in jobs]
    assert [exit_status(child) for child in children] == [0] * 8
    one, two = repository_of(factory, "one"), repository_of(factory, "two")
    latest = one.latest()
    assert latest is not None
    assert (latest.days, latest.tag) == (days, "v000006")
    assert one.read(latest.revision).num_rows == 18
    told = one.log()
    assert sorted(c.subject.split()[1] for c in told) == days
    assert [one.version(f"v{n:06d}").revision for n in range(6, 0, -1)] == [c.revision for c in told]
    assert two.days("v000002") == days[:2]


# --- writers that die
STEPS: dict[str, tuple[type, str]] = {
    "data": (DatasetRepository, "_upload"),
    "manifest": (DatasetRepository, "_put_manifest"),
    "commit": (Scratch, "write"),
    "push": (Scratch, "push"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_dies_between_two_steps_leaves_a_valid_version(
    factory: Factory, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    repository = repository_of(factory)
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    rows = repository.read(first.revision)
    owner, name = STEPS[step]
    original = getattr(owner, name)

    def dies(*arguments: Any, **named: Any) -> None:
        if when == "after":
            original(*arguments, **named)
        os._exit(DIED)

    def work() -> None:
        monkeypatch.setattr(owner, name, dies)
        repository_of(factory).commit({"2026-03-02": body("2026-03-02")}, "two")

    assert exit_status(in_child(work)) == DIED
    latest = repository.latest()
    assert latest is not None
    assert latest.days == (["2026-03-01", "2026-03-02"] if (step, when) == ("push", "after") else ["2026-03-01"])
    assert repository.read(first.revision).equals(rows)
    again = repository.commit({"2026-03-02": body("2026-03-02")}, "two")
    assert (again.tag, again.days) == ("v000002", ["2026-03-01", "2026-03-02"])
    assert repository.read(again.revision).num_rows == 6


@pytest.mark.parametrize("left", ["branch without its tag", "tag without its branch"])
def test_half_a_push_is_healed_by_the_next_version(repository: DatasetRepository, left: str) -> None:
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    second = repository.commit({"2026-03-02": body("2026-03-02")}, "two")
    if left == "branch without its tag":
        subprocess.run(["git", "-C", repository.url, "tag", "--delete", second.tag], check=True, capture_output=True)
        third = repository.commit({"2026-03-03": body("2026-03-03")}, "three")
        assert repository.version("v000002") == second
        assert third.tag == "v000003"
    else:
        subprocess.run(["git", "-C", repository.url, "update-ref", "refs/heads/main", first.revision], check=True)
        third = repository.commit({"2026-03-03": body("2026-03-03")}, "three")
        assert repository.version("v000002") == third
        assert third.days == ["2026-03-01", "2026-03-03"]
    assert repository.latest() == third


def test_the_repository_packs_itself_now_and_then(
    repository: DatasetRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aifactory.datasets._VERSIONS_A_PACK", 3)
    made = [repository.commit({"2026-03-01": body("2026-03-01", n)}, str(n)) for n in (1, 2, 3)]
    assert list(Path(repository.url).glob("objects/pack/*.pack"))
    assert [repository.version(each.revision) for each in made] == made


def test_a_repository_that_is_a_url_works_alike(factory: Factory, tmp_path: Path) -> None:
    Remote(str(tmp_path / "served" / "one.git")).init()
    settings = factory.settings.model_copy(update={"dataset_git_root": (tmp_path / "served").as_uri()})
    repository = DatasetRepository(settings, "one", Store(settings, settings.factory_bucket))
    assert repository.latest() is None
    first = repository.commit({"2026-03-01": body("2026-03-01")}, "one")
    second = repository.commit({"2026-03-02": body("2026-03-02")}, "two")
    assert repository.latest() == second
    assert repository.version("v000001") == first
    assert repository.read(second.revision).num_rows == 6
    assert [c.revision for c in repository.log()] == [second.revision, first.revision]


# --- without git
def test_a_program_that_reaches_no_git_reads_the_same_rows(repository: DatasetRepository) -> None:
    version = repository.commit({"2026-03-01": body("2026-03-01", 5), "2026-03-02": body("2026-03-02")}, "two days")
    elsewhere = DatasetRepository(
        repository.settings.model_copy(update={"dataset_git_root": "/nowhere"}), repository.line, repository.store
    )
    assert elsewhere.read_content(version.dir_md5).equals(repository.read(version.revision))
    assert elsewhere.read_content(version.dir_md5, ["2026-03-02"], ["value"]).num_rows == 3
    with pytest.raises(DatasetDefect, match="has no partition 2026-03-09"):
        elsewhere.read_content(version.dir_md5, ["2026-03-09"])
    with pytest.raises(DatasetDefect, match="is gone"):
        elsewhere.read_content("0" * 32)
    key = f"{object_of(repository, version.dir_md5)}.dir"
    repository.store.put(key, repository.store.get(key).replace(b"03-02", b"03-03"))
    with pytest.raises(DatasetDefect, match="does not match its hash"):
        elsewhere.read_content(version.dir_md5)
