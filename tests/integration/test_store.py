"""Objects in a real S3: atomic writes, compare-and-swap with one winner, failures told apart."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.factory import Factory
from aifactory.store import Conflict, Store

pytestmark = pytest.mark.integration


@pytest.fixture
def store(factory: Factory) -> Store:
    return factory.store


def test_what_was_put_comes_back(store: Store) -> None:
    etag = store.put("a/b.bin", b"\x00\xffbody")
    assert store.get("a/b.bin") == b"\x00\xffbody"
    assert store.get_with_etag("a/b.bin") == (b"\x00\xffbody", etag)
    info = store.head("a/b.bin")
    assert info is not None
    assert (info.key, info.size, info.etag) == ("a/b.bin", 6, etag)
    assert store.get_with_info("a/b.bin") == (b"\x00\xffbody", info)
    told = [info, store.get_with_info("a/b.bin")[1], *store.list("a/")]
    assert len({each.written_at for each in told}) == 1
    assert abs(datetime.now(UTC) - info.written_at) < timedelta(minutes=1)
    assert store.uri("a/b.bin") == f"s3://{store.bucket}/a/b.bin"
    assert store.put("a/b.bin", b"other") != etag


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.head("empty") is not None


def test_what_is_not_there_is_told_apart(store: Store) -> None:
    assert store.head("none") is None
    with pytest.raises(NotFound, match=f"s3://{store.bucket}/none"):
        store.get("none")
    store.put("gone", b"x")
    store.delete("gone")
    store.delete("gone")
    assert store.head("gone") is None


def test_listing_is_sorted_and_goes_over_pages(store: Store) -> None:
    threads = [
        threading.Thread(target=lambda part=part: [store.put(f"many/{n:04d}", b"x") for n in range(part, 1010, 8)])
        for part in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.put("other", b"x")
    assert [o.key for o in store.list("many/")] == [f"many/{n:04d}" for n in range(1010)]
    assert store.list("nothing/") == []


def test_a_conditional_write_needs_what_was_last_seen(store: Store) -> None:
    first = store.put_json("pointer.json", {"version": 1}, if_absent=True)
    with pytest.raises(Conflict):
        store.put_json("pointer.json", {"version": 9}, if_absent=True)
    second = store.put_json("pointer.json", {"version": 2}, if_match=first)
    with pytest.raises(Conflict):
        store.put_json("pointer.json", {"version": 9}, if_match=first)
    assert store.get_json("pointer.json") == {"version": 2}
    assert second != first


def test_eight_writers_of_one_key_have_one_winner(store: Store) -> None:
    won: list[int] = []
    lost: list[int] = []
    gate = threading.Barrier(8)

    def write(number: int) -> None:
        gate.wait()
        try:
            store.put("once", str(number).encode(), if_absent=True)
        except Conflict:
            lost.append(number)
        else:
            won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert store.get("once") == str(won[0]).encode()


def test_equal_values_are_equal_objects(store: Store) -> None:
    assert store.put_json("a", {"x": 1, "y": [2]}) == store.put_json("b", {"y": [2], "x": 1})
    table = pa.table({"n": [1, 2, None], "t": ["a", None, "c"]})
    assert store.put_table("t", table) == store.put_table("u", pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert store.get_table("t").equals(table)
    assert store.get_table("t", ["t"]).column_names == ["t"]


def test_a_store_that_does_not_answer_is_a_fault(factory: Factory) -> None:
    dead = factory.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(InfrastructureFault, match="make status") as failed:
        Store(dead, "any").get("key")
    assert not isinstance(failed.value, NotFound)


def test_a_wrong_key_is_a_fault_and_shows_no_secret(factory: Factory) -> None:
    wrong = Store(factory.settings, factory.settings.factory_bucket, access_key="nobody", secret_key="quite-secret")
    with pytest.raises(InfrastructureFault) as failed:
        wrong.put("key", b"x")
    assert "quite-secret" not in str(failed.value)
