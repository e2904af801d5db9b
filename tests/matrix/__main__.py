"""Measure the matrix and write `docs/type-matrix.md`: `python -m tests.matrix [SOURCE-URL TARGET-URL]`.

Without URLs of servers (as superuser, with `wal_level = logical`), on those that the tests have.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests import servers
from tests.conftest import fresh_database
from tests.e2e.conftest import project_of
from tests.matrix import document
from tests.matrix.run import measure


def main() -> int:
    if sys.argv[1:]:
        lent = [servers.Postgres(url, "given") for url in sys.argv[1:3]]
        return write(*lent)
    with (
        servers.postgres(servers.DEFAULT.source, servers.SOURCE_VARIABLE) as source,
        servers.postgres(servers.DEFAULT.target, servers.TARGET_VARIABLE) as target,
    ):
        return write(source, target)


def write(source: servers.Postgres, target: servers.Postgres) -> int:
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_database(source, "matrix_source") as source_url,
        fresh_database(target, "matrix_target") as target_url,
    ):
        for project in project_of(Path(folder), source_url, target_url, ""):
            subjects, unequal = measure(project)
    for found in unequal:
        print(f"{found.subject.case.type}, {found.kind}, {found.step}: {found.what}")
    before = document.PATH.read_text() if document.PATH.exists() else ""
    document.PATH.write_text(document.text(document.lines(subjects, unequal), before))
    return len(unequal)


if __name__ == "__main__":
    sys.exit(main())
