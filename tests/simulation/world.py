"""One history: the real loops, a simulated world, a seeded scheduler, and the invariants.

In each turn one process makes one step of its loop. A step that stalls at a call outwards lets others take their turns
inside that call: so steps interleave at every call, though all of it is one thread. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apply.commands import RENEWABLE
from apply.dead_letters import Letter, key_values
from apply.limits import Limits
from apply.loop import Apply
from apply.replay import bundled, changes_of, replay
from apply.target import TableRefused
from capture.loop import Capture, CaptureService
from capture.tables import TableVersions
from control import trimmer
from control.trimmer import Trimmer
from schemas.errors import IntegrityError, LogRewound, ReplicationError, TransientError
from schemas.frontier import (
    Admitted,
    Carried,
    Chosen,
    Claim,
    Command,
    CommandKind,
    Freed,
    Frontier,
    GivenUp,
    Manifest,
    Name,
    Plan,
    Setup,
    SnapshotTaken,
    TableRegistered,
    Unneeded,
)
from schemas.pipeline import OnRowError, Pipeline, TablePolicy
from schemas.record import decode_control, encode_control, value_schema_id
from schemas.states import STOPPED, TableState
from schemas.table import Identity, TableId
from snapshot import rules
from snapshot.holder import Holder
from snapshot.loop import SnapshotWorker
from tests.simulation.database import Database, Shape
from tests.simulation.faults import Faults, Killed, Process
from tests.simulation.log import Shared, SimulatedLog
from tests.simulation.source import (
    SCHEMA,
    UNFIT,
    SimulatedReader,
    SimulatedSnapshotSource,
    SimulatedSource,
    row_of,
    table_id,
    table_of,
)
from tests.simulation.target import Held, Row, Rows, SimulatedTarget, Stored, TargetDatabase, write
from transport.log import Partition, Topic
from transport.memory import MemoryLog
from transport.topics import Topics
from transport.views import Chunks, TableChunks, Tables, read_setup

TURNS_TO_END = 4_000
"""After the last fault and the last change; who needs more hangs."""

FORGOTTEN = "what it needs was forgotten"
"""What a table says that fails because the log has not kept what comes next for it."""

DEEPEST = 3
"""How many steps may be stalled inside each other."""


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class History:
    """What is needed to have one again: with `only`, of all that went wrong just these, by their numbers."""

    seed: int
    turns: int | None = None
    only: frozenset[int] | None = None


class World:
    """The world of one history."""

    waits_for_writers = True  # whether who adds tables does

    def __init__(self, history: History, trace: Callable[[str], None] | None = None) -> None:
        self.history, self.trace = history, trace
        seed = history.seed
        choose = random.Random(seed * 3)
        self.rng = random.Random(seed * 3 + 2)
        self.turns = choose.randint(60, 400)
        if history.turns is not None:
            self.turns = history.turns
        self.trouble = choose.choice([0.0, 0.02, 0.05])
        self.faults = Faults(seed, choose.choice([0.0, 0.005, 0.01, 0.03, 0.1]), history.only, self.stall)
        self.faults.trace = trace
        self.clock = 1_000.0
        self.wall = 0.0  # what the clock on the wall shows beyond that
        self.turn = 0
        self.depth = 0
        self.ending = False

        shapes = [Shape("a"), Shape("b", identity=choose.choice([Identity.KEY, Identity.KEY, Identity.FULL]))]
        if choose.random() < 0.25:
            shapes[1] = Shape("b", keyed=False, identity=choose.choice([Identity.FULL, Identity.NOTHING]))
        self.database = Database(random.Random(seed * 3 + 7), tuple(shapes), judge=self.confirming)
        tie = choose.random() < 0.5
        self.catalogue = [table_of(shape, "a" if tie and shape.name == "b" else None) for shape in shapes]
        self.chunks = choose.randint(1, 3)
        self.rewrites = choose.random() < 0.3

        self.log = JudgedLog(self.look, eager=choose.random() < 0.5)
        self.topics = Topics("p")
        self.shared = Shared(random.Random(seed * 3 + 11), overlapping=choose.random() < 0.2)
        self.kinds: dict[str, Callable[[Process], Any]] = {"capture": self.make_capture, "holder": self.make_holder}
        for number in range(choose.randint(1, 2)):
            self.kinds[f"snapshot-{number}"] = partial(self.make_worker, number=number)
        self.processes: dict[str, list[Process]] = defaultdict(list)
        self.finished: set[str] = set()
        self.resting: set[str] = set()  # targets whose workers somebody has stopped
        self.started: Counter[str] = Counter()
        self.later: list[tuple[int, Callable[[], object]]] = []  # what happens by itself, and at which turn

        self.targets: list[TargetDatabase] = []
        self.chosen: dict[str, frozenset[str]] = {}  # a target's tables
        everything = frozenset(shape.name for shape in shapes)
        self.add_target("t1", everything, choose.randint(1, 2))
        if choose.random() < 0.3:
            some = choose.choice([everything, everything, frozenset("a"), frozenset("b")])
            add = partial(self.add_target, "t2", some, choose.randint(1, 2))
            self.later.append((choose.choice([0, choose.randint(0, self.turns)]), add))
        trims = random.Random(seed * 3 + 13)
        self.trims = trims.random() < 0.5
        if self.trims:
            self.kinds["trimmer"] = self.make_trimmer
            if not self.later and trims.random() < 0.6:
                # Late enough for something to be trimmed, and a while before all faults end.
                self.turns += 100 if history.turns is None else 0
                add = partial(self.add_target, "t2", everything, 1)
                self.later.append((trims.randint(self.turns // 2, max(self.turns // 2, self.turns - 50)), add))

        if self.trims and trims.random() < 0.3:
            # While nobody is there to hear of it.
            table, rest = trims.choice("ab"), trims.random()
            turn = trims.randint(self.turns // 2, self.turns)
            self.later.append((turn, lambda: self.workers_rest(rest)))
            self.later.append((turn + 1, lambda: self.command(CommandKind.RELOAD, table)))

        self.trim_limits = trims.choice([TRIM_LIMITS, PRESSED])
        if not self.trims and trims.random() < 0.3:
            first, then = sorted(trims.randint(0, self.turns) for _ in range(2))
            table = trims.choice("ab")
            self.later.append((first, lambda: self.choose("t1", everything - {table})))
            self.later.append((then, lambda: self.choose("t1", everything)))

        parts = random.Random(seed * 3 + 19)
        if self.trim_limits is not PRESSED and parts.random() < 0.2:
            self.turns += 150 if history.turns is None else 0
            for _ in range(parts.randint(1, 3)):
                turn, table, above = (
                    parts.randint(self.turns // 3, self.turns),
                    parts.choice("ab"),
                    parts.randint(0, 20),
                )
                self.later.append((turn, partial(self.renew, table, above)))

        letters = random.Random(seed * 3 + 17)
        self.sets_aside = letters.random() < 0.4
        if self.sets_aside:
            modulus = letters.choice([2, 3, 9])
            for number, target in enumerate(self.targets):
                target.refuses = partial(_is_refused, modulus + number)
            for _ in range(letters.randint(0, 3)):
                self.later.append((int(letters.random() * self.turns), self.replay))
            for _ in range(letters.randint(0, 2)):
                emptied = partial(self.database.truncate, letters.choice("ab"))
                self.later.append((int(letters.random() * self.turns), emptied))

        self.begun_with = self.has = everything
        if trims.random() < 0.25:
            table, turns = trims.choice("ab"), sorted(trims.randint(0, self.turns) for _ in range(3))
            if trims.random() < 0.5:
                self.begun_with = self.has = everything - {table}
                self.database.silent = {table}
                self.later.append((turns[2], lambda: self.reconfigure(everything)))
            else:
                self.later.append((turns[0], lambda: self.reconfigure(everything - {table}, turns[2])))

        unfit = random.Random(seed * 3 + 19)
        self.leaves_out = unfit.random() < 0.2
        if self.leaves_out:
            table = unfit.choice("ab")
            first, then = sorted(unfit.randint(0, self.turns) for _ in range(2))
            self.later.append((first, lambda: self.database.unfit.add(table)))
            self.later.append((then, lambda: self.database.unfit.discard(table)))
            for _ in range(unfit.randint(0, 3)):
                self.later.append((unfit.randint(first, self.turns), lambda: self.command(CommandKind.RELOAD, table)))

        self._frontiers = self._epoch = -1
        self._valid = 0  # the position that the last valid frontier reaches
        self._chunk_records = 0
        self._load: dict[TableId, TableChunks] = {}
        self._freed: dict[tuple[str, int], int] = {}
        self._renewed = 0  # where the log had been trimmed when a target came that needed another load
        self._setup: Setup | None = None
        self._commands: list[tuple[int, Command]] = []
        self._events = 0
        self._told: dict[tuple[str, str], str] = {}  # the last state of a table on a target
        self._stopped: dict[tuple[str, TableId, int], Rows] = {}  # rows of tables that a command has stopped
        self._by_hand: list[tuple[str, TableId]] = []  # tables of which somebody replays letters

    # ------------------------------------------------------------------------------------------------ services

    def make_log(self, process: Process) -> SimulatedLog:
        return SimulatedLog(self.log, process, self.faults, self.shared)

    def add_target(self, name: str, tables: frozenset[str], workers: int) -> None:
        """Write one more target into the pipeline file, start its workers, and all others who read that file anew."""
        for kind in self.kinds:
            if kind in {"holder", "trimmer"} or kind.startswith("snapshot"):
                self.finished.discard(kind)
                for process in list(self.processes[kind]):
                    self.kill(process)
        target = TargetDatabase(name, self.committed)
        self.targets.append(target)
        self.chosen[name] = tables
        for number in range(workers):
            self.kinds[f"{name}-{number}"] = partial(self.make_apply, target=target)

    def choose(self, name: str, tables: frozenset[str]) -> None:
        """Change a target's tables in the pipeline file, and start its workers anew; in the one direction some of them
        may go on with the old file for a while."""
        leaves_out = len(tables) < len(self.chosen[name])
        self.chosen[name] = tables
        for kind in self.kinds:
            if kind.startswith(f"{name}-"):
                for process in self.processes[kind][: 1 if leaves_out else None]:
                    self.kill(process)

    def pipeline(self) -> Pipeline:
        """The pipeline file as it is now."""
        targets = [
            {
                "name": target.name,
                "url": f"postgresql://{target.name}/simulated",
                "tables": [f"{SCHEMA}.{table}" for table in sorted(self.chosen[target.name])],
            }
            for target in self.targets
        ]
        source = {"url": "postgresql://source/simulated"}
        tables = [f"{SCHEMA}.{table}" for table in sorted(self.begun_with)]
        pipeline = Pipeline.model_validate({"pipeline": "p", "source": source, "tables": tables, "targets": targets})
        # A target may choose what the pipeline is to have only later.
        object.__setattr__(pipeline, "require_matches", lambda there: None)
        return pipeline

    def reconfigure(self, tables: frozenset[str], back_at: int | None = None) -> None:
        """Let the pipeline have other tables, as the command does: published, registered, and nobody writes any more
        who began before that. When the source crashes meanwhile, or there is no setup yet, it begins again. It may have
        all its tables back later."""
        with self.log.reader() as opened:
            try:
                self.log.identity()
                setup = read_setup(opened, self.topics) if self.topics.are_made(self.log) else None
            except LogRewound:
                setup = None
            if setup is None:
                self.later.append((self.turn + 5, lambda: self.reconfigure(tables, back_at)))
                return
            known, chunks = Tables(opened, self.topics), Chunks(opened, self.topics)
            chunks.refresh()
            has = {known.by_schema(n).id.name: n for n in chunks.tables_of(setup)}
        self.database.silent -= tables
        stay = tuple(n for name, n in has.items() if name in tables)
        new: list[int] = []
        added = [table for table in self.catalogue if table.id.name in tables - has.keys()]
        with self.log.writer("control") as writer:
            for table in added:
                topics = [Topic(self.topics.changes(table.id).topic)]
                topics.append(Topic(self.topics.load(table.id).topic, rules.LOAD_PARTITIONS))
                self.log.create_topics(topics)
                changes = self.topics.changes(table.id)
                there = self.log.offsets(self.topics.tables).end
                entry = TableRegistered(table.model_dump_json(), changes.topic, changes.number, known=there)
                key = str(table.id).encode()
                new.append(value_schema_id(writer.put(self.topics.tables, encode_control(entry), key)))
        last, crashes = self.database.snapshot().xmax, self.database.crashes

        def choose() -> None:
            if self.database.crashes != crashes:
                self.reconfigure(tables, back_at)
            elif self.waits_for_writers and self.database.snapshot().xmin < last:
                self.later.append((self.turn + 1, choose))
            else:
                names = tuple(Name(*table.id) for table in added)
                with self.log.writer("control") as writer:
                    writer.put(self.topics.chunks, encode_control(Chosen((*stay, *new), names, (), "", chunks.next, 0)))
                self.has = tables
                if back_at is not None:
                    turn = max(back_at, self.turn) if not self.ending else self.turn
                    self.later.append((turn, lambda: self.reconfigure(frozenset(self.database.tables))))

        choose()

    def monotonic(self) -> float:
        return self.clock

    def now(self) -> float:
        return self.clock + self.wall

    def make_capture(self, process: Process) -> CaptureService | None:
        try:
            self.log.identity()
        except LogRewound:
            return None
        return SimulatedCapture(self, process)

    def make_holder(self, process: Process) -> Holder:
        source = SimulatedSnapshotSource(self.database, process, self.faults, lambda: self.catalogue)
        log = self.make_log(process)
        return Holder(self.pipeline(), log, source, clock=self.monotonic, now=self.now, sleep=self.sleep)

    def make_trimmer(self, process: Process) -> Trimmer:
        targets = {target.name: target for target in self.targets}
        return Trimmer(
            self.pipeline(),
            self.make_log(process),
            clock=self.monotonic,
            now=self.now,
            sleep=self.sleep,
            make_target=lambda settings, _: SimulatedTarget(targets[settings.name], process, self.faults),
            limits=self.trim_limits,
        )

    def make_worker(self, process: Process, number: int) -> SnapshotWorker:
        return SnapshotWorker(
            self.make_log(process),
            self.topics,
            lambda: SimulatedReader(self.database, process, self.faults, self.chunks),
            number,
            clock=self.monotonic,
            now=self.now,
            sleep=self.sleep,
            targets=tuple(target.name for target in self.targets),
        )

    def make_apply(self, process: Process, target: TargetDatabase) -> Apply:
        return Apply(
            "p",
            self.make_log(process),
            SimulatedTarget(target, process, self.faults),
            name=target.name,
            tables=tuple(f"{SCHEMA}.{table}" for table in sorted(self.chosen[target.name])),
            policy=lambda table: SETS_ASIDE if self.sets_aside else TablePolicy(),
            clock=self.monotonic,
            limits=LIMITS,
        )

    def replay(self) -> None:
        """Let somebody replay all dead letters; what may happen to a service may happen to him."""
        for target in self.targets:
            if not target.stored.tables:
                continue
            operator = Process("operator", self.started["operator"])
            self.started["operator"] += 1
            operator.busy = True
            connection = SimulatedTarget(target, operator, self.faults)
            try:
                connection.open(self.log.identity())
                with self.log.reader() as reader:
                    versions = Tables(reader, self.topics)
                    for table, held in list(target.stored.tables.items()):
                        if held.progress.state not in STOPPED:
                            self._by_hand.append((target.name, table))
                            try:
                                replay(connection, table, versions.by_schema)
                            finally:
                                self._by_hand.remove((target.name, table))
            except (Killed, TransientError) as error:
                if self.trace is not None:
                    self.trace(f"  {operator.name} ends: {type(error).__name__}: {error}")
            finally:
                operator.die()

    def sleep(self, seconds: float) -> None:
        """Nobody sleeps: time goes on by itself."""

    # ------------------------------------------------------------------------------------------------ scheduling

    def run(self) -> None:
        """Go through the whole history. Raises `Violated`, or whatever a loop raised that it must not."""
        for _ in range(self.rng.randint(0, 60)):
            self.database.work()
        while self.turn < self.turns:
            self.take_turn()
        self.end()

    def end(self) -> None:
        """Let everything come to rest, then compare."""
        self.ending = self.faults.quiet = True
        for processes in self.processes.values():
            for process in processes[:-1]:
                self.kill(process)
        self.later = [(self.turn, what) for _, what in self.later]
        self.database.settle()
        for table in self.database.tables:
            self.command(CommandKind.RESUME, table)
        for turn in range(TURNS_TO_END):
            self.take_turn()
            if turn % 20 == 0:
                self.look()
                if self.at_rest():
                    break
                self.load_again_what_has_failed()
        self.compare()

    def load_again_what_has_failed(self) -> None:
        """Let somebody see to tables that were left out, one command after the other."""
        for name in self.database.tables:
            held = [(target, target.stored.tables.get(table_id(name))) for target in self.targets]
            late = [1 for t, h in held if h and h.progress.command < self._last_command(t.name, table_id(name))]
            if not late and any(h and h.progress.state is TableState.FAILED for _, h in held):
                self.command(CommandKind.RELOAD, name)

    def take_turn(self) -> None:
        """Let time go on, the application work, something happen, and one process make a step."""
        r = self.rng
        self.turn += 1
        self.clock += r.random() * 0.2
        while due := [entry for entry in self.later if entry[0] <= self.turn]:
            self.later.remove(due[0])
            due[0][1]()
        if not self.ending:
            if r.random() < 0.5:
                self.database.work()
            self.happen(r.random())
        kinds = [k for k in self.kinds if k not in self.finished and k.partition("-")[0] not in self.resting]
        if not kinds:
            return
        kind = kinds[int(r.random() * len(kinds))]
        processes = self.processes[kind]
        if not any(not p.busy for p in processes):
            if processes and not self.ending and r.random() < 0.9:
                return  # it stalls, and nobody has noticed yet
            self.begin(kind)
        free = [p for p in processes if not p.busy]
        self.step(free[int(r.random() * len(free))])

    def begin(self, kind: str) -> Process:
        process = Process(kind, self.started[kind])
        self.started[kind] += 1
        self.processes[kind].append(process)
        return process

    def step(self, process: Process) -> None:
        """Let a process make one step, and do with its errors what `control.service` does."""
        process.busy = True
        try:
            if process.loop is None:
                process.loop = self.kinds[process.kind](process)
            loop = process.loop
            if loop is None:
                return
            if not loop.step() and process.kind == "capture":
                loop.wait(0.2)
            if getattr(loop, "done", False):
                self.finished.add(process.kind)
                self.bury(process)
        except Killed:
            self.bury(process)
        except TransientError as error:
            self.close(process, error)
        except IntegrityError as error:
            # Two of a kind may get in each other's way, and the one that notices ends. Of an apply worker none of that
            # is expected: the comparison in the target keeps them apart.
            if process.kind not in {"capture", "snapshot-0", "snapshot-1"}:
                raise Violated(f"{process.name}: {type(error).__name__}: {error}") from error
            self.close(process, error)
            self.bury(process)
        finally:
            process.busy = False

    def close(self, process: Process, error: Exception) -> None:
        """Close a loop that has failed; the next turn makes another."""
        if self.trace is not None:
            self.trace(f"  {process.name} ends: {type(error).__name__}: {error}")
        loop, process.loop = process.loop, None
        try:
            if loop is not None:
                loop.close()
        except Killed:
            self.bury(process)
        process.cut()

    def kill(self, process: Process) -> None:
        """Kill a process; if it is stalled, it will find out when it goes on."""
        process.die()
        self.shared.put_out(process)
        if not process.busy:
            self.bury(process)

    def bury(self, process: Process) -> None:
        process.die()
        process.loop = None
        self.shared.put_out(process)
        if process in self.processes[process.kind]:
            self.processes[process.kind].remove(process)

    def cut_off(self, process: Process) -> None:
        """Let databases and log take a process for dead that is not."""
        process.cut()
        self.shared.put_out(process)

    def stall(self, process: Process, x: float) -> None:
        """Let others take turns while `process` is in the midst of a call."""
        if self.depth >= DEEPEST:
            return
        self.depth += 1
        turns, doubled, cut = int(x * 40) + 1, x * 40 % 1 < 0.5, x * 80 % 1 < 0.5
        try:
            if cut:
                self.cut_off(process)  # it has not answered for too long
            if doubled and len(self.processes[process.kind]) < 3:
                self.begin(process.kind)
            for _ in range(turns * (3 if doubled else 1)):
                if self.ending or self.turn >= self.turns:
                    break
                self.take_turn()
        finally:
            self.depth -= 1

    def happen(self, x: float) -> None:
        """Let something happen to the world, or to one of its processes, if `x` says so."""
        if x >= self.trouble or (self.history.only is not None and -self.turn not in self.history.only):
            return
        x /= self.trouble
        what = TROUBLES[int(x * len(TROUBLES))]
        y = x * len(TROUBLES) % 1
        told = what(self, y)
        if told:
            self.faults.happened.append((-self.turn, told))
            if self.trace is not None:
                self.trace(f"** {told}")

    # ------------------------------------------------------------------------------------------------ what happens

    def _some(self, y: float) -> Process | None:
        everyone = [process for processes in self.processes.values() for process in processes]
        return everyone[int(y * len(everyone))] if everyone else None

    def some_is_killed(self, y: float) -> str:
        process = self._some(y)
        if process is None:
            return ""
        self.kill(process)
        return f"{process.name} is killed"

    def holder_is_killed(self, y: float) -> str:
        for process in list(self.processes["holder"]):
            self.kill(process)
        return "the holder is killed"

    def some_is_doubled(self, y: float) -> str:
        kinds = [kind for kind, processes in self.processes.items() if 0 < len(processes) < 3]
        if not kinds:
            return ""
        return f"{self.begin(kinds[int(y * len(kinds))]).name} starts beside another"

    def the_older_is_killed(self, y: float) -> str:
        for processes in self.processes.values():
            if len(processes) > 1:
                self.kill(processes[0])
                return f"{processes[0].name if processes else 'it'} lives on alone"
        return ""

    def some_is_cut_off(self, y: float) -> str:
        process = self._some(y)
        if process is None:
            return ""
        self.cut_off(process)
        return f"{process.name} loses its connections"

    def source_crashes(self, y: float) -> str:
        self.database.crash()
        return "the source crashes"

    def table_is_rewritten(self, y: float) -> str:
        if not self.rewrites:
            return ""
        table = self.database.tables[int(y * 2) % len(self.database.tables)]
        if y * 4 % 1 < 0.5:
            self.database.rewrite(table)
            return f"{table} is rewritten"
        self.database.truncate(table)
        return f"{table} is truncated"

    def target_is_saved(self, y: float) -> str:
        target = self.targets[int(y * len(self.targets))]
        target.backups.append(target.stored.copy())
        return f"{target.name} is saved"

    def target_is_restored(self, y: float) -> str:
        if self.trims:
            return ""  # what it would need may be gone; a person is told so
        target = self.targets[int(y * len(self.targets))]
        # What it was told after that it is told again, and carries out where it stands then.
        self._stopped = {key: rows for key, rows in self._stopped.items() if key[0] != target.name}
        target.restore(target.backups[int(y * 7 % 1 * len(target.backups))] if target.backups else Stored())
        return f"{target.name} is restored"

    def target_is_away(self, y: float) -> str:
        target = self.targets[int(y * len(self.targets))]

        def come_back() -> None:
            target.away = False

        target.cut()
        target.away = True
        turns = int(y * 400 % 40)
        self.later.append((self.turn + turns, come_back))
        return f"{target.name} is away for {turns} turns"

    def workers_rest(self, y: float) -> str:
        target = self.targets[int(y * len(self.targets))].name
        for kind in [kind for kind in self.kinds if kind.startswith(f"{target}-")]:
            for process in list(self.processes[kind]):
                self.kill(process)
        self.resting.add(target)
        turns = int(y * 400 % 100)
        self.later.append((self.turn + turns, lambda: self.resting.discard(target)))
        return f"the workers of {target} rest for {turns} turns"

    def log_is_full(self, y: float) -> str:
        def have_room() -> None:
            self.shared.full = False

        self.shared.full = True
        turns = int(y * 40)
        self.later.append((self.turn + turns, have_room))
        return f"the log is full for {turns} turns"

    def clock_is_set(self, y: float) -> str:
        self.wall = (y - 0.5) * 1_000
        return f"the clock is set by {self.wall:.0f} seconds"

    def command_is_given(self, y: float) -> str:
        # What is paused may lose what it needs in a log that is too small.
        kinds = [CommandKind.RESUME, CommandKind.SKIP, CommandKind.RELOAD, CommandKind.RELOAD]
        if self.trim_limits is not PRESSED:
            kinds += [CommandKind.PAUSE, CommandKind.PAUSE]
        kind = kinds[int(y * len(kinds))]
        table = self.database.tables[int(y * 97 % 1 * len(self.database.tables))]
        target = self.targets[int(y * 89 % 1 * len(self.targets))].name if y * 83 % 1 < 0.5 else ""
        return f"{kind} {table} on {target or 'all targets'}" if self.command(kind, table, target) else ""

    def renew(self, table: str, above: int, paused: bool = False) -> None:
        """Once a table follows the frontiers let it be paused, and when it has stopped ask for those of its rows that
        have larger keys."""
        target = self.targets[0]
        held = target.stored.tables.get(TableId(SCHEMA, table))
        if self.ending or not self.database.shape[table].keyed:
            return
        progress = held.progress if held is not None else None
        if progress is None or progress.state is not TableState.PAUSED or progress.stopped_in not in RENEWABLE:
            if progress is not None and progress.state in RENEWABLE and not paused:
                paused = self.command(CommandKind.PAUSE, table, target.name)
            self.later.append((self.turn + 1, partial(self.renew, table, above, paused)))
            return
        assert held is not None and held.rows is not None
        there = self.database.states[-1][table]
        keys = {int(key or "") for (key,) in held.rows.keyed}
        keys = {key for key in keys if above < key not in there} | self._keys_of(held.letters)
        self.command(
            CommandKind.RELOAD,
            table,
            target.name,
            where=f"key > {above}",
            place=progress.progress.offset,
            schema_id=progress.schema_id,
            keys=tuple(map(str, sorted(keys))),
        )

    def _keys_of(self, letters: Sequence[Letter]) -> set[int]:
        """Return all keys that letters touch."""
        with self.log.reader() as reader:
            versions = Tables(reader, self.topics)
            versions.refresh()
            return {
                int(key_values(versions.by_schema(letter.schema_id).layout, key)[0])
                for letter in letters
                for key in (letter.key, letter.origin)
                if key is not None
            }

    def command(self, kind: CommandKind, table: str, target: str = "", where: str = "", **part: Any) -> bool:
        """Ask for something; return whether there is a log that takes it."""
        try:
            self.log.identity()
        except LogRewound:
            return False
        if not self.topics.are_made(self.log):
            return False
        asked = Command(kind, SCHEMA, table, target, where, "somebody", 0, **part)
        with self.log.writer("control") as writer:
            writer.put(self.topics.chunks, encode_control(asked))
        return True

    # ------------------------------------------------------------------------------------------------ the judge

    def look(self) -> None:
        """Read what is new in the log, by rules of the judge's own."""
        try:
            self.log.identity()
        except LogRewound:
            return
        with self.log.reader() as reader:
            for record in reader.records(self.topics.frontier, self._frontiers + 1):
                self._frontiers = record.offset
                entry = decode_control(record.value or b"")
                if isinstance(entry, Claim):
                    self._epoch = record.offset
                elif isinstance(entry, Frontier) and entry.epoch == self._epoch:
                    self._valid = entry.position
            for record in reader.records(self.topics.chunks, self._chunk_records):
                self._chunk_records = record.offset + 1
                self._judge_chunk(decode_control(record.value or b""), record.offset)
            for record in reader.records(self.topics.events, self._events):
                self._events = record.offset + 1
                event = decode_control(record.value or b"")
                if event.state:
                    self._told[event.target, event.table] = event.state

    def _judge_chunk(self, entry: Any, offset: int) -> None:
        """Ask the fourth invariant: nothing that is finished is begun again."""
        if isinstance(entry, SnapshotTaken):
            return
        if isinstance(entry, Command):
            self._note_command(offset, entry)
            return
        if isinstance(entry, Chosen):
            for added in entry.added:
                asked = Command(CommandKind.RELOAD, added.table_schema, added.table_name, "", "", "", 0)
                self._note_command(offset, asked)
            return
        if isinstance(entry, Unneeded | GivenUp):
            return
        if isinstance(entry, Carried):
            self._load.setdefault(TableId(entry.table_schema, entry.table_name), TableChunks()).after = offset
            return
        if isinstance(entry, Admitted):
            if entry.trimmed > self._renewed:
                self._renewed = entry.trimmed
                for table in self._load.values():
                    table.outdated = True
            return
        if isinstance(entry, Freed):
            place = entry.topic, entry.partition
            self._freed[place] = max(self._freed.get(place, 0), entry.end)
            return
        assert isinstance(entry, Plan | Manifest)
        table = self._load.setdefault(TableId(entry.table_schema, entry.table_name), TableChunks())
        if isinstance(entry, Manifest):
            late = entry.start < self._freed.get((entry.topic, entry.partition), 0)
            late |= entry.snapshot < table.after
            if table.plan is not None and entry.generation == table.plan.generation and not late:
                table.manifests.setdefault(entry.chunk, entry)
            return
        before = table.plan
        if entry.generation <= table.generation:
            return
        if before is not None and not table.outdated:
            name = f"{entry.table_name}, generation {entry.generation}, {entry.cause}"
            if table.complete():
                raise Violated(f"I4: a table that was complete begins again: {name}")
            keyed = self.database.shape[entry.table_name].keyed
            if entry.cause.startswith(rules.REWRITTEN):
                if len(self.database.filenodes[entry.table_name]) == 1 and not self.leaves_out:
                    raise Violated(f"I4: a table that was never rewritten begins again: {name}")
            elif entry.cause != rules.ALONE or keyed:
                raise Violated(f"I4: a table begins again without need: {name}")
        table.plan, table.plan_offset, table.manifests, table.outdated = entry, offset, {}, False
        table.generation = entry.generation

    def _note_command(self, offset: int, command: Command) -> None:
        self._commands.append((offset, command))
        if command.kind == CommandKind.RELOAD:
            table = self._load.setdefault(TableId(command.table_schema, command.table_name), TableChunks())
            if not command.where:
                table.outdated, table.after = True, offset
            table.generation += 1

    def confirming(self, position: int) -> None:
        """Ask the third invariant: nothing is confirmed that no valid frontier holds."""
        self.look()
        beginning = self.database.confirmed if self._frontiers < 0 or not self._valid else self._valid
        if beginning is None or position > beginning:
            raise Violated(f"I3: {position} is confirmed, but {self._valid} is valid")

    def committed(self, target: TargetDatabase) -> None:
        """Ask the second invariant: every table that is live is as the source was at its group's position."""
        for table, held in target.stored.tables.items():
            progress = held.progress
            if progress.state is TableState.FAILED and not self._may_fail(progress.error):
                raise Violated(f"{target.name}: {table} failed: {progress.error}")
            self._obeys(target, table, held)
            if progress.state is TableState.LIVE:
                position = target.stored.groups[progress.group].position
                if position >= len(self.database.states):
                    raise Violated(f"I2: {target.name}: {table} is at {position}, which the source never reached")
                self._equal("I2", target, table, held, position)

    def _may_fail(self, error: str) -> bool:
        """Whether there is a reason for a table to fail: it is left out, or it was, and was told to go on when a log
        that is too small had forgotten what it needs."""
        return self.leaves_out and (UNFIT in error or (self.trim_limits is PRESSED and FORGOTTEN in error))

    def _obeys(self, target: TargetDatabase, table: TableId, held: Held) -> None:
        """Ask whether a table is as the commands that were carried out for it say, and rests while it is stopped."""
        self.look()
        progress, stopped = held.progress, ""
        for offset, command in self._commands:
            if offset > progress.command:
                break
            if command.table_name != table.name or command.target not in {"", target.name}:
                continue
            match command.kind:
                case CommandKind.PAUSE:
                    stopped = stopped or TableState.PAUSED
                case CommandKind.SKIP:
                    stopped = TableState.SKIPPED
                case CommandKind.RESUME if stopped == TableState.PAUSED:
                    stopped = ""
                case CommandKind.RELOAD if command.where:
                    # It does nothing where the table has gone on since.
                    stopped = stopped if progress.state in STOPPED - {TableState.FAILED} else ""
                case CommandKind.RELOAD:
                    stopped = ""
        if (progress.state if progress.state in STOPPED - {TableState.FAILED} else "") != stopped:
            raise Violated(
                f"I5: {target.name}: {table} is {progress.state}, though it was told to be {stopped or 'on'}"
            )
        if (target.name, table) in self._by_hand:
            # Whoever began to replay letters before the table was stopped may go on.
            self._stopped.pop((target.name, table, progress.command), None)
        elif stopped and held.rows is not None:
            rows = self._stopped.setdefault((target.name, table, progress.command), held.rows.copy())
            if rows != held.rows:
                raise Violated(f"I5: {target.name}: {table} is {stopped}, and goes on")

    def _equal(self, invariant: str, target: TargetDatabase, table: TableId, held: Held, position: int) -> None:
        """The rows, with what waits carried out as if nothing were refused, are the source's; and rows that are refused
        are not among them."""
        shape = self.database.shape[table.name]
        wanted = [row_of(shape.keyed, key, value) for key, value in self.database.states[position][table.name].items()]
        rows = held.rows or Rows()
        if any(target.refuses(row) for row in [*rows.keyed.values(), *rows.counted]):
            raise Violated(f"{invariant}: {target.name}: {table} has a row that is refused")
        if held.letters:
            with self.log.reader() as reader:
                versions = Tables(reader, self.topics)
                versions.refresh()
                rows = rows.copy()
                for bundle in bundled(held.letters):
                    try:
                        for change in changes_of(bundle, versions.by_schema):
                            write(change, rows, lambda row: False)
                    except (TableRefused, ReplicationError) as error:
                        raise Violated(
                            f"{invariant}: {target.name}: {table}: a letter does not fit: {error}"
                        ) from error
        found = list(rows.keyed.values()) if shape.keyed else list(rows.counted.elements())
        if Counter(found) != Counter(wanted):
            raise Violated(
                f"{invariant}: {target.name}: {table} at {position} is {sorted(map(repr, found))}, not"
                f" {sorted(map(repr, wanted))}"
            )

    def at_rest(self) -> bool:
        """Whether every table of every target is live, and past the last change."""
        last = max((n for n, (_, changes) in enumerate(self.database.log, 1) if changes), default=0)
        if self.later:
            return False
        if self.has != set(self.database.tables):
            return False
        for target in self.targets:
            if {table.name for table in target.stored.tables} != self.chosen[target.name]:
                return False
            for held in target.stored.tables.values():
                progress = held.progress
                if progress.command < self._last_command(target.name, held.progress.table):
                    return False
                if self._told.get((target.name, str(progress.table)), TableState.WAITING) != progress.state:
                    return False
                if progress.state is TableState.SKIPPED:
                    continue
                alone = not any(other.progress.state is TableState.SKIPPED for other in target.stored.tables.values())
                if progress.state is not TableState.LIVE or (alone and not progress.tied):
                    return False
                if target.stored.groups[progress.group].position < last:
                    return False
        return True

    def _last_command(self, target: str, table: TableId) -> int:
        return max(
            (o for o, c in self._commands if c.table_name == table.name and c.target in {"", target}), default=-1
        )

    def compare(self) -> None:
        """Ask the first invariant: in the end the targets equal the source."""
        self.look()
        if not self.at_rest():
            where = {
                target.name: [
                    (str(table), str(held.progress.state), target.stored.groups[held.progress.group].position)
                    for table, held in target.stored.tables.items()
                ]
                for target in self.targets
            }
            raise Violated(f"it never ends: {where}, the source is at {len(self.database.log)}")
        for target in self.targets:
            target.refuses = lambda row: False
        self.replay()
        for target in self.targets:
            for table, held in target.stored.tables.items():
                if held.progress.state is not TableState.LIVE:
                    continue
                if held.letters:
                    raise Violated(f"{target.name}: {table} has dead letters left: {held.letters}")
                self._equal("I1", target, table, held, len(self.database.log))


TRIM_LIMITS = trimmer.Limits(most_frontiers=3, look_every=0.5)
# As if there were never room enough.
PRESSED = trimmer.Limits(full_from=0.0, look_full_every=0.5, sweep_from=0.0, still=3.0)
LIMITS = Limits(batch_records=6, batch_frontiers=3, piece_bytes=400)

SETS_ASIDE = TablePolicy(on_row_error=OnRowError.SET_ASIDE)


def _is_refused(modulus: int, row: Row) -> bool:
    """Whether a target's constraint refuses a row, by its small column."""
    small = row[-2]
    assert small is not None
    return int(small[1:]) % modulus == 1


TROUBLES = (
    World.some_is_killed,
    World.some_is_killed,
    World.some_is_killed,
    World.holder_is_killed,
    World.some_is_doubled,
    World.some_is_doubled,
    World.the_older_is_killed,
    World.some_is_cut_off,
    World.source_crashes,
    World.table_is_rewritten,
    World.target_is_saved,
    World.target_is_restored,
    World.target_is_away,
    World.workers_rest,
    World.log_is_full,
    World.clock_is_set,
    World.command_is_given,
    World.command_is_given,
)


class JudgedLog(MemoryLog):
    """The log, which the judge reads before any of it goes."""

    def __init__(self, look: Callable[[], None], *, eager: bool) -> None:
        super().__init__("p", eager=eager)
        self._look = look

    def trim(self, partition: Partition, offset: int) -> None:
        self._look()
        super().trim(partition, offset)


class SimulatedCapture(CaptureService):
    """The capture service, over the simulated source and clock."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        super().__init__(world.pipeline(), world.make_log(process))

    def _begin(self, setup: Setup) -> Capture:
        world = self._world
        writer = self._stack.enter_context(self._log.writer("changes"))
        control = self._stack.enter_context(self._log.writer("control"))
        tables = TableVersions(self._reader, self._topics, control.put, world.now)
        source = SimulatedSource(world.database, self._process, world.faults, tables)
        return Capture(
            writer,
            self._reader,
            self._topics,
            source,
            tables,
            setup,
            clock=world.monotonic,
            now=world.now,
            holder=self._process.name,
        )
