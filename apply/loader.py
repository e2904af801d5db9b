"""Loading: the final chunks of this worker's share, into the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from apply.follower import forgotten
from apply.groups import chunk_share
from apply.limits import Limits
from apply.narrowing import Narrowed
from apply.standing import Standing
from apply.stats import Stats
from apply.tables import TargetTables
from apply.target import Load, TableProgress, TableRefused, Target
from apply.trays import Trays
from codec.frames import unpack
from schemas.errors import GapDetected, LogRewound, WriteConflict
from schemas.frontier import HEAL, Manifest
from schemas.states import TableState
from schemas.table import TableId
from transport.log import Log, LogReader, Partition, Range
from transport.views import Registered

AT_ONCE = 50
TOGETHER_BYTES = 1 << 20
"""Small chunks that are loaded in one transaction: of a table of few rows to write them is the least."""


class Final(NamedTuple):
    """A final chunk that is to be loaded, and the version of the table that its rows are of."""

    progress: TableProgress
    manifest: Manifest
    version: Registered


class Loader:
    """Writes chunks, and knows which ones are written, whoever did it."""

    def __init__(
        self,
        log: Log,
        reader: LogReader,
        target: Target,
        tables: TargetTables,
        standing: Standing,
        trays: Trays,
        clock: Callable[[], float],
        limits: Limits,
        stats: Stats,
    ) -> None:
        self._log, self._reader, self._target = log, reader, target
        self._tables, self._standing, self._trays = tables, standing, trays
        self._clock, self._limits, self._stats = clock, limits, stats
        self.share: frozenset[int] = frozenset()  # of the work partitions
        self._loaded: dict[tuple[TableId, int], set[int]] = {}  # by table and generation
        self._loaded_until = -1e9  # when they may be asked for again
        self._todo: list[tuple[TableId, int, int]] = []
        self._found: tuple[int, int] | None = None  # what was known when chunks were looked for
        self._looked_at = self._find_from = -1e9

    def begin_again(self) -> None:
        """Forget what was to be done."""
        self._read_loaded()
        self._todo.clear()
        self._found = None
        self.look_now()

    def look_now(self) -> None:
        """Look for chunks at the next step, however lately that was done."""
        self._looked_at = -1e9

    def load_next(self) -> bool:
        """Load the next final chunks of this worker's share: a large one, or several small ones at once."""
        if not self._todo:
            now = self._clock()
            if now - self._looked_at < self._limits.share_every:
                return False
            self._looked_at = now
            self._tables.chunks.refresh(fresh=False)
            known = (self._tables.chunks.next, self._standing.revision)
            if self._found != known and now >= self._find_from:
                self._found = None if self._find_chunks() else known
                # With very many tables that takes its time, and every chunk of any table is a reason for it.
                self._find_from = now + 10 * (self._clock() - now)
            if not self._todo:
                return False
        chunks: list[Final] = []
        size = 0
        while self._todo and len(chunks) < AT_ONCE:
            chunk = self._still_wanted(*self._todo[-1])
            if chunk is not None:
                size += chunk.manifest.bytes
                if chunks and size > TOGETHER_BYTES:
                    break
                chunks.append(chunk)
            self._todo.pop()
        if chunks:
            self.load(*chunks)
        return True

    def _still_wanted(self, table: TableId, generation: int, number: int) -> Final | None:
        progress, chunks = self._standing.tables[table], self._tables.chunks.of(table)
        if progress.state is not TableState.LOADING or progress.generation != generation:
            return None
        if chunks.plan is None or chunks.plan.generation != generation or number not in chunks.manifests:
            return None  # the log knows a later plan by now
        return Final(progress, chunks.manifests[number], self._tables.versions.by_schema(chunks.plan.schema_id))

    def _find_chunks(self) -> bool:
        """Note the chunks that are final, of this worker's share, and not loaded yet; return whether there may be more
        once it is known what others did."""
        late = False
        for table, chunks in self._tables.chunks.tables.items():
            progress = self._standing.tables.get(table)
            if progress is None or chunks.plan is None or table not in self._tables:
                continue
            if progress.state is not TableState.LOADING or progress.generation != chunks.plan.generation:
                late |= takes_generations(progress) and progress.generation < chunks.plan.generation
                continue
            self._todo += [
                (table, progress.generation, number)
                for number in sorted(chunks.manifests, reverse=True)
                if number != HEAL
                and chunk_share(table, number) in self.share
                and number not in self._loaded_of(progress)
            ]
        if late:
            self._standing.refresh()
        return late

    def has(self, progress: TableProgress, numbers: set[int]) -> bool:
        """Whether the target has all these chunks of a table; others' are asked for not all too often."""
        if not numbers <= self._loaded_of(progress) and self._clock() >= self._loaded_until:
            self._read_loaded()
        return numbers <= self._loaded_of(progress)

    def is_healed(self, progress: TableProgress) -> bool:
        """Whether the target has what heals a table, or renews a part of it, as far as this worker knows: who writes it
        finds out for certain."""
        return HEAL in self._loaded_of(progress)

    def _loaded_of(self, progress: TableProgress) -> set[int]:
        return self._loaded.setdefault((progress.table, progress.generation), set())

    def _read_loaded(self) -> None:
        """Ask the target which chunks are loaded, others' too; not again before ten times as long as that took."""
        began = self._clock()
        self._loaded = self._target.chunks()
        took = self._clock() - began
        self._loaded_until = self._clock() + max(self._limits.share_every, 10 * took)

    def load(self, *chunks: Final) -> None:
        """Write chunks' rows; if that is refused, each chunk's by itself."""
        try:
            loads = [self._prepared(chunk) for chunk in chunks]
            loaded = self._target.load(loads)
        except TableRefused as refused:
            if len(chunks) == 1:
                self._standing.fail(refused.table, refused.cause)
                return
            for chunk in chunks:
                if self._standing.tables[chunk.progress.table] is chunk.progress:
                    self.load(chunk)
            return
        for load, rows in zip(loads, loaded, strict=True):
            self._loaded_of(load.table).add(load.chunk)
            if rows >= 0:
                self._stats.chunks_loaded += 1
                self._stats.rows_loaded += rows
                self._trays.tell(load.tray)
            self._standing.ripe[load.table.table] = None

    def _prepared(self, chunk: Final) -> Load:
        progress, manifest, version = chunk
        version, number = self._tables.accepted(version), manifest.chunk
        renews = manifest.generation in self._tables.chunks.of(progress.table).parts
        tray = self._trays.for_chunk(progress.table, number, renews=renews)
        return Load(version, progress, number, manifest.rows, lambda: self._rows_of(manifest, version), tray)

    def _rows_of(self, manifest: Manifest, version: Registered) -> Iterator[bytes]:
        partition, span = Partition(manifest.topic, manifest.partition), Range(manifest.start, manifest.end)
        try:
            for batch in self._batches(partition, span):
                yield version.narrow.batch(batch) if isinstance(version, Narrowed) else batch
        except LogRewound as error:
            if self._log.offsets(partition).start <= span.start:
                raise
            table = TableId(manifest.table_schema, manifest.table_name)
            self._tables.chunks.refresh()
            load = self._tables.chunks.of(table)
            planned = load.plan is not None and load.plan.generation == manifest.generation and not load.outdated
            if not (planned or manifest.generation in load.parts) or self._tables.are_others:
                raise WriteConflict(f"a chunk of {table} was forgotten because nobody needs it any more") from error
            raise TableRefused(table, forgotten()) from error

    def _batches(self, partition: Partition, span: Range) -> Iterable[bytes]:
        if span.start == span.end:
            return
        count = 0
        for block in self._reader.read(partition, span):
            count += block.offsets
            for _, value in unpack(block.data):
                if value is None:
                    raise GapDetected(f"a batch in {partition.topic} is empty")
                yield value
        if count != span.end - span.start:
            raise GapDetected(f"{partition.topic} holds {count} batches in {span}")


def takes_generations(progress: TableProgress) -> bool:
    """Whether a table takes another generation. One that is past its load has all of a generation that was complete;
    one that is paused takes it when it goes on."""
    return progress.state is not TableState.PAUSED and progress.goes_on_in is TableState.LOADING
