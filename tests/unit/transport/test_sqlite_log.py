"""The embedded log: its files, its budget, its locks, and the traps that SQLite sets."""

import contextlib
import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import transport.sqlite.log
from codec.frames import pack, unpack
from schemas.errors import (
    LOAD_AGAIN,
    ConfigInvalid,
    GapDetected,
    LogRewound,
    LogUnavailable,
    PrerequisiteMissing,
)
from transport import open_log
from transport.log import WORK_PARTITIONS, Block, Partition, Range, Topic
from transport.sqlite import SqliteLog
from transport.sqlite.bell import Bell, Listener
from transport.sqlite.disk import _NETWORK_SYSTEMS, network_system
from transport.sqlite.membership import FileMembership
from transport.sqlite.writer import SqliteWriter
from transport.topics import Topics

NAMES = Topics("p")
CHANGES = Partition("p.changes.public.a")
OTHER = Partition("p.changes.public.b")
LOAD = Partition("p.load.public.a", 0)
NORMAL, FULL = 1, 2  # of SQLite's `synchronous`


def make(folder: Path, *, budget: int = 10**9, segment: int = 1 << 20, wait: float = 10.0) -> SqliteLog:
    log = SqliteLog(folder, "p", budget_bytes=budget, segment_bytes=segment, wait_s=wait)
    log.create_topics([*NAMES.fixed(), Topic(CHANGES.topic), Topic(OTHER.topic), Topic(LOAD.topic, 4)])
    return log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = make(tmp_path)
    yield made
    made.close()


def block(*values: bytes) -> Block:
    return Block(len(values), pack([(None, value) for value in values]))


def synchronous(writer: SqliteWriter, place: str) -> int:
    connection = writer._tails[place]._connection
    assert connection is not None
    return int(connection.execute("pragma synchronous").fetchone()[0])


def wal_commits(path: Path) -> int:
    """A frame that ends a transaction holds the size of the file after it."""
    wal = path.read_bytes()
    page = int.from_bytes(wal[8:12], "big")
    return sum(wal[at + 4 : at + 8] != bytes(4) for at in range(32, len(wal), 24 + page))


def wal_generation(path: Path) -> int:
    with path.open("rb") as wal:
        return int.from_bytes(wal.read(16)[12:], "big")


def segments(log: SqliteLog, place: str) -> list[str]:
    return sorted(path.name for path in log._root.glob(f"{place}.*.db"))


def test_opening_a_log_makes_nothing(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log", "p")
    assert log.topics("p.") == []
    assert log.usage().used == 0
    assert log.problems() == []
    with pytest.raises(LogRewound), log.reader():
        pass
    with pytest.raises(LogRewound), log.writer("changes"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_address_names_a_log(tmp_path: Path) -> None:
    for url in (None, "sqlite:", "sqlite://"):
        assert isinstance(open_log(url, "p", tmp_path), SqliteLog)
    for url in ("", "http://host", "kafka:", "kafka://", "host:9092"):
        with pytest.raises(ConfigInvalid) as caught:
            open_log(url, "p", tmp_path)
        assert caught.value.remedy


def test_librdkafka_is_not_loaded_for_files() -> None:
    code = "import sys, pathlib, transport; transport.open_log(None, 'p', pathlib.Path('.'))"
    code += "; sys.exit('confluent_kafka' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[3]).returncode == 0


def test_segments_are_dropped_when_all_in_them_is_trimmed(log: SqliteLog) -> None:
    value = os.urandom(100_000)
    with log.writer("changes") as writer, log.reader() as reader:
        for _ in range(60):
            writer.append(CHANGES, block(value))
            writer.append(OTHER, block(b"small"))
            writer.seal(NAMES.frontier, lambda _: b"frontier")
        before = segments(log, "changes")
        assert len(before) >= 6
        assert [r.offset for r in reader.records(NAMES.frontier, 0)] == list(range(60))
        log.trim(CHANGES, 50)
        assert segments(log, "changes") == before  # the other table's records are still there
        log.trim(OTHER, 50)
        assert segments(log, "changes") == before
        used = log.usage().used
        log.trim(NAMES.frontier, 50)
        after = segments(log, "changes")
        assert after == before[-len(after) :]
        assert len(after) < len(before) - 3
        assert log.usage().used < used - 3_000_000
        found = [v for b in reader.read(CHANGES, Range(50, 60)) for _, v in unpack(b.data)]
        assert found == [value] * 10
        assert [r.offset for r in reader.records(NAMES.frontier, 50)] == list(range(50, 60))
        assert not reader.wait({NAMES.frontier: 60}, 0)
        assert not [name for name in os.listdir(log._root) if name.split(".db")[0] + ".db" in before[: -len(after)]]
        # What a reader holds open would still take its room on the disk.
        links = [
            os.readlink(f"/proc/self/fd/{n}")
            for n in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{n}")
        ]
        assert not [link for link in links if "changes." in link and "deleted" in link]
        assert writer.seal(NAMES.frontier, lambda _: b"frontier") == 60


def test_a_load_that_is_trimmed_leaves_no_full_segment_behind(log: SqliteLog) -> None:
    with log.writer("load-0") as writer:
        for _ in range(8):
            writer.append(LOAD, block(os.urandom(100_000)))
        end = writer.flush()[LOAD].end
        log.trim(LOAD, end)
        assert log.usage().used < 500_000
        writer.append(LOAD, block(b"next"))
        assert writer.flush()[LOAD] == Range(end, end + 1)


def test_a_deleted_topic_holds_no_segment(log: SqliteLog) -> None:
    with log.writer("load-0") as writer:
        for _ in range(40):
            writer.append(LOAD, block(os.urandom(100_000)))
        writer.flush()
    used = log.usage().used
    log.delete_topics([LOAD.topic])
    assert log.usage().used < used - 3_000_000
    log.create_topics([Topic(LOAD.topic, 4)])
    assert log.offsets(LOAD) == Range(0, 0)


def test_a_segment_whose_maker_died_is_made_by_the_next(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        writer.append(CHANGES, block(b"1", b"2"))
        writer.seal(NAMES.frontier, lambda _: b"one")
    # Sealed, and the process ended before there was a next segment; half of one lies about.
    connection = sqlite3.connect(log._root / "changes.000001.db", isolation_level=None)
    connection.execute("update state set sealed = 1").close()
    connection.close()
    (log._root / "changes.000002.db").write_bytes(b"half")
    with log.reader() as reader:
        assert log.offsets(CHANGES) == Range(0, 2)
        assert reader.records(NAMES.frontier, 1) == []
        with log.writer("changes") as writer:
            writer.append(CHANGES, block(b"3"))
            assert writer.seal(NAMES.frontier, lambda _: b"two") == 1
        assert [r.value for r in reader.records(NAMES.frontier, 0)] == [b"one", b"two"]
        assert [v for b in reader.read(CHANGES, Range(0, 3)) for _, v in unpack(b.data)] == [b"1", b"2", b"3"]


def test_two_writers_go_over_to_the_next_segment_together(log: SqliteLog) -> None:
    value = os.urandom(50_000)
    with log.writer("changes") as first, log.writer("changes") as second, log.reader() as reader:
        for turn in range(80):
            writer, table = (first, CHANGES) if turn % 2 else (second, OTHER)
            writer.append(table, block(value))
            assert writer.seal(NAMES.frontier, lambda _: b"frontier") == turn
        assert len(segments(log, "changes")) > 3
        for table in (CHANGES, OTHER):
            assert sum(b.count for b in reader.read(table, Range(0, 40))) == 40


def test_whoever_writes_control_records_goes_over_to_the_next_segment_too(log: SqliteLog) -> None:
    values = [b"%d" % n + os.urandom(300_000) for n in range(16)]
    with log.writer("control") as one, log.writer("control") as other, log.reader() as reader:
        for n, value in enumerate(values):
            (one, other)[n % 2].put(NAMES.tables, value, b"key")
        found: list[bytes | None] = []
        while records := reader.records(NAMES.tables, len(found)):
            found += [record.value for record in records]
    assert found == values
    assert len(segments(log, "control")) > 3


def test_missing_records_are_a_gap(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        for _ in range(5):
            writer.append(CHANGES, block(b"1", b"2"))
            writer.flush()
    with contextlib.closing(sqlite3.connect(log._root / "changes.000001.db", isolation_level=None)) as connection:
        connection.execute("delete from block where (id & 0xfffffffffff) = 4").close()
    with log.reader() as reader:
        for wanted in (Range(0, 10), Range(4, 6), Range(3, 7), Range(5, 10)):
            with pytest.raises(GapDetected):
                list(reader.read(CHANGES, wanted))
        assert sum(b.count for b in reader.read(CHANGES, Range(6, 10))) == 4


def test_a_damaged_file_is_one_for_a_person(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        writer.put(NAMES.frontier, b"1")
    (log._root / "changes.000001.db").write_bytes(b"not a database, and long enough to be taken for one" * 100)
    with pytest.raises(LogRewound, match="damaged") as caught, log.reader() as reader:
        reader.records(NAMES.frontier, 0)
    assert LOAD_AGAIN in caught.value.remedy


def test_files_of_another_format_are_refused(log: SqliteLog) -> None:
    log.close()
    with contextlib.closing(sqlite3.connect(log._root / "catalog.db")) as connection:
        connection.execute("pragma user_version = 99").close()
    with pytest.raises(PrerequisiteMissing) as caught:
        log.identity()
    assert caught.value.remedy


def test_a_log_removed_under_a_writer_is_not_written_on(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        writer.put(NAMES.frontier, b"1")
        for path in log._root.glob("*.db*"):
            path.unlink()
        with pytest.raises(LogRewound):
            writer.put(NAMES.frontier, b"2")
    with pytest.raises(LogRewound):
        log.identity()


def test_at_its_budget_the_log_makes_writers_wait_and_trimming_lets_them_go_on(tmp_path: Path) -> None:
    log = make(tmp_path, budget=32 << 20)
    value = os.urandom(500_000)
    done = threading.Event()

    def capture() -> None:
        with log.writer("changes") as writer:
            for _ in range(100):
                writer.append(CHANGES, block(value))
                writer.seal(NAMES.frontier, lambda _: b"frontier")
        done.set()

    thread = threading.Thread(target=capture)
    thread.start()
    until = time.monotonic() + 60
    while not done.is_set():
        assert time.monotonic() < until
        assert log.usage().used < 45 << 20
        if log.usage().used > 30 << 20:
            end = log.offsets(NAMES.frontier).end
            log.trim(CHANGES, end - 1)
            log.trim(NAMES.frontier, end - 1)
        done.wait(0.01)
    thread.join()
    assert log.offsets(CHANGES).end == 100


def test_at_its_budget_the_log_says_so_after_the_deadline_and_control_goes_on(tmp_path: Path) -> None:
    log = make(tmp_path, budget=32 << 20, wait=0.3)
    with log.writer("load-0") as writer:
        began = 0.0
        with pytest.raises(LogUnavailable) as caught:
            for _ in range(200):
                began = time.monotonic()
                writer.append(LOAD, block(os.urandom(500_000)))
        assert 0.2 < time.monotonic() - began < 5
        assert caught.value.remedy
    with log.writer("control") as writer:
        writer.put(NAMES.control, b"pause", b"state")
        writer.append(NAMES.chunks, block(b"plan"))
        writer.flush()
    with log.writer("changes") as writer:
        assert writer.seal(NAMES.frontier, lambda _: b"empty") == 0  # nothing to seal: an idle source goes on
        with pytest.raises(LogUnavailable):
            for _ in range(200):
                writer.append(CHANGES, block(os.urandom(500_000)))


def test_a_disk_without_room_for_the_budget_is_a_problem(tmp_path: Path) -> None:
    log = make(tmp_path, budget=10**18)
    [(problem, remedy)] = log.problems()
    assert "disk" in problem
    assert remedy


def test_network_file_systems_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_system(Path("/proc")) is None
    monkeypatch.setattr(transport.sqlite.log, "network_system", lambda path: "nfs4")
    log = SqliteLog(tmp_path, "p")
    assert any("nfs4" in problem for problem, _ in log.problems())
    with pytest.raises(PrerequisiteMissing):
        log.create_topics(NAMES.fixed())


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_file_systems_over_a_network_are_known(kind: str) -> None:
    assert _NETWORK_SYSTEMS.fullmatch(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", "zfs"])
def test_local_file_systems_are_not_refused(kind: str) -> None:
    assert not _NETWORK_SYSTEMS.fullmatch(kind)


def _resident(connection: Connection, folder: str) -> None:
    log = SqliteLog(Path(folder), "p")
    value = os.urandom(256 << 20)
    data = pack([(None, value)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with log.writer("changes") as writer:
        writer.append(CHANGES, Block(1, data))
        writer.seal(NAMES.frontier, lambda _: b"frontier")
    with log.reader() as reader:
        [found] = reader.read(CHANGES, Range(0, 1))
    connection.send((found.data == data, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


@pytest.mark.slow
def test_a_value_of_256_mb_costs_little_more_memory_than_itself(log: SqliteLog) -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_resident, args=(there, str(log._root.parent)))
    process.start()
    assert here.poll(60)
    same, grown = here.recv()
    process.join()
    assert same
    assert grown < 400 << 10, f"{grown >> 10} MB"


def test_the_wal_does_not_grow_with_what_is_written(tmp_path: Path) -> None:
    log = make(tmp_path, segment=1 << 30, budget=1 << 40)
    value = os.urandom(1_000_000)
    with log.writer("load-0") as writer, log.reader() as reader:
        for turn in range(200):
            writer.append(LOAD, block(value))
            if turn % 20 == 19:
                end = writer.flush()[LOAD].end
                # A reader that is given blocks slowly must not be what keeps the WAL.
                next(iter(reader.read(LOAD, Range(0, end))))
        wal = os.stat(log._root / "load-0.000001.db-wal").st_size
        assert wal < 120 << 20


def test_a_step_that_is_never_sealed_is_not_in_the_frontiers(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        for _ in range(40):
            writer.append(CHANGES, block(os.urandom(500_000)))
    assert log.offsets(NAMES.frontier).end == 0
    with log.writer("changes") as writer:
        writer.append(CHANGES, block(b"mine"))
        start, end = writer.flush()[CHANGES]
        assert end == start + 1
    with log.reader() as reader:
        [found] = reader.read(CHANGES, Range(start, end))
        assert unpack(found.data) == [(None, b"mine")]


def test_a_commit_of_another_process_between_look_and_write_is_no_error(log: SqliteLog) -> None:
    """A transaction that reads, and writes after another's commit, would fail at once and without waiting."""
    threads = []
    offsets: list[int] = []

    def put() -> None:
        with log.writer("control") as writer:
            for n in range(30):
                offsets.append(writer.put(NAMES.chunks, b"%d" % n))

    for _ in range(4):
        threads.append(threading.Thread(target=put))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert sorted(offsets) == list(range(120))


def test_a_step_is_one_commit_that_is_synced(log: SqliteLog) -> None:
    with log.writer("changes") as writer:
        commits = []
        for _ in range(3):
            writer.append(CHANGES, block(b"1", b"2"))
            writer.append(OTHER, block(b"3"))
            writer.seal(NAMES.frontier, lambda _: b"frontier")
            commits.append(wal_commits(log._root / "changes.000001.db-wal"))
        assert commits == [commits[0], commits[0] + 1, commits[0] + 2]
        assert synchronous(writer, "changes") == FULL


def test_small_steps_do_not_lengthen_their_wal_and_begin_it_again_when_it_is_copied(tmp_path: Path) -> None:
    """To sync a file that grows takes the file system's journal too."""
    log = make(tmp_path, segment=1 << 28, budget=1 << 40)
    wal = log._root / "changes.000001.db-wal"
    with log.writer("changes") as writer:

        def step() -> None:
            writer.append(CHANGES, block(b"1"))
            writer.seal(NAMES.frontier, lambda _: b"frontier")

        sizes = []
        for _ in range(100):
            step()
            sizes.append(os.stat(wal).st_size)
        assert sizes[0] == 1 << 20
        assert sizes == sorted(sizes)
        assert {size % (1 << 20) for size in sizes} == {0}
        assert len(set(sizes)) <= 4
        until = time.monotonic() + 30
        while wal_generation(wal) == 0:  # from 4 MB on
            assert time.monotonic() < until
            step()
        assert os.stat(wal).st_size < 64 << 20


def test_a_load_is_synced_when_it_is_flushed_and_not_before(log: SqliteLog) -> None:
    with log.writer("load-0") as writer:
        for _ in range(40):
            writer.append(LOAD, block(os.urandom(500_000)))
        assert synchronous(writer, "load-0") == NORMAL
        writer.flush()
        assert synchronous(writer, "load-0") == FULL


def test_no_writer_waits_for_one_of_another_place(tmp_path: Path) -> None:
    """SQLite's busy wait is no queue: in one file with loads capture would get a commit in seconds."""
    log = make(tmp_path, wait=0.1)
    places = {"changes": CHANGES, "load-0": LOAD, "load-1": Partition(LOAD.topic, 1), "chunks": NAMES.chunks}
    places["control"] = NAMES.control
    with log.writer("control") as writer:
        for partition in places.values():
            writer.put(partition, b"1", b"key")
        for busy in places:
            with contextlib.closing(sqlite3.connect(log._root / f"{busy}.000001.db", isolation_level=None)) as other:
                other.execute("begin immediate").close()
                for place, partition in places.items():
                    if place != busy:
                        writer.put(partition, b"2", b"key")
                other.execute("rollback").close()


def _after_fork(log: SqliteLog, connection: Connection) -> None:
    with log.writer("changes") as writer, log.reader() as reader:
        offset = writer.put(NAMES.frontier, b"child")
        connection.send((log.identity(), log.offsets(NAMES.frontier), reader.records(NAMES.frontier, offset)[0].value))


def test_a_log_may_be_carried_across_a_fork(log: SqliteLog) -> None:
    identity = log.identity()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_after_fork, args=(log, there))
    process.start()
    assert here.poll(30)
    assert here.recv() == (identity, Range(0, 1), b"child")
    process.join()
    assert log.offsets(NAMES.frontier) == Range(0, 1)


def test_an_idle_reader_costs_next_to_nothing(log: SqliteLog) -> None:
    with log.reader() as reader:
        reader.wait({NAMES.frontier: 0}, 0.1)
        began = time.thread_time()
        assert not reader.wait({NAMES.frontier: 0}, 2.0)
        assert time.thread_time() - began < 0.02


def test_a_reader_finds_records_where_nothing_tells_it_of_them(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transport.sqlite.bell._inotify", lambda: None)
    with log.reader() as reader, log.writer("changes") as writer:
        timer = threading.Timer(0.1, writer.put, (NAMES.frontier, b"1"))
        timer.start()
        assert reader.wait({NAMES.frontier: 0}, 10)
        timer.join()


def test_a_ring_between_watching_and_waiting_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, ringer = Listener(), Bell(tmp_path / "bell")
    try:
        listener.watch(tmp_path / "bell")
        ringer.ring()
        monkeypatch.setattr("transport.sqlite.bell._LOOK_AGAIN", 60.0)
        began = time.monotonic()
        listener.wait(60.0)
        assert time.monotonic() - began < 30
    finally:
        listener.close()
        ringer.close()


def _hold_membership(folder: str, connection: Connection) -> None:
    member = FileMembership(Path(folder))
    connection.send(len(member.poll()))
    child = os.fork()
    if child == 0:  # outlives its parent, and must not keep the parent's share
        time.sleep(20)
        os._exit(0)
    connection.send(child)
    time.sleep(60)


def test_a_child_of_a_killed_member_does_not_keep_its_share(tmp_path: Path) -> None:
    mine = FileMembership(tmp_path)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_hold_membership, args=(str(tmp_path), there))
    process.start()
    assert here.recv() == WORK_PARTITIONS // 2
    grandchild = here.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    try:
        until = time.monotonic() + 5
        while len(mine.poll()) < WORK_PARTITIONS:
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.kill(grandchild, signal.SIGKILL)
        mine.close()
    assert list(tmp_path.iterdir()) == []


def test_a_member_whose_file_was_removed_joins_again(tmp_path: Path) -> None:
    first, second = FileMembership(tmp_path), FileMembership(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    until = time.monotonic() + 5
    while first.poll() & second.poll() or len(first.poll() | second.poll()) < WORK_PARTITIONS:
        assert time.monotonic() < until
        time.sleep(0.01)
    first.close()
    second.close()
