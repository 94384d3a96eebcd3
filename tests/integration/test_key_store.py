"""The keys of persons on a file and on a server: made once, rotated, destroyed, away."""

from __future__ import annotations

import asyncio
import base64
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from saga.personal import Forgotten, Unsealable, keystore, sealed
from saga.personal.keystore import (
    AHEAD_MAX,
    AHEAD_SECONDS,
    KeyStore,
    KeyStoreAway,
    KeyStoreError,
    UnknownPerson,
)
from saga.personal.master import MasterKeyError, MasterKeys
from saga.personal.opening import made_key, master_keys, open_store
from saga.personal.persons import Persons, SealingAway, _Batcher
from saga.personal.seal import person_id_in
from saga.runtime.kernel import sqlite
from saga.runtime.settings import HttpSettings, PersonalSettings, load
from saga.runtime.urls import sqlite_url
from tests.command import saga
from tests.polling import until

Open = Callable[..., KeyStore]


def master_key() -> str:
    return base64.b64encode(os.urandom(48)).decode()


ONE, OTHER = MasterKeys.of(KEY := master_key(), "here"), MasterKeys.of(master_key(), "there")


@pytest.fixture
def opened(database_url: str) -> Iterator[Open]:
    """Opens the store, as each process does."""
    stores: list[KeyStore] = []

    def open_it(keys: MasterKeys = ONE, cache_seconds: float = 30.0) -> KeyStore:
        stores.append(KeyStore.open_store(database_url, keys, cache_seconds=cache_seconds))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def test_processes_seal_alike_and_open_each_others(opened: Open) -> None:
    one, other = opened(), opened()

    assert one.seal("anna") == other.seal("anna") != one.seal("ben")
    assert other.open(one.seal("anna")) == "anna"
    assert other.seal(one.seal("anna")) == one.seal("anna")
    assert one.person_of("anna") == one.person_of(one.seal("anna"))
    assert one.person_of("nobody") is one.sealed_of("nobody") is None


def test_looking_somebody_up_makes_nobody_even_where_they_are_forgotten_meanwhile(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, elsewhere = opened(cache_seconds=0.0), opened()
    person_id = store.person_of(store.seal("anna"))
    assert person_id is not None
    find = store._database.find

    def found(column: Any, values: Sequence[Any]) -> Any:
        rows = find(column, values)
        elsewhere.forget(person_id, "asked")
        return rows

    monkeypatch.setattr(store._database, "find", found)
    assert store.sealed_of("anna") is not None

    assert len([*elsewhere.persons()]) == 1
    assert elsewhere.person_of("anna") is None


async def test_where_nothing_is_sealed_no_key_is_waited_for(tmp_path: Path) -> None:
    text = f"~1.{'a' * 22}.{'b' * 24}"
    async with Persons(load(PersonalSettings, data_dir=tmp_path, personal="off")) as persons:
        with pytest.raises(Unsealable, match="nothing is sealed here"):
            await persons.open(text)
        with pytest.raises(Unsealable, match="nothing is sealed here"):
            await persons.open_now(text)


def test_who_is_new_to_several_at_once_gets_one_key(opened: Open) -> None:
    stores = [opened(cache_seconds=0.0) for _ in range(4)]
    names = [f"customer {number}" for number in range(50)]

    with ThreadPoolExecutor(len(stores)) as threads:
        found = list(threads.map(lambda store: store.seal_all(names), stores))

    assert all(each == found[0] for each in found)
    assert len([*stores[0].persons()]) == len(names)


def test_a_forgotten_persons_values_cannot_be_opened_by_anybody(opened: Open) -> None:
    one, other = opened(), opened(cache_seconds=0.0)
    text = one.seal("anna")
    person = one.person_of("anna")
    assert person is not None
    assert other.open(text) == "anna"

    forgotten = one.forget(person, "asked to")

    for store in (one, other, opened()):
        with pytest.raises(Forgotten, match="asked to") as error:
            store.open(text)
        assert error.value.person_id == person
    assert one.forget(person, "again") == forgotten
    assert one.seal("anna") != text  # A new person.
    with pytest.raises(UnknownPerson):
        one.forget("nobody", "asked to")


def test_a_key_is_not_used_for_longer_than_it_may_be(opened: Open) -> None:
    one, other = opened(), opened(cache_seconds=30.0)
    text = other.seal("anna")
    person = other.person_of("anna")
    assert person is not None
    other._clear.clear()
    assert other.open(text) == "anna"  # So its key is known as well,
    other._sealed.clear()
    assert other.seal("anna") == text  # and what was sealed.

    one.forget(person, "asked to")

    assert other.open(text) == "anna"  # Within the time that is said.
    for cache in (other._known, other._clear, other._sealed):
        assert cache._found
        cache._seconds = -1.0
        for key, (_, value) in [*cache._found.items()]:
            cache.put(key, value, 0.0)  # As if late.
    with pytest.raises(Forgotten):
        other.open(text)


def test_rotation_wraps_every_key_anew_and_opens_what_was_sealed(opened: Open) -> None:
    before = opened()
    texts = before.seal_all([f"customer {number}" for number in range(1_200)])
    newest = master_key()
    both = MasterKeys.of(f"{newest}  # of today\n\n{KEY}\n", "here")

    with pytest.raises(MasterKeyError, match=ONE.newest_id):
        opened(MasterKeys.of(newest, "here"))
    id, count = opened(both).rotate()

    assert (id, count) == (both.newest_id, 1_201)  # And the key that persons are looked up by.
    after = opened(MasterKeys.of(newest, "here"))
    assert after.wrapped_by() == {both.newest_id: 1_200}
    assert all(after.open(text) == name for name, text in texts.items())
    assert after.seal_all(texts) == texts
    assert after.rotate() == (both.newest_id, 0)


def test_another_master_key_is_an_error_that_names_both(opened: Open) -> None:
    opened().seal("anna")

    with pytest.raises(MasterKeyError) as error:
        opened(OTHER)

    assert ONE.newest_id in str(error.value)
    assert OTHER.newest_id in str(error.value)


def test_what_another_store_sealed_is_told_apart(opened: Open, tmp_path: Path) -> None:
    elsewhere = KeyStore.open_store(sqlite_url(tmp_path / "elsewhere.db"), ONE)
    text = elsewhere.seal("anna")
    elsewhere.close()

    with pytest.raises(Unsealable, match="knows no person of that id"):
        opened().open(text)


def test_a_destroyed_key_is_in_no_file_any_more(tmp_path: Path) -> None:
    store = KeyStore.open_store(sqlite_url(tmp_path / "persons.db"), ONE)
    store.seal("anna")
    person = str(store.person_of("anna"))
    with closing(sqlite3.connect(tmp_path / "persons.db")) as connection:
        ((digest, wrapped),) = connection.execute("SELECT digest, wrapped FROM persons")

    def holding(data: bytes) -> list[str]:
        return [file.name for file in tmp_path.iterdir() if data in file.read_bytes()]

    assert holding(wrapped)
    assert holding(digest)
    store.forget(person, "asked to")

    assert holding(wrapped) == holding(digest) == []
    store.close()


def test_a_file_that_is_taken_away_is_away_and_not_made_anew(tmp_path: Path) -> None:
    file = tmp_path / "persons.db"
    store = KeyStore.open_store(sqlite_url(file), ONE)
    store.seal("anna")
    file.rename(tmp_path / "aside.db")

    with pytest.raises(KeyStoreAway, match="no longer the file"):
        store.seal("ben")
    assert sealed(store.seal("anna"))  # It is known.
    (tmp_path / "aside.db").rename(file)
    assert store.open(store.seal("ben")) == "ben"
    store.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("# nothing\n", "holds no key"),
        ("not base64!", "key 1 in here is not base64"),
        (base64.b64encode(b"short").decode(), "has 5 bytes"),
        ("\n".join(master_key() for _ in range(17)), "holds 17 keys"),
    ],
)
def test_a_master_key_that_is_none_is_named_without_being_quoted(text: str, why: str) -> None:
    with pytest.raises(MasterKeyError, match=why) as error:
        MasterKeys.of(text, "here")

    assert text.strip() not in str(error.value)


def test_the_master_key_comes_from_a_file_or_from_the_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MasterKeyError, match="PERSONAL_KEY_FILE"):
        master_keys(load(PersonalSettings, data_dir=tmp_path))
    file = made_key(tmp_path)
    assert made_key(tmp_path).read_text() == file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    from_file = master_keys(load(PersonalSettings, data_dir=tmp_path))
    (tmp_path / "personal_key").write_text(master_key())
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))

    assert master_keys(load(PersonalSettings, data_dir=tmp_path)).ids != from_file.ids
    assert KEY not in repr(load(PersonalSettings, personal_key=KEY))


async def test_many_who_come_at_once_share_transactions(tmp_path: Path) -> None:
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    groups: list[int] = []

    class Counting(KeyStore):
        def seal_all(self, values: object) -> dict[str, str]:
            names = list(values)  # type: ignore[call-overload]  # of texts
            groups.append(len(names))
            return super().seal_all(names)

    def open_it() -> KeyStore:
        url = sqlite_url(tmp_path / "persons.db")
        return Counting.open_store(url, master_keys(settings))

    async with Persons(settings, open_it) as persons:
        names = [f"customer {number}" for number in range(100)]
        found = await asyncio.gather(*(persons.seal([name, name]) for name in names))

    assert {name for each in found for name in each} == set(names)
    assert sum(groups) == len(names)
    assert len(groups) < 10


class TellsThreads(KeyStore):
    """Notes in which threads it is asked, as far as they are answered."""

    threads: ClassVar[list[int]]

    def seal_all(self, values: Iterable[str]) -> dict[str, str]:
        found = super().seal_all(values)
        self.threads.append(threading.get_ident())
        return found

    def open_all(self, values: Iterable[str]) -> dict[str, str]:
        found = super().open_all(values)
        self.threads.append(threading.get_ident())
        return found


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine's is."""
    for name in ("QUICK_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(sqlite, name, 60)


@pytest.fixture
async def watched(tmp_path: Path, quick_disk: None) -> AsyncIterator[tuple[Persons, list[int]]]:
    """Access to a store in a file, and the threads in which that is asked."""
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    TellsThreads.threads = []

    def open_it() -> KeyStore:
        return TellsThreads.open_store(sqlite_url(tmp_path / "persons.db"), master_keys(settings))

    async with Persons(settings, open_it) as persons:
        await persons.check()
        yield persons, TellsThreads.threads


async def test_a_file_is_asked_without_a_thread_while_nobody_else_writes(
    watched: tuple[Persons, list[int]], tmp_path: Path
) -> None:
    persons, threads = watched
    here = threading.get_ident()
    await persons.seal(["anna"])
    with closing(open_store(persons.settings)) as elsewhere:
        text = elsewhere.seal("ben")
    assert await persons.open_now(text) == "ben"
    assert threads == [here, here]

    with closing(sqlite3.connect(tmp_path / "persons.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sealing = asyncio.create_task(persons.seal(["carol"]))
        for _ in range(20):  # The loop goes on meanwhile.
            await asyncio.sleep(0.005)
        assert not sealing.done()
        other.execute("ROLLBACK")
        sealed_by_name = await sealing
    assert await persons.open_now(sealed_by_name["carol"]) == "carol"
    assert len(threads) == 3
    assert threads[-1] != here

    await persons.seal(["dora"])
    assert threads[-1] == here


async def test_while_a_file_stays_locked_who_is_there_is_sealed_and_who_is_new_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    with closing(open_store(settings)) as elsewhere:
        texts = elsewhere.seal_all(["anna", "ben"])
    monkeypatch.setattr(keystore, "LOCKED_SECONDS", 0.1)
    async with Persons(settings) as persons:
        await persons.seal(["carol"])  # Of whom it takes the next ones for new as well.
        with closing(sqlite3.connect(tmp_path / "persons.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                with pytest.raises(SealingAway, match="locked"):
                    await persons.seal(["dora"])
            assert await persons.seal(["anna"]) == {"anna": texts["anna"]}

            async def ben_is_sealed() -> bool:
                """Also in one group with one who is new: by the second time at the latest."""
                found = await asyncio.gather(
                    persons.seal(["ben"]), persons.seal(["emil"]), return_exceptions=True
                )
                assert isinstance(found[1], SealingAway)
                return found[0] == {"ben": texts["ben"]}

            await until(ben_is_sealed)
            other.execute("ROLLBACK")
        assert sealed((await persons.seal(["dora"]))["dora"])
    with closing(open_store(settings)) as elsewhere:
        assert len([*elsewhere.persons()]) == 4


def test_a_file_that_is_locked_is_opened_and_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = sqlite_url(tmp_path / "persons.db")
    with closing(KeyStore.open_store(url, ONE)) as store:
        text = store.seal("anna")
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.1)
    with closing(sqlite3.connect(tmp_path / "persons.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with closing(KeyStore.open_store(url, ONE)) as store:
            assert store.open(text) == "anna"
            assert store.seal("anna") == text


def test_who_comes_while_others_wait_for_a_lock_hears_why_before_the_door_gives_up() -> None:
    assert HttpSettings.model_fields["http_answer_seconds"].default > 2 * keystore.LOCKED_SECONDS


async def test_where_the_disk_is_slow_a_thread_waits_for_it(
    watched: tuple[Persons, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    persons, threads = watched
    for name in ("QUICK_SECONDS", "STALL_SECONDS", "ROW_SECONDS"):
        monkeypatch.setattr(sqlite, name, 0)

    aside = sqlite.ASIDE_MIN
    for number in range(1 + aside + 1):
        await persons.seal([f"customer {number}"])

    here = [thread == threading.get_ident() for thread in threads]
    assert here == [True] + [False] * aside + [True]


async def test_where_reading_is_slow_a_thread_waits_for_it(
    watched: tuple[Persons, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    persons, threads = watched
    with closing(open_store(persons.settings)) as elsewhere:
        texts = [elsewhere.seal(f"customer {number}") for number in range(2 + sqlite.ASIDE_MIN)]
    for name in ("QUICK_SECONDS", "STALL_SECONDS", "ROW_SECONDS"):
        monkeypatch.setattr(sqlite, name, 0)

    for text in texts:
        (await persons._ask(lambda store: store))._known.clear()
        await persons.open_now(text)

    here = [thread == threading.get_ident() for thread in threads]
    assert here == [True] + [False] * sqlite.ASIDE_MIN + [True]


async def test_what_fails_slowly_is_left_to_a_thread_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = sqlite.QuickDisk()
    with pytest.raises(OSError, match="full"), disk.timed():
        raise OSError("full")
    assert not disk.go_aside()

    monkeypatch.setattr(sqlite, "QUICK_SECONDS", 0)
    monkeypatch.setattr(sqlite, "STALL_SECONDS", 0)
    with pytest.raises(OSError, match="full"), disk.timed():
        raise OSError("full")
    assert disk.go_aside()


async def test_a_row_that_is_no_text_is_the_key_stores_trouble(
    watched: tuple[Persons, list[int]], tmp_path: Path
) -> None:
    persons, _ = watched
    with closing(open_store(persons.settings)) as elsewhere:
        text = elsewhere.seal("anna")
    with closing(sqlite3.connect(tmp_path / "persons.db")) as driver, driver:
        driver.execute("UPDATE persons SET wrapped_by = CAST(x'ff' AS TEXT)")

    with pytest.raises(SealingAway, match=r"persons\.db is away"):
        await persons.open_now(text)


@pytest.mark.usefixtures("quick_disk")
def test_a_store_is_not_closed_while_it_is_asked(tmp_path: Path) -> None:
    store = KeyStore.open_store(sqlite_url(tmp_path / "persons.db"), ONE)
    with ThreadPoolExecutor(1) as threads:
        with store.at_once():
            began = threading.Event()
            threads.submit(began.set)
            closed = threads.submit(store.close)
            began.wait()
            texts = [store.seal(f"customer {number}") for number in range(50)]
            assert not closed.done()
        closed.result(10)

    with pytest.raises(KeyStoreAway):
        store.seal("anna")
    with closing(KeyStore.open_store(sqlite_url(tmp_path / "persons.db"), ONE)) as again:
        assert [again.open(text) for text in texts][-1] == "customer 49"


async def test_what_is_asked_of_a_store_that_was_closed_finds_it_away(
    watched: tuple[Persons, list[int]],
) -> None:
    persons, _ = watched
    text = (await persons.seal(["anna"]))["anna"]
    await persons.close()

    with pytest.raises(SealingAway, match="closed"):
        await persons.seal(["ben"])
    with pytest.raises(SealingAway, match="closed"):
        await persons.open_now(text[:-1] + ("A" if text[-1] != "A" else "B"))
    with pytest.raises(SealingAway, match="closed"):
        await persons.texts_of("ben")


async def test_the_event_loop_goes_on_between_values_that_are_sealed_one_by_one(
    watched: tuple[Persons, list[int]],
) -> None:
    persons, _ = watched
    names = [f"customer {number}" for number in range(50)]
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found = await asyncio.gather(
        *(persons.seal([name]) for name in [*names, "x" * 600]), return_exceptions=True
    )
    counting.cancel()

    assert isinstance(found.pop(), ValueError)
    assert all(isinstance(each, dict) for each in found)
    assert turns >= len(names)


def test_where_nothing_can_be_written_who_is_in_the_store_is_sealed_all_the_same(
    tmp_path: Path,
) -> None:
    open_one = partial(KeyStore.open_store, sqlite_url(tmp_path / "persons.db"), ONE)
    with closing(open_one()) as one, closing(open_one()) as other:
        text = other.seal("anna")
        one.seal("ben")  # So the next one is taken for a newcomer.
        one._database._patient.execute("PRAGMA query_only = ON")  # type: ignore[attr-defined]

        with pytest.raises(KeyStoreAway, match="readonly"):
            one.seal("carol")
        assert one.seal("anna") == text


@pytest.mark.parametrize("end", ["forget", "retire"])
def test_what_was_read_before_a_person_was_forgotten_is_not_remembered_after(
    opened: Open, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    store = opened(cache_seconds=3_600.0)
    person_id = person_id_in(store.seal("anna"))
    store._sealed.clear()
    find = store._database.find

    def found(column: Any, values: Sequence[Any]) -> Any:
        rows = find(column, values)
        store.retire(person_id) if end == "retire" else store.forget(person_id, "asked")
        return rows

    monkeypatch.setattr(store._database, "find", found)
    assert store.sealed_of("anna")

    assert store.known("anna") is None


def test_where_a_destroyed_key_stays_in_the_log_it_is_not_used_all_the_same(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wipe() -> None:
        raise KeyStoreAway("the disk is full")

    store = opened(cache_seconds=3_600.0)
    text = store.seal("anna")
    monkeypatch.setattr(store._database, "wipe", wipe)
    with pytest.raises(KeyStoreAway, match="full"):
        store.forget(person_id_in(text), "asked")

    assert store.known("anna") is None
    with pytest.raises(Forgotten):
        store.open(text)


def test_who_is_forgotten_while_they_are_sealed_is_sealed_with_the_next_try(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        closing(KeyStore.open_store(postgres_url, ONE)) as store,
        closing(KeyStore.open_store(postgres_url, ONE)) as elsewhere,
    ):
        person_id = person_id_in(elsewhere.seal("anna"))
        store.seal("ben")  # So the next one is taken for a newcomer.
        find = keystore._find

        def forgotten_first(*arguments: Any) -> Any:
            elsewhere.forget(person_id, "asked")
            return find(*arguments)

        monkeypatch.setattr(keystore, "_find", forgotten_first)
        with pytest.raises(KeyStoreAway, match="was forgotten while"):
            store.seal("anna")
        assert store.person_of(store.seal("anna")) != person_id


async def test_one_value_among_others_that_takes_waiting_is_waited_for(
    watched: tuple[Persons, list[int]], tmp_path: Path
) -> None:
    persons, _ = watched
    names = ["anna", "x" * 600, "ben"]  # The second is too long.
    with closing(sqlite3.connect(tmp_path / "persons.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        sealing = asyncio.gather(*(persons.seal([name]) for name in names), return_exceptions=True)
        await asyncio.sleep(0.05)
        other.execute("ROLLBACK")
        found = await sealing

    assert isinstance(found[1], ValueError)
    for number in (0, 2):
        assert isinstance(each := found[number], dict)
        assert await persons.open_now(each[names[number]]) == names[number]


def test_who_came_before_is_found_among_newcomers(opened: Open) -> None:
    one, other = opened(), opened()
    texts = one.seal_all(["anna", "ben"])
    other.seal_all(["carol", "dora"])
    assert [other._newcomers] == [True]

    found = other.seal_all(["anna", "emil", "ben"])

    assert {name: found[name] for name in texts} == texts
    assert [other._newcomers] == [False]
    assert one.open(found["emil"]) == "emil"
    assert len([*one.persons()]) == 5


async def test_who_comes_right_after_another_waits_for_others_and_one_alone_does_not() -> None:
    groups: list[list[str]] = []

    async def ask(question: Callable[[Any], Any]) -> Any:
        return question(None)

    def about_all(_: Any, values: Iterable[str]) -> dict[str, str]:
        groups.append([*values])
        return dict.fromkeys(groups[-1], "sealed")

    batcher = _Batcher(ask, about_all, lambda _, value: value, gather_seconds=0.5)
    assert await batcher.result_of("first") == "sealed"
    assert groups == [["first"]]

    second = batcher.result_of("second")
    for _ in range(5):
        await asyncio.sleep(0)
    third = batcher.result_of("third")
    assert [await second, await third] == ["sealed", "sealed"]
    assert groups == [["first"], ["second", "third"]]
    await batcher.close()


async def test_many_that_are_opened_at_once_share_a_query_and_are_known_from_then_on(
    opened: Open, tmp_path: Path
) -> None:
    names = [f"customer {number}" for number in range(100)]
    sealer, groups = opened(), []
    texts = [*sealer.seal_all(names).values()]
    forgotten = sealer.seal("forgotten")
    person_id = sealer.person_of(forgotten)
    assert person_id is not None
    sealer.forget(person_id, "asked")
    reader = opened()
    open_all = reader.open_all

    def counting(values: Iterable[str]) -> dict[str, str]:
        groups.append([*values])
        return open_all(groups[-1])

    reader.open_all = counting  # type: ignore[method-assign]  # to count
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings, lambda: reader) as persons:
        asked = [*texts[:50], forgotten, *texts[50:]]
        found = await asyncio.gather(*map(persons.open_now, asked), return_exceptions=True)
        assert isinstance(found.pop(50), Forgotten)
        assert found == names
        assert len(groups) < 5

        groups.clear()
        assert [await persons.open(text) for text in texts] == names
        assert not groups
        with pytest.raises(Forgotten):
            await persons.open_now(forgotten)


async def test_what_was_opened_is_asked_for_again_once_its_time_is_over(
    opened: Open, tmp_path: Path
) -> None:
    sealer, reader = opened(), opened(cache_seconds=0.0)
    text = sealer.seal("anna")
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings, lambda: reader) as persons:
        assert await persons.open_now(text) == "anna"
        person_id = sealer.person_of(text)
        assert person_id is not None
        sealer.forget(person_id, "asked")

        with pytest.raises(Forgotten):
            await persons.open_now(text)
        assert await persons.texts_of("anna") == ("anna",)


async def test_where_the_process_forgets_somebody_nothing_of_theirs_is_opened_from_then_on(
    opened: Open, tmp_path: Path
) -> None:
    store = opened(cache_seconds=3_600.0)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings, lambda: store) as persons:
        text = (await persons.seal(["anna"]))["anna"]
        assert await persons.open_now(text) == "anna"
        person_id = store.person_of(text)
        assert person_id is not None
        store.forget(person_id, "asked")

        with pytest.raises(Forgotten):
            await persons.open_now(text)
        assert await persons.texts_of("anna") == ("anna",)


async def test_a_key_that_was_changed_is_no_other_persons_trouble(tmp_path: Path) -> None:
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    with closing(open_store(settings)) as sealer:
        good, bad = sealer.seal("anna"), sealer.seal("ben")
        bad_id = sealer.person_of(bad)
    with closing(sqlite3.connect(tmp_path / "persons.db")) as driver, driver:
        driver.execute("UPDATE persons SET wrapped = zeroblob(80) WHERE person_id = ?", (bad_id,))
    async with Persons(settings) as persons:
        opened, refused = await asyncio.gather(
            persons.open_now(good), persons.open_now(bad), return_exceptions=True
        )
        both = await asyncio.gather(
            persons.seal(["anna"]), persons.seal(["ben"]), return_exceptions=True
        )

    assert opened == "anna"
    assert isinstance(refused, SealingAway)
    assert both[0] == {"anna": good}
    assert isinstance(both[1], SealingAway)


async def test_a_value_that_cannot_be_sealed_is_nobody_elses_fault(tmp_path: Path) -> None:
    made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings) as persons:
        good, bad = await asyncio.gather(
            persons.seal(["anna"]), persons.seal(["x" * 600]), return_exceptions=True
        )

    assert isinstance(good, dict)
    assert isinstance(bad, ValueError)


async def test_a_store_that_was_away_is_opened_later(tmp_path: Path) -> None:
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings) as persons:
        with pytest.raises(MasterKeyError):
            await persons.check()
        with pytest.raises(SealingAway, match="PERSONAL_KEY_FILE"):
            await persons.seal(["anna"])
        made_key(tmp_path)

        assert sealed((await persons.seal(["anna"]))["anna"])


async def test_a_file_that_is_no_key_store_is_an_error_that_names_the_way_out(
    tmp_path: Path,
) -> None:
    made_key(tmp_path)
    file = tmp_path / "persons.db"
    file.write_bytes(os.urandom(5_000))
    settings = load(PersonalSettings, data_dir=tmp_path, personal="sealed")
    async with Persons(settings) as persons:
        with pytest.raises(KeyStoreError, match=r"not a database; .* put a copy of it back"):
            await persons.check()  # A service does not start.
    file.unlink()
    with closing(sqlite3.connect(file)) as another, another:
        another.execute("CREATE TABLE persons (name TEXT)")

    with closing(open_store(settings)) as store, pytest.raises(KeyStoreAway) as error:
        store.seal("anna")

    assert "name the key store in PERSONS_DATABASE_URL" in str(error.value)


def test_the_command_rotates_and_lists(tmp_path: Path) -> None:
    file = made_key(tmp_path)
    settings = load(PersonalSettings, data_dir=tmp_path)
    refused = saga("persons", "list", "--data-dir", str(tmp_path))
    assert refused.returncode == 1
    assert "there is no key store" in refused.stderr
    assert "PERSONAL=sealed" in refused.stderr
    open_store(settings).close()
    nobody = saga("persons", "list", "--data-dir", str(tmp_path))
    assert nobody.returncode == 0
    assert "PERSONAL=sealed" in nobody.stderr
    store = open_store(settings)
    store.seal("anna")
    store.close()
    file.write_text(f"{master_key()}\n{file.read_text()}")

    rotated = saga("persons", "rotate-key", "--data-dir", str(tmp_path))

    assert rotated.returncode == 0, rotated.stderr
    assert ": 2 keys; no other one wraps" in rotated.stderr
    again = saga("persons", "rotate-key", "--data-dir", str(tmp_path))
    assert "already" in again.stderr
    listed = saga("persons", "list", "--data-dir", str(tmp_path), "--json")
    assert listed.returncode == 0
    assert "anna" not in listed.stdout


def test_under_a_retired_persons_key_nothing_new_is_sealed_and_what_was_can_be_opened(
    opened: Open,
) -> None:
    store, other = opened(), opened(cache_seconds=0.0)
    text = store.seal("anna")
    person = str(store.person_of("anna"))
    traces = store.traces(person, ["anna"])

    store.retire(person)
    store.retire(person)

    assert store.open(text) == other.open(text) == "anna"
    assert store.person(person).forgotten_at is None
    assert store.sealed_of("anna") is None
    new = other.seal("anna")
    assert other.person_of(new) != person
    assert store.traces(person, ["anna"]) == traces  # Also what found them by the name.
    store.forget(person, "asked to")
    assert store.traces(person, ["anna"]) == ()
    assert other.open(new) == "anna"


class Counted:
    """A way to the database that counts what it is asked for by."""

    def __init__(self, database: Any) -> None:
        self.queries: list[tuple[str, Any]] = []
        self._database = database

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._database, name)

        def asked(*arguments: Any) -> Any:
            self.queries.append((name, arguments))
            return work(*arguments)

        return asked


@pytest.mark.parametrize("names", [["anna"], ["anna", "bert", "cora"]])
def test_what_is_sealed_under_keys_that_are_retired_is_opened_with_one_query(
    opened: Open, names: list[str]
) -> None:
    store = opened()
    texts = store.seal_all(names)
    for text in texts.values():
        store.retire(str(store.person_of(text)))
    reader = opened()
    database = reader._database = Counted(reader._database)

    assert reader.open_all(texts.values()) == {text: name for name, text in texts.items()}
    assert len(database.queries) == 1


def test_who_opens_one_of_a_new_person_knows_those_made_next(opened: Open) -> None:
    store = opened()
    texts = [store.seal(f"customer {number}") for number in range(3)]
    texts += [*store.seal_all(f"customer {number}" for number in range(3, AHEAD_MAX // 2)).values()]
    reader = opened()
    database = reader._database = Counted(reader._database)

    first, *others = sorted(texts)
    assert reader.opened(first) is None
    assert reader.open_all([first])[first].startswith("customer")

    assert len(database.queries) == 1
    assert {reader.opened(text) for text in texts} == {
        f"customer {number}" for number in range(AHEAD_MAX // 2)
    }
    later = store.seal("ben")
    assert reader.opened(later) is None
    assert reader.open_all([later, *others])[later] == "ben"


def test_of_one_who_came_long_ago_no_others_are_read(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, reader = opened(), opened()
    monkeypatch.setattr(
        store, "_now", lambda: datetime.now(UTC) - timedelta(seconds=AHEAD_SECONDS + 1)
    )
    old, other = (store.seal(name) for name in ("anna", "ben"))

    assert reader.open_all([old]) == {old: "anna"}
    assert reader.opened(other) is None
    assert reader.open_all([other]) == {other: "ben"}


def test_a_row_that_no_master_key_opens_is_in_the_way_of_no_other(opened: Open) -> None:
    both = MasterKeys.of(f"{master_key()}\n{KEY}", "both")
    older, newer, reader = opened(), opened(both), opened()
    texts = [older.seal("anna"), newer.seal("ben")]

    assert reader.open_all(texts[:1]) == {texts[0]: "anna"}
    with pytest.raises(MasterKeyError, match="put that key back"):
        reader.open_all(texts)


def test_of_those_read_ahead_a_forgotten_one_is_not_known(opened: Open) -> None:
    store, reader = opened(), opened()
    texts = [store.seal(name) for name in ("anna", "ben", "cora")]
    store.forget(person_id_in(texts[1]), "asked")

    assert reader.open_all([min(texts[0], texts[2])])
    with pytest.raises(Forgotten):
        reader.open_all(texts)
    assert reader.open_all([texts[0], texts[2]]).keys() == {texts[0], texts[2]}
