"""A real Apache Kafka broker of one node, from the jars that Maven fetches."""

import base64
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from control.servers.process import ServerProcess, ServerUnavailable, cache_folder, free_port, locked

_POM = Path(__file__).with_name("pom.xml")
_READY = re.compile(r"Kafka Server started")

# Settings that every broker for tests has, whether a process or a container: one node, and quick to notice things.
BROKER_SETTINGS: Mapping[str, str] = {
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A broker that was killed may register again only when its old session has run out.
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    # Classic groups take the client's session time, the new ones the broker's; both have a least one.
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),  # 128 MB of heap otherwise
}


class KafkaServer(ServerProcess):
    """One broker that is its own controller, without authentication, on 127.0.0.1.

    `flush_messages=1` makes it flush every message before it answers; left out, a message may be lost with the
    machine, though not with the process. `quick_start` keeps the JVM to its first compiler: starts in half the
    time, but is slower for ever after, so benchmarks leave it out. `settings` adds lines to server.properties.
    """

    name: ClassVar[str] = "kafka"

    def __init__(
        self,
        *,
        port: int | None = None,
        flush_messages: int | None = None,
        quick_start: bool = True,
        heap: str = "256m",
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        super().__init__(port=port)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._heap = heap
        self._quick_start = quick_start
        self._archive: list[str] = []
        controller = free_port()
        self._settings: dict[str, str | int] = {
            **BROKER_SETTINGS,
            "process.roles": "broker,controller",
            "node.id": 1,
            "log.dirs": str(self.folder / "data"),
            "listeners": f"CLIENT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{self.port}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            **({} if flush_messages is None else {"log.flush.interval.messages": flush_messages}),
            **(settings or {}),
        }
        self._properties = self.folder / "server.properties"

    def prepare(self) -> None:
        cache = fetch()
        archive = cache / "classes.jsa"
        if archive.exists():
            self._archive = [f"-XX:SharedArchiveFile={archive}"]
        self._format(cache)

    def command(self) -> list[str]:
        return self._java("kafka.Kafka", str(self._properties), flags=self._archive)

    def ready(self) -> bool:
        # The broker says so only when the controller has let it in, which a port that is open does not prove.
        return _READY.search(self.output()) is not None

    def _java(self, *arguments: str, flags: list[str]) -> list[str]:
        logging = [
            f"-Dorg.slf4j.simpleLogger.{key}"
            for key in ("defaultLogLevel=warn", "log.kafka.server.KafkaRaftServer=info", "showDateTime=true")
        ]
        compiler = ["-XX:TieredStopAtLevel=1"] if self._quick_start else []
        jvm = [f"-Xmx{self._heap}", "-XX:+UseSerialGC", "-Xshare:auto", *compiler, *flags]
        return [_program("java"), *jvm, *logging, "-cp", f"{cache_folder('kafka') / 'libs'}/*", *arguments]

    def _format(self, cache: Path) -> None:
        """Do what Kafka's storage tool does, without a JVM after the first time.

        The tool's one binary file holds the feature levels and nothing of the cluster, so it is kept.
        """
        self._properties.write_text("".join(f"{key}={value}\n" for key, value in self._settings.items()))
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        data = self.folder / "data"
        kept = cache / "bootstrap.checkpoint"
        if kept.exists():
            data.mkdir()
            shutil.copy(kept, data)
            (data / "meta.properties").write_text(f"version=1\nnode.id=1\ncluster.id={cluster}\n")
            return
        format_ = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._properties)]
        done = subprocess.run(self._java(*format_, flags=[]), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerUnavailable(f"Kafka's storage cannot be formatted:\n{done.stdout}{done.stderr}")


class _TrainingServer(KafkaServer):
    """A broker that writes down, when it stops, which classes it has loaded."""

    def __init__(self, archive: Path) -> None:
        super().__init__()
        self._target = archive

    def prepare(self) -> None:
        self._format(cache_folder("kafka"))
        self._archive = [f"-XX:ArchiveClassesAtExit={self._target}"]

    def save_format(self, target: Path) -> None:
        shutil.copy(self.folder / "data" / target.name, target)


def fetch() -> Path:
    """Fetch the jars through Maven, once a machine, and return the folder that holds them.

    Takes some seconds the first time, in which others wait. Raises `ServerUnavailable` without Java, or if the
    jars are missing and Maven cannot get them.
    """
    _program("java")
    cache = cache_folder("kafka")
    stamp = cache / "fetched-pom.xml"
    with locked(cache / "lock"):
        if not stamp.exists() or stamp.read_bytes() != _POM.read_bytes():
            for old in cache.iterdir():  # all that was made from other versions
                if old.name != "lock":
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            _copy_jars(cache / "libs")
            _train(cache)
            shutil.copy(_POM, stamp)
    return cache


def _copy_jars(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # Maven may write beside the project file, which can lie in a folder that is not ours.
        pom = Path(shutil.copy(_POM, folder))
        done = subprocess.run(
            [
                _program("mvn"),
                "-q",
                "-B",
                "-f",
                str(pom),
                "dependency:copy-dependencies",
                f"-DoutputDirectory={target}",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        output = re.sub(r"https?://\S+", "(address)", done.stdout + done.stderr)  # may hold names and passwords
        raise ServerUnavailable(f"Maven cannot fetch Kafka:\n{output[-2000:]}")


def _train(cache: Path) -> None:
    """Start a broker once to keep its format and, where the JVM can, an archive of its classes."""
    archive = cache / f"classes.{os.getpid()}"
    with _TrainingServer(archive) as server:
        server.save_format(cache / "bootstrap.checkpoint")
        server.stop(60)
    with contextlib.suppress(FileNotFoundError):  # a JVM that cannot do it: every start is only slower
        archive.rename(cache / "classes.jsa")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        package = {"java": "a Java runtime (17 or newer)", "mvn": "Maven"}[name]
        raise ServerUnavailable(f"Kafka needs {package}: install it, so that `{name}` is on the PATH")
    return found
