"""Who applies what: tables tied by foreign keys go together, and everything is shared by work partitions.

A group is a work partition and all that falls into it: tables that foreign keys tie to each other fall together. So
there are never more groups than work partitions, whatever the number of tables, and one worker's groups are read from
the frontiers in one go.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from schemas.table import Table, TableId
from transport.log import WORK_PARTITIONS


def components(tables: Iterable[Table]) -> list[tuple[TableId, ...]]:
    """Return the sets of tables that foreign keys tie together, each sorted, in the order of their first tables."""
    tables = list(tables)
    root = {table.id: table.id for table in tables}
    # A foreign key may name a partition; what is tied is the table that it belongs to.
    whole = {part.id: table.id for table in tables for part in table.definition.partitions}

    def find(table: TableId) -> TableId:
        while root[table] != table:
            root[table] = table = root[root[table]]
        return table

    for table in tables:
        for key in table.definition.foreign_keys:
            other = key.references and whole.get(key.references, key.references)
            if other in root:
                first, second = sorted((find(table.id), find(other)))
                root[second] = first
    found: dict[TableId, list[TableId]] = {}
    for table_id in sorted(root):
        found.setdefault(find(table_id), []).append(table_id)
    return [tuple(members) for members in found.values()]


def group_of(component: Iterable[TableId]) -> int:
    """Return the group that tables fall into which are tied together: decided by the smallest name."""
    return zlib.crc32(str(min(component)).encode()) % WORK_PARTITIONS


def assign(tables: Iterable[Table], known: Mapping[TableId, int]) -> dict[TableId, int]:
    """Return the group of every table. One that is known keeps its group for ever, because its changes are counted
    as applied there; one that is tied to a known one goes there too."""
    groups: dict[TableId, int] = {}
    for component in components(tables):
        given = [known[table] for table in component if table in known]
        group = given[0] if given else group_of(component)
        groups |= {table: known.get(table, group) for table in component}
    return groups


def chunk_share(table: TableId, chunk: int) -> int:
    """Return the work partition whose owner loads a chunk."""
    return zlib.crc32(f"{table}/{chunk}".encode()) % WORK_PARTITIONS
