"""The log in Kafka: what its settings and checks are for, tried on a real broker."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from codec.frames import pack, unpack
from control.servers.kafka import KafkaServer
from schemas.errors import GapDetected, IntegrityError, LogRewound, LogUnavailable, ReplicationError
from tests import servers
from transport.kafka import KafkaLog
from transport.kafka import writer as kafka_writer
from transport.kafka.cluster import Cluster
from transport.kafka.feed import Feed
from transport.kafka.pieces import PIECE_BYTES, Outgoing, bundles
from transport.kafka.reader import KafkaReader
from transport.kafka.writer import KafkaWriter, Run
from transport.log import WORK_PARTITIONS, Block, Partition, Range, RecordTooLarge, Topic
from transport.topics import Topics

PATIENCE = 30.0


def row(value: bytes = b"value") -> Block:
    return Block(1, pack([(b"key", value)]))


@pytest.fixture
def names() -> Topics:
    return Topics(f"t{uuid.uuid4().hex[:10]}")


@pytest.fixture
def log(kafka_broker: servers.Kafka, names: Topics) -> Iterator[KafkaLog]:
    made = KafkaLog(kafka_broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE)
    made.create_topics([*names.fixed(), Topic(table(names).topic), Topic(f"{names.prefix}load.a", 4)])
    yield made
    made.delete_topics([topic.name for topic in made.topics(names.prefix)])
    made.close()


def table(names: Topics, number: int = 0) -> Partition:
    return Partition(f"{names.prefix}changes.public.t{number}")


def make_tables(log: KafkaLog, names: Topics, count: int) -> list[Partition]:
    """Make the topics of so many tables."""
    made = [table(names, number) for number in range(count)]
    log.create_topics([Topic(partition.topic) for partition in made])
    return made


def test_a_record_of_another_writer_inside_a_range_is_found(
    log: KafkaLog, names: Topics, kafka_broker: servers.Kafka
) -> None:
    foreign = Producer({"bootstrap.servers": kafka_broker.bootstrap})
    with log.writer("changes") as writer:
        writer.append(table(names), row())
        writer.append(table(names), row())  # the first is sent, the second held back
        assert isinstance(writer, KafkaWriter)
        writer._drain()
        foreign.produce(table(names).topic, b"foreign")
        assert foreign.flush(PATIENCE) == 0
        with pytest.raises(IntegrityError):
            writer.flush()


def test_a_record_of_another_writer_between_two_ranges_is_found(
    log: KafkaLog, names: Topics, kafka_broker: servers.Kafka
) -> None:
    foreign = Producer({"bootstrap.servers": kafka_broker.bootstrap})
    with log.writer("changes") as writer:
        writer.append(table(names), row())
        writer.flush()
        foreign.produce(table(names).topic, b"foreign")
        assert foreign.flush(PATIENCE) == 0
        writer.append(table(names), row())
        with pytest.raises(IntegrityError):
            writer.seal(names.frontier, lambda _: b"frontier")


def test_a_step_is_one_request_a_partition_and_one_for_the_frontier(
    kafka_broker: servers.Kafka, log: KafkaLog, names: Topics
) -> None:
    told: list[int] = []

    def note(statistics: str) -> None:
        told.append(sum(broker["req"].get("Produce", 0) for broker in json.loads(statistics)["brokers"].values()))

    def settled(producer: Producer) -> int:
        seen, until = len(told), time.monotonic() + PATIENCE
        while len(told) < seen + 2 and time.monotonic() < until:  # what is told next may be from before
            producer.poll(0.01)
        return told[-1]

    settings: dict[str, Any] = {"statistics.interval.ms": "20", "stats_cb": note}
    watched = KafkaLog(kafka_broker.bootstrap, names.prefix[:-1], settings=settings, deadline_s=PATIENCE)
    with watched.writer("changes") as writer:
        assert isinstance(writer, KafkaWriter)
        writer.put(names.frontier, b"claim")
        before = settled(writer._producer)
        for _ in range(5):
            writer.append(table(names), row())
            writer._producer.poll(0.001)
        writer.seal(names.frontier, lambda _: b"frontier")
        assert settled(writer._producer) == before + 2


def test_no_more_is_handed_to_the_client_than_a_connection_takes(log: KafkaLog, names: Topics) -> None:
    most = 0
    with log.writer("load-0") as writer:
        assert isinstance(writer, KafkaWriter)
        for _ in range(40):
            writer.append(table(names), row(bytes(900_000)))
            most = max(most, len(writer._producer))
        assert writer.flush() == {table(names): Range(0, 40)}
    assert 2 <= most <= 8


def test_who_follows_does_not_ask_the_broker_each_time_whether_there_is_more(
    log: KafkaLog, names: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Partition] = []
    end = Cluster.end

    def note(cluster: Cluster, partition: Partition) -> int:
        asked.append(partition)
        return end(cluster, partition)

    monkeypatch.setattr(Cluster, "end", note)
    with log.writer("changes") as writer, log.reader() as reader:
        reader.wait({names.frontier: 0}, 0.05)
        for n in range(20):
            offset = writer.put(names.frontier, b"%d" % n)
            assert reader.wait({names.frontier: offset}, PATIENCE)
            assert reader.records(names.frontier, offset, fresh=False)
            assert not reader.records(names.frontier, offset + 1, fresh=False)
        assert len(asked) < 5
        assert not reader.records(names.frontier, offset + 1)
        assert asked[-1] == names.frontier


def test_what_nobody_waits_for_is_asked_for_every_time(log: KafkaLog, names: Topics) -> None:
    with log.writer("changes") as writer, log.reader() as reader:
        for n in range(3):
            writer.put(names.frontier, b"%d" % n)
            assert [record.value for record in reader.records(names.frontier, n, fresh=False)] == [b"%d" % n]


def test_what_was_read_to_its_end_is_not_fetched_from_any_more(log: KafkaLog, names: Topics) -> None:
    with log.writer("changes") as writer, log.reader() as reader:
        assert isinstance(reader, KafkaReader)
        assert not reader.records(names.control, 0)
        for n in range(3):
            writer.put(names.control, b"%d" % n)
            assert [record.value for record in reader.records(names.control, n)] == [b"%d" % n]
        assert [record.offset for record in reader.records(names.control, 0, 2)] == [0, 1]
        assert reader._data._consumer.assignment() == []


def test_each_of_the_four_checks_counts(log: KafkaLog, names: Topics) -> None:
    with log.writer("changes") as writer:
        assert isinstance(writer, KafkaWriter)
        where = table(names)
        assert writer._check(where, Run(3, first=5, last=7)) == Range(5, 8)
        with pytest.raises(IntegrityError):  # one was lost in the middle, which leaves no gap in offsets
            writer._check(where, Run(4, first=5, last=7))
        with pytest.raises(IntegrityError):  # a callback is missing
            writer._check(where, Run(3, first=5))
        with pytest.raises(ReplicationError):
            writer._check(where, Run(3, first=5, last=7, error=KafkaError(KafkaError._MSG_TIMED_OUT)))
        writer._ends[where] = 6
        with pytest.raises(IntegrityError):
            writer._check(where, Run(3, first=5, last=7))


def test_a_record_that_the_broker_refuses_ends_the_writer(kafka_broker: servers.Kafka, names: Topics) -> None:
    log = KafkaLog(
        kafka_broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE, topic_settings={"max.message.bytes": "20000"}
    )
    log.create_topics([Topic(table(names).topic), Topic(names.frontier.topic)])
    with log.writer("changes") as writer:
        writer.append(table(names), row())
        writer.append(table(names), row(os.urandom(100_000)))
        writer.append(table(names), row())
        with pytest.raises(RecordTooLarge) as caught:
            writer.seal(names.frontier, lambda _: b"frontier")
        assert caught.value.partition == table(names) and "max.message.bytes" in caught.value.remedy
        with pytest.raises(IntegrityError):
            writer.flush()
    assert log.offsets(names.frontier) == Range(0, 0)


@pytest.mark.slow
def test_256_million_bytes_travel_through_a_broker_of_defaults(log: KafkaLog, names: Topics) -> None:
    value = os.urandom(256_000_000)
    with log.writer("changes") as writer, log.reader() as reader:
        took = [writer.append(table(names), row(part)) for part in (b"before", value, b"after")]
        assert took == [1, 62, 1]
        span = writer.flush()[table(names)]
        assert span == Range(0, 64)
        blocks = list(reader.read(table(names), span))
        assert sum(block.offsets for block in blocks) == 64
        assert [v for b in blocks for _, v in unpack(b.data)] == [b"before", value, b"after"]


def test_others_see_pieces_with_a_header_that_tells_which(
    log: KafkaLog, names: Topics, kafka_broker: servers.Kafka
) -> None:
    value = os.urandom(PIECE_BYTES * 2 + 1)
    with log.writer("changes") as writer:
        writer.append(table(names), row(b"small"))
        writer.append(table(names), row(value))
        writer.flush()
    consumer = Consumer({"bootstrap.servers": kafka_broker.bootstrap, "group.id": "others"})
    consumer.assign([TopicPartition(table(names).topic, 0, 0)])
    found = consumer.consume(4, PATIENCE)
    consumer.close()
    assert found[0].headers() is None
    told = [dict(piece.headers() or [])["penstock.piece"].decode().split("/") for piece in found[1:]]  # type: ignore[union-attr]
    assert [(number, of) for _, number, of in told] == [("1", "3"), ("2", "3"), ("3", "3")]
    assert len({record for record, _, _ in told}) == 1
    assert {piece.key() for piece in found[1:]} == {b"key"}
    assert b"".join(piece.value() or b"" for piece in found[1:]) == value


def test_a_writer_that_dies_amid_pieces_leaves_no_record(
    log: KafkaLog, names: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, value = table(names), os.urandom(PIECE_BYTES * 4)
    with log.writer("changes") as writer:

        def dying(block: Block) -> Iterator[tuple[list[Outgoing], int]]:
            for number, bundle in enumerate(bundles(block)):
                if number == 3:  # two are sent, the third is held back
                    assert isinstance(writer, KafkaWriter)
                    writer._drain()
                    raise ZeroDivisionError
                yield bundle

        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(kafka_writer, "bundles", dying)
            writer.append(where, row(value))
    with log.writer("changes") as writer, log.reader() as reader:
        writer.append(where, row(value))
        writer.append(where, row())
        assert writer.flush()[where] == Range(2, 7)

        def read(start: int, end: int) -> list[tuple[int, bytes | None]]:
            blocks = reader.read(where, Range(start, end))
            return [(block.offsets, v) for block in blocks for _, v in unpack(block.data)]

        assert read(2, 7) == [(4, value), (1, b"value")]
        assert read(0, 6) == [(2, b""), (4, value)]
        assert read(3, 7) == [(3, b""), (1, b"value")]
        assert read(2, 5) == [(3, b"")]


def test_nobody_answers_at_a_wrong_address(names: Topics) -> None:
    log = KafkaLog("127.0.0.1:9", names.prefix[:-1], deadline_s=0.5)
    began = time.monotonic()
    for attempt in (log.identity, lambda: log.create_topics(names.fixed()), lambda: log.offsets(names.frontier)):
        with pytest.raises(LogUnavailable):
            attempt()
    [(problem, remedy)] = log.problems()
    assert problem
    assert remedy
    assert time.monotonic() - began < 20


def test_topics_keep_everything_until_it_is_trimmed(log: KafkaLog, names: Topics, kafka_broker: servers.Kafka) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_broker.bootstrap})
    for topic in (names.frontier.topic, table(names).topic, names.tables.topic):
        resource = ConfigResource("topic", topic)
        config = {k: e.value for k, e in admin.describe_configs([resource])[resource].result(PATIENCE).items()}
        assert config["retention.ms"] == config["retention.bytes"] == "-1"
        assert config["cleanup.policy"] == "delete"
        assert config["unclean.leader.election.enable"] == "false"
        assert config["flush.messages"] == "1"  # one copy: acknowledged must mean synced
    assert log.problems() == []


def test_topics_that_lose_records_are_a_problem(kafka_broker: servers.Kafka, names: Topics) -> None:
    weak = {
        "flush.messages": "1000",
        "retention.ms": "1000000",
        "unclean.leader.election.enable": "true",
        "cleanup.policy": "compact,delete",
    }
    log = KafkaLog(kafka_broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE, topic_settings=weak)
    log.create_topics([Topic(names.frontier.topic), Topic(table(names).topic)])
    told = "\n".join(problem for problem, _ in log.problems())
    assert "power cut" in told
    assert "retention.ms" in told
    assert "compaction" in told
    assert "lags" in told
    assert "1 more" in told
    log.delete_topics([names.frontier.topic, table(names).topic])


def test_seven_records_come_without_waiting_for_more(log: KafkaLog, names: Topics) -> None:
    with log.writer("changes") as writer, log.reader() as reader:
        writer.append(table(names), Block(7, row().data * 7))
        writer.flush()
        list(reader.read(table(names), Range(0, 1)))  # connects
        assert isinstance(reader, KafkaReader)
        reader._data.release(table(names))
        reader._data.follow({table(names): 0})
        began = time.monotonic()
        assert reader._data.pump(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2
        assert sum(b.count for b in reader.read(table(names), Range(0, 7))) == 7


@pytest.mark.slow
def test_many_topics_are_ready_when_they_are_made_and_given_up_when_cold(log: KafkaLog, names: Topics) -> None:
    many = make_tables(log, names, 600)
    with log.writer("changes") as writer, log.reader() as reader:
        for partition in many:
            writer.append(partition, row())
        began = time.monotonic()
        ranges = writer.flush()
        assert ranges == dict.fromkeys(many, Range(0, 1))
        assert time.monotonic() - began < PATIENCE
        for partition in many:
            assert sum(b.count for b in reader.read(partition, Range(0, 1))) == 1
        assert isinstance(reader, KafkaReader)
        assert reader._data_feed is not None
        until = time.monotonic() + PATIENCE
        while reader._data_feed._windows:
            assert time.monotonic() < until
            reader.wait({names.frontier: 0}, 0.1)
        assert sum(b.count for b in reader.read(many[0], Range(0, 1))) == 1


def test_a_lost_tail_is_told_by_the_broker_not_jumped_over(log: KafkaLog, names: Topics) -> None:
    with log.writer("changes") as writer, log.reader() as reader:
        writer.append(table(names), Block(10, row().data * 10))
        writer.flush()
        assert sum(b.count for b in reader.read(table(names), Range(0, 10))) == 10
        log.delete_topics([table(names).topic])
        log.create_topics([Topic(table(names).topic)])
        with pytest.raises(LogRewound):
            list(reader.read(table(names), Range(10, 12)))


@pytest.mark.slow
def test_records_of_other_tables_do_not_fill_memory(log: KafkaLog, names: Topics) -> None:
    tables = make_tables(log, names, 20)
    block = row(os.urandom(200_000))
    with log.writer("changes") as writer, log.reader() as reader:
        for partition in tables:
            writer.append(partition, block)
        writer.flush()
        for partition in tables:  # now all of them are assigned
            list(reader.read(partition, Range(0, 1)))
        for _ in range(30):
            for partition in tables:
                writer.append(partition, block)
        ranges = writer.flush()
        assert isinstance(reader, KafkaReader)
        for partition in reversed(tables):
            assert sum(b.count for b in reader.read(partition, ranges[partition])) == 30
            assert reader._data._size < 80 << 20


def test_a_step_larger_than_the_queue_is_sent_in_order(
    log: KafkaLog, names: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`BufferError` says that the record was not queued: it must be sent again, and none twice."""
    values = [b"%06d" % n + bytes(3000) for n in range(3000)]
    make = KafkaWriter._make
    monkeypatch.setattr(KafkaWriter, "_make", lambda self, queued: make(self, 2048))
    with log.writer("changes") as writer, log.reader() as reader:
        writer.append(table(names), Block(len(values), pack([(None, value) for value in values])))
        assert writer.flush()[table(names)] == Range(0, len(values))
        assert [v for b in reader.read(table(names), Range(0, len(values))) for _, v in unpack(b.data)] == values


def test_a_batch_is_never_larger_than_a_topic_takes_by_default(kafka_broker: servers.Kafka, names: Topics) -> None:
    """One that were would not be split: all of it would fail."""
    default = {"max.message.bytes": "1048588"}
    log = KafkaLog(kafka_broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE, topic_settings=default)
    log.create_topics([Topic(table(names).topic)])
    with log.writer("changes") as writer:
        block = Block(3000, pack([(None, os.urandom(3000)) for _ in range(3000)]))
        writer.append(table(names), block)
        assert writer.flush()[table(names)] == Range(0, 3000)
    log.delete_topics([table(names).topic])


@pytest.mark.slow
def test_records_are_not_given_up_while_the_broker_stalls(
    make_kafka: Callable[..., KafkaServer], names: Topics
) -> None:
    """Given up after a time, some of them would be in the topic nevertheless, and others not."""
    broker = make_kafka()
    wishes = {"message.timeout.ms": "500", "acks": "1", "enable.idempotence": "false"}
    log = KafkaLog(broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE, settings=wishes)
    log.create_topics([Topic(table(names).topic)])
    with log.writer("changes") as writer:
        writer.append(table(names), row())
        assert writer.flush()[table(names)] == Range(0, 1)
        os.kill(broker.pid, signal.SIGSTOP)
        on = threading.Timer(2.0, os.kill, (broker.pid, signal.SIGCONT))
        on.start()
        writer.append(table(names), Block(100, row().data * 100))
        assert writer.flush()[table(names)] == Range(1, 101)
        on.join()
    assert log.offsets(table(names)) == Range(0, 101)


@pytest.mark.slow
def test_a_partition_that_is_named_later_does_not_wait_for_the_request_under_way(log: KafkaLog, names: Topics) -> None:
    """Which a broker without news holds for half a second by default; nor does the client look for its topic."""
    many = make_tables(log, names, 40)
    with log.writer("changes") as writer, log.reader() as reader:
        for partition in many:
            writer.append(partition, row())
        writer.flush()
        list(reader.read(many[0], Range(0, 1)))  # connects
        began = time.monotonic()
        for partition in many[1:]:
            list(reader.read(partition, Range(0, 1)))
        assert time.monotonic() - began < 0.25 * len(many)


def test_offsets_without_records_are_passed_over(log: KafkaLog, names: Topics, kafka_broker: servers.Kafka) -> None:
    """Somebody's transactions left control records, which take offsets."""
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap, "transactional.id": names.prefix})
    producer.init_transactions(PATIENCE)
    with log.reader() as reader:
        for n in range(3):
            producer.begin_transaction()
            producer.produce(names.tables.topic, b"%d" % n, b"key")
            producer.commit_transaction(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while log.offsets(names.tables) != Range(0, 6):  # the last one's control record comes after the answer
            assert time.monotonic() < deadline
        found, at = [], 0
        while records := reader.records(names.tables, at):
            found += records
            at = records[-1].offset + 1
        assert [record.offset for record in found] == [0, 2, 4]
        assert reader.records(names.tables, 5) == []
        assert reader.records(names.tables, 6) == []
        assert not reader.wait({names.tables: 5}, 0.1)
        for promised in (Range(0, 3), Range(1, 3)):
            with pytest.raises(GapDetected):
                list(reader.read(names.tables, promised))


def share(log: KafkaLog, until: Callable[[frozenset[int]], bool]) -> str:
    with log.membership("target") as member:
        deadline = time.monotonic() + PATIENCE
        while not until(member.poll()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return member._protocol


def test_members_use_the_new_group_protocol_where_there_is_one(log: KafkaLog) -> None:
    assert share(log, lambda mine: len(mine) == WORK_PARTITIONS) == "consumer"


@pytest.mark.slow
def test_a_member_that_stalls_loses_its_share_and_gets_it_back(
    log: KafkaLog, names: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.kafka.membership._LONGEST_STALL_MS", 6_000)
    everything = frozenset(range(WORK_PARTITIONS))
    with log.membership("target") as stalled, log.membership("target") as other:
        deadline = time.monotonic() + 2 * PATIENCE

        def until(condition: Callable[[], bool]) -> None:
            while not condition():
                shares = f"{len(stalled.poll())} {stalled._protocol}, {len(other.poll())} {other._protocol}"
                assert time.monotonic() < deadline, shares
                time.sleep(0.01)

        until(lambda: len(stalled.poll()) == len(other.poll()) == WORK_PARTITIONS // 2)
        while other.poll() != everything:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        until(lambda: stalled.poll() == frozenset())
        until(lambda: len(stalled.poll()) == len(other.poll()) == WORK_PARTITIONS // 2)
        assert stalled.poll() | other.poll() == everything


@pytest.mark.slow
def test_members_go_back_to_the_old_group_protocol_where_there_is_none(
    make_kafka: Callable[..., KafkaServer], names: Topics
) -> None:
    broker = make_kafka(settings={"group.coordinator.rebalance.protocols": "classic"})
    log = KafkaLog(broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE)
    log.create_topics(names.fixed())
    assert share(log, lambda mine: len(mine) == WORK_PARTITIONS) == "classic"


@pytest.mark.slow
def test_a_member_that_is_refused_for_another_reason_says_so(
    make_kafka: Callable[..., KafkaServer], names: Topics
) -> None:
    broker = make_kafka(settings={"group.consumer.max.size": "1"})
    log = KafkaLog(broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE)
    log.create_topics(names.fixed())
    with log.membership("target") as first:
        deadline = time.monotonic() + 2 * PATIENCE
        while not first.poll():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with log.membership("target") as second, pytest.raises(LogUnavailable, match="maximum size"):
            while time.monotonic() < deadline:
                first.poll(), second.poll()
                time.sleep(0.02)


def test_nothing_is_committed_for_a_group(log: KafkaLog, names: Topics, kafka_broker: servers.Kafka) -> None:
    """Progress is in the target, and a position in Kafka could only contradict it."""
    with log.writer("changes") as writer, log.reader() as reader:
        writer.put(names.frontier, b"1")
        assert reader.records(names.frontier, 0)
        assert reader.wait({names.frontier: 0}, PATIENCE)
    consumer = Consumer({"bootstrap.servers": kafka_broker.bootstrap, "group.id": f"{names.prefix[:-1]}.reader"})
    [committed] = consumer.committed([TopicPartition(*names.frontier)], timeout=PATIENCE)
    assert committed.offset < 0
    consumer.close()


def test_a_waiting_reader_hears_of_every_frontier(log: KafkaLog, names: Topics) -> None:
    seen: list[int] = []

    def follow() -> None:
        with log.reader() as reader:
            deadline = time.monotonic() + PATIENCE
            while len(seen) < 200 and time.monotonic() < deadline:
                reader.wait({names.frontier: len(seen), names.control: 0, names.chunks: 0}, 5)
                for record in reader.records(names.frontier, len(seen)):
                    ranges = Range(record.offset, record.offset + 1)
                    assert sum(b.count for b in reader.read(table(names), ranges)) == 1
                    seen.append(record.offset)

    thread = threading.Thread(target=follow)
    thread.start()
    with log.writer("changes") as writer:
        for _ in range(200):
            writer.append(table(names), row())
            writer.seal(names.frontier, lambda _: b"frontier")
    thread.join(PATIENCE)
    assert seen == list(range(200))


def test_a_look_does_not_wait_behind_a_request_for_more(log: KafkaLog, names: Topics) -> None:
    """A broker answers the requests of a connection one after the other, and the one for more takes long."""
    with log.reader() as reader:
        assert isinstance(reader, KafkaReader)
        reader._front_feed = Feed(reader._cluster, reader._group, 20_000)
        began = time.monotonic()
        for _ in range(12):
            reader.wait({names.frontier: 0}, 0.02)
            assert reader.records(names.frontier, 0) == []
        assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_broker_that_is_away_is_never_taken_for_one_that_has_lost_its_topics(
    make_kafka: Callable[..., KafkaServer], names: Topics
) -> None:
    broker = make_kafka()
    log = KafkaLog(broker.bootstrap, names.prefix[:-1], deadline_s=PATIENCE)
    log.create_topics(names.fixed())
    errors: list[Exception] = []
    enough, back, seen = threading.Event(), threading.Event(), threading.Event()

    def look() -> None:
        while not enough.is_set():
            try:
                with log.reader() as reader:
                    while not enough.is_set():
                        again = back.is_set()
                        for partition in (names.chunks, names.tables):
                            assert reader.records(partition, 0) == []
                            assert log.offsets(partition) == Range(0, 0)
                        reader.wait({names.chunks: 0}, 0.01)
                        if again:
                            seen.set()
            except LogUnavailable:
                pass
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    broker.restart(hard=True)
    back.set()
    assert seen.wait(PATIENCE)
    enough.set()
    for thread in threads:
        thread.join(2 * PATIENCE)
    assert errors == []
