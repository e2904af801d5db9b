"""The loop of capture: steps of a source become sealed frontiers of the log, then leave to forget is given.

The order of everything here is what makes each committed change count exactly once, whoever dies where:

* the claim is appended **first**, and only then is looked for the last valid frontier: nothing valid can come
  between looking and claiming; the same is done for the versions of tables, which have a topic of their own;
* a frontier is sealed when all records that it names are durable;
* after each frontier the loop looks back: if another capture has claimed since, the frontier does not count, and
  this one ends without confirming;
* only a position that a durable and valid frontier holds is ever confirmed to the source.

Whatever a capture that died has appended without a frontier are orphans that nobody reads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from capture.source import Source, Step, source_factory
from capture.tables import TableVersions
from codec.frames import unpack
from schemas.errors import (
    GapDetected,
    LogRewound,
    LogUnavailable,
    OperatorError,
    OrderViolated,
    ReplicationError,
    SourceUnavailable,
    Superseded,
    TransientError,
)
from schemas.frontier import NO_COMMIT, Claim, Frontier, Setup, TopicRange
from schemas.pipeline import Pipeline
from schemas.record import decode_control, encode_control, schema_id_of
from transport.log import Log, LogReader, LogWriter, Partition, Range, RecordTooLarge
from transport.topics import Topics
from transport.views import Frontiers, read_setup

CONFIRM_SECONDS = 0.1
"""How long a durable position may wait until the source hears of it: seldom enough to cost the source nothing."""

QUIET_SECONDS = 0.02
"""The same when nothing has come since: then it costs as little, and who waits for the source to know is served."""

EMPTY_SECONDS = 3.0
"""How seldom a frontier is written only because the source's history went on: an idle pipeline hardly writes."""

FOREIGN_SECONDS = 0.2
"""The same for transactions that changed none of our tables: heartbeats, and what others wait to see passed."""


class Capture:
    """One incarnation of capture, as a machine of small steps.

    `step` does one bounded piece of work and says whether there was any; `wait` waits for more. After an exception
    the incarnation is over: `close` it and make another.
    """

    def __init__(
        self,
        writer: LogWriter,
        reader: LogReader,
        topics: Topics,
        source: Source,
        tables: TableVersions,
        setup: Setup,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        holder: str = "",
        confirm_seconds: float = CONFIRM_SECONDS,
        empty_seconds: float = EMPTY_SECONDS,
        foreign_seconds: float = FOREIGN_SECONDS,
    ) -> None:
        self._writer, self._reader, self._topics = writer, reader, topics
        self._source, self._tables, self._setup = source, tables, setup
        self._clock, self._now = clock, now
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}"
        self._frontiers = Frontiers(reader, topics)
        self._confirm_seconds = confirm_seconds
        self._empty_seconds, self._foreign_seconds = empty_seconds, foreign_seconds

        self._do: Callable[[], bool] = self._claim
        self._own = -1  # offset of our latest record in the frontier topic
        self._ready: Step | None = None
        self._later: Step | None = None  # empty: to be sealed when it is time, unless another step comes first
        self._appended: dict[Partition, int] = {}  # offsets that records since the last frontier take
        self._schemas: dict[Partition, set[int]] = {}
        self._ends: dict[Partition, int] = {}  # where our latest range of each partition ended
        self._last_empty = -float("inf")
        self._last_confirm = self._last_seal = -float("inf")
        self._failed = False
        self._closed = False

        # What control shows; plain numbers, of this incarnation unless said otherwise.
        self.epoch = -1
        self.position = 0  # of the last valid frontier, this or an earlier incarnation's
        self.confirmed = 0
        self.max_xid = 0
        self.last = NO_COMMIT
        self.records = 0
        self.bytes = 0
        self.transactions = 0
        self.frontiers = 0
        self.commit_time = 0  # microseconds; of the last transaction that a frontier holds
        self.captured_at = 0  # microseconds; of the last frontier
        self.lag = 0.0  # seconds from that transaction's commit to its frontier
        self.behind = 0  # positions (bytes of the source's log) that are still to come, as far as is known

        self._fresh = 0  # microseconds; nothing that was committed before is missing

    def metrics(self) -> Mapping[str, float]:
        """Return the figures above by the names that control knows."""
        figures: dict[str, float] = {
            "rows": self.records,
            "bytes": self.bytes,
            "transactions": self.transactions,
            "frontiers": self.frontiers,
            "lag_bytes": self.behind,
        }
        if self._fresh:
            figures["lag_seconds"] = max(0.0, self._now() - self._fresh / 1_000_000)
        return figures

    # ------------------------------------------------------------------------------------------------- driving

    def step(self) -> bool:
        """Do the next piece of work: claim, look, start, or write one step of the source.

        Raises `Superseded` when another capture has claimed, `GapDetected` if records of ours are not where they
        must be, `OrderViolated` if the source goes backwards, and whatever source and log raise. In no such case
        has anything been confirmed that no valid frontier holds, nor will it be.
        """
        if self._failed:
            raise Superseded("this incarnation of capture has ended")
        try:
            return self._do()
        except BaseException:
            self._failed = True
            raise

    def wait(self, timeout: float) -> None:
        """Wait until the source has something, at most `timeout` seconds or until a confirmation is due.

        What is no `Exception`, as a request to stop, may end it at any point; then there is only closing left.
        """
        if self._failed or self._do != self._write or self._ready is not None:
            return
        try:
            self._ready = self._source.poll(max(0.0, min(timeout, self._until_confirm(), self._until_empty())))
        except Exception:
            self._failed = True
            raise

    def close(self) -> None:
        """Confirm what is durable and let the source go. Never raises; does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        if not self._failed and self.position > self.confirmed:
            with contextlib.suppress(ReplicationError):
                self._source.confirm(self.position)
        self._failed = True
        self._source.close()

    # -------------------------------------------------------------------------------------------------- starting

    def _claim(self) -> bool:
        reader = self._source.occupied()
        if reader:
            # To claim would end the other one, which would come back and end this one, and so on.
            self._frontiers.to_end()
            raise SourceUnavailable(
                f"another capture of this pipeline runs ({self._frontiers.holder or 'it is not in this log'}): the"
                f" change stream is read by {reader}",
                remedy="stop one of the two; if the other's machine is gone, the source notices that within a minute or"
                " so (wal_sender_timeout)",
            )
        claim = Claim(self._holder, self._micros())
        self.epoch = self._own = self._writer.put(self._topics.frontier, encode_control(claim))
        self._do = self._look
        return True

    def _look(self) -> bool:
        """Find where the incarnations before this one got to."""
        last = self._frontiers.to_end()
        if self._frontiers.epoch != self.epoch:
            raise Superseded(f"another capture has claimed: {self._frontiers.holder}")
        self.position = self._setup.position
        if last is not None:
            self.position, self.max_xid = last.frontier.position, last.frontier.max_xid
            self.commit_time, self.last = last.frontier.commit_time, last.frontier.last
        self._tables.succeed(self.epoch)
        self._do = self._start
        return True

    def _start(self) -> bool:
        try:
            self._source.start(self.position, self.epoch, self.last)
        except OperatorError as error:
            # Whoever has claimed since may have gone on, and confirmed: then nothing is wrong but that we are late.
            self._frontiers.to_end()
            if self._frontiers.epoch != self.epoch:
                raise Superseded(f"another capture has claimed: {self._frontiers.holder}") from error
            raise
        # What is durable but was not confirmed by those before us is confirmed with our first chance.
        self._do = self._write
        return True

    # --------------------------------------------------------------------------------------------------- writing

    def _write(self) -> bool:
        step, self._ready = self._ready, None
        if step is None:
            step = self._source.poll(0)
        try:
            worked = step is not None and self._take(step)
        except RecordTooLarge as error:
            assert step is not None
            raise self._left_out(step, error) from error
        if self._later is not None and self._until_empty() <= 0:
            assert self._later.position is not None
            self._seal(self._later, self._later.position)
            self._last_empty = self._clock()
            worked = True
        if self._until_confirm() <= 0:
            self._source.confirm(self.position)
            self.confirmed, self._last_confirm = self.position, self._clock()
        return worked

    def _take(self, step: Step) -> bool:
        for partition, block in step.blocks.items():
            taken = self._writer.append(partition, block)
            self._appended[partition] = self._appended.get(partition, 0) + taken
        for partition, schemas in step.schemas.items():
            self._schemas.setdefault(partition, set()).update(schemas)
        self.records += step.records
        self.bytes += step.bytes
        self.transactions += step.transactions
        self.max_xid = max(self.max_xid, step.max_xid)
        if step.transactions:
            self.last = step.last
        if step.position is None:
            # In the midst of a transaction: durable now, so that no buffer holds all of it. Until it is complete no
            # frontier may be sealed, not even an empty one: it would name what is there of it.
            self._later = None
            self._writer.flush()
        elif self._appended:
            self._seal(step, step.position)
        elif step.position > self.position:
            # Nothing of ours happened; it need not be written at once.
            earlier = self._later.commit_time if self._later is not None else 0
            self._later = replace(step, commit_time=step.commit_time or earlier)
            self.behind = max(0, step.end - step.position)
            return False
        return True

    def _left_out(self, step: Step, error: RecordTooLarge) -> TransientError:
        """Have the table left out that the record belongs to which the log does not take: the largest of its partition,
        which other tables may share. Nothing of the step counts; it is read once more without the table."""
        values = (value for _, value in unpack(step.blocks[error.partition].data) if value is not None)
        self._source.leave_out(schema_id_of(max(values, key=len)), error)
        return TransientError(f"{error}: beginning again without its table")

    def _seal(self, step: Step, position: int) -> None:
        if position <= self.position:
            raise OrderViolated(f"the source came to {position}, which is not after {self.position}")
        captured_at = self._micros()

        def frontier(ranges: dict[Partition, Range]) -> bytes:
            return encode_control(
                Frontier(
                    epoch=self.epoch,
                    after=self.position,
                    position=position,
                    commit_time=step.commit_time,
                    captured_at=captured_at,
                    max_xid=self.max_xid,
                    ranges=self._ours(ranges),
                    last_commit=self.last.position,
                    last_commit_time=self.last.time,
                )
            )

        before = self._own
        self._own = self._writer.seal(self._topics.frontier, frontier)
        self._look_back(before + 1, self._own)
        self._appended.clear()
        self._schemas.clear()
        self._later = None
        self.position, self.captured_at, self._last_seal = position, captured_at, self._clock()
        if step.commit_time:
            self.commit_time = step.commit_time
            self.lag = max(0.0, (captured_at - step.commit_time) / 1_000_000)
        # A frontier without a commit says that there is none to be had.
        self._fresh = step.commit_time or captured_at
        self.behind = max(0, step.end - position)
        self.frontiers += 1

    def _look_back(self, start: int, own: int) -> None:
        """Make sure that nobody has claimed between our record before `start` and the one at `own`.

        As a rule there is nothing between. What an older capture wrote before it noticed that it was superseded
        takes no force from ours, as long as it is no claim.
        """
        if own == start:
            return
        try:
            between = self._reader.records(self._topics.frontier, start, own - start)
        except LogRewound as error:
            # Our last valid frontier would be there: others have gone on, and the log was trimmed behind them.
            raise Superseded(f"what follows our record at {start - 1} is trimmed") from error
        entries = [decode_control(record.value) for record in between if record.value is not None]
        claims = [entry for entry in entries if isinstance(entry, Claim)]
        if claims:
            raise Superseded(f"another capture has claimed: {claims[-1].holder}")
        if len(entries) != own - start:
            raise Superseded(f"records are missing between ours at {start - 1} and {own}")

    def _ours(self, ranges: dict[Partition, Range]) -> tuple[TopicRange, ...]:
        """Return the ranges with their schemas, once they are known to hold our records, all of them, and no others.

        Called when the records are durable and the frontier is not yet written: an exception here leaves orphans.
        """
        if set(ranges) != set(self._appended):
            raise GapDetected(f"wrote to {sorted(self._appended)}, but the log has ranges of {sorted(ranges)}")
        named = []
        for partition, (start, end) in ranges.items():
            wrote = self._appended[partition]
            if end - start != wrote:
                raise GapDetected(f"{wrote} offsets of {partition} written to, {end - start} found: {start}..{end}")
            # The first range of an incarnation may begin anywhere: orphans of those before it may lie between.
            if self._ends.get(partition, start) != start:
                raise GapDetected(f"records of {partition} begin at {start} instead of {self._ends[partition]}")
            self._ends[partition] = end
            schemas = tuple(sorted(self._schemas.get(partition, ())))
            named.append(TopicRange(partition.topic, partition.number, start, end, schemas))
        return tuple(sorted(named, key=lambda r: (r.topic, r.partition)))

    # --------------------------------------------------------------------------------------------------- helpers

    def _until_confirm(self) -> float:
        if self.position <= self.confirmed:
            return float("inf")
        due = min(self._last_confirm + self._confirm_seconds, self._last_seal + QUIET_SECONDS)
        return due - self._clock()

    def _until_empty(self) -> float:
        if self._later is None:
            return float("inf")
        pause = self._foreign_seconds if self._later.commit_time else self._empty_seconds
        return self._last_empty + pause - self._clock()

    def _micros(self) -> int:
        return int(self._now() * 1_000_000)


class CaptureService:
    """Capture as control runs it: waits until the source is set up, then is one incarnation of `Capture`.

    Holds the writer and the reader of the log that it works with. After an exception `close` it and open another:
    everything is read from the log again.
    """

    def __init__(self, pipeline: Pipeline, log: Log) -> None:
        self._pipeline, self._log = pipeline, log
        self._topics = Topics(pipeline.pipeline)
        self._stack = contextlib.ExitStack()
        self._reader = self._stack.enter_context(log.reader())
        self.capture: Capture | None = None

    def step(self) -> bool:
        """Do one piece of work and say whether there was any; see `Capture.step` for what is raised."""
        if self.capture is not None:
            return self.capture.step()
        setup = read_setup(self._reader, self._topics)
        if setup is None:
            return False
        self.capture = self._begin(setup)
        return True

    def metrics(self) -> Mapping[str, float]:
        """Return the figures of the incarnation, none before there is one."""
        return self.capture.metrics() if self.capture is not None else {}

    def wait(self, timeout: float) -> None:
        """Wait for work, at most `timeout` seconds."""
        if self.capture is not None:
            self.capture.wait(timeout)
        else:
            end = self._log.offsets(self._topics.control).end
            self._reader.wait({self._topics.control: end}, timeout)

    def close(self) -> None:
        """Confirm what is durable and let go of source and log."""
        if self.capture is not None:
            self.capture.close()
        self._stack.close()

    def _begin(self, setup: Setup) -> Capture:
        writer = self._stack.enter_context(self._log.writer("changes"))
        control = self._stack.enter_context(self._log.writer("control"))
        tables = TableVersions(self._reader, self._topics, control.put)
        url = self._pipeline.source.url.get_secret_value()
        source = source_factory(url)(url, setup, tables)
        return Capture(writer, self._reader, self._topics, source, tables, setup)


def open(pipeline: Pipeline, log: Log) -> CaptureService:
    """Return the capture service of a pipeline over a log, which stays the caller's to close.

    Raises `LogRewound` if there is no such log, `ConfigInvalid` if the source's URL has no engine.
    """
    source_factory(pipeline.source.url.get_secret_value())
    try:
        log.identity()
        return CaptureService(pipeline, log)
    except OSError as error:
        raise LogUnavailable(str(error)) from error
