"""Which partitions a table had at a point of the stream, of which the catalogue tells only what has become of it.

The stream tells of a partition with its first row, of one that is detached or dropped nothing. So a partition counts as
one until the catalogue's word has its place in the stream, or until another one came that can't have been beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from schemas.table import Partitioned, Table, TableId

_VALUE = re.compile(r"'(?:[^']|'')*'|[^\s,()]+")
_NUMBER = re.compile(r"'?(-?\d+(?:\.\d+)?)'?")
_ENDS = {"MINVALUE": -1, "MAXVALUE": 1}
_LISTS = re.compile(r"\(((?:'(?:[^']|'')*'|[^'()])*)\)")


def same_partitions(one: Table, other: Table) -> bool:
    """Whether two versions have the same partitions."""
    return one.definition.partitions is other.definition.partitions or marks(one) == marks(other)


def marks(table: Table) -> set[tuple[TableId, TableId, str, int, int]]:
    """Return what the partitions of a table may be other ones by."""
    return {(p.id, p.parent, p.bound, p.oid, p.attached) for p in table.definition.partitions}


def grown(last: Table, fresh: Table, oid: int, name: TableId) -> Table:
    """Return the version behind `last` in which a leaf is there that was not known, with all that it is a part of.

    Its name is what the stream calls it; all else of it the catalogue says, which has `fresh`. What the catalogue has
    no more stays, as its own rows may be still to come, unless it can't be there beside what has come.
    """
    before, now = last.definition.partitions, {p.oid: p for p in fresh.definition.partitions}
    above, were_above = _parents(fresh), _parents(last)
    known = {partition.oid: partition for partition in before}
    came: list[Partitioned] = []
    place = oid
    while place in now and place not in known:
        came.insert(0, now[place])
        place = above[place]
    came = [p.model_copy(update={"id": name}) if p.oid == oid else p for p in came]
    names = {p.oid: p.id for p in (*before, *came)}
    came = [p.model_copy(update={"parent": names.get(above[p.oid], p.parent)}) for p in came]
    left: set[int] = set()
    for partition in before:  # parents come before their children
        gone = partition.oid not in now and any(
            partition.id == other.id
            or (were_above[partition.oid] == above[other.oid] and overlap(partition.bound, other.bound))
            for other in came
        )
        if gone or were_above[partition.oid] in left:
            left.add(partition.oid)
    there = tuple(partition for partition in before if partition.oid not in left)
    leaves = [leaf for leaf in last.leaves if leaf.oid not in left]
    leaves += [leaf.model_copy(update={"id": name}) for leaf in fresh.leaves if leaf.oid == oid]
    definition = last.definition.model_copy(update={"partitions": (*there, *came)})
    return last.model_copy(update={"leaves": tuple(leaves), "definition": definition})


def renamed_leaf(last: Table, fresh: Table, oid: int, name: TableId) -> Table:
    """Return a table whose leaf with this number has this name. If another one had it, that has the name by now that
    the catalogue says, or is gone."""
    now = {partition.oid: partition.id for partition in fresh.definition.partitions}
    others = {p.oid for p in last.definition.partitions if p.id == name and p.oid != oid}
    names = {oid: name} | {other: now[other] for other in others if other in now}
    gone = others - names.keys()
    leaves = [leaf for leaf in last.leaves if leaf.oid not in gone]
    parts = [partition for partition in last.definition.partitions if partition.oid not in gone]
    leaves = [leaf.model_copy(update={"id": names.get(leaf.oid, leaf.id)}) for leaf in leaves]
    parts = [part.model_copy(update={"id": names.get(part.oid, part.id)}) for part in parts]
    definition = last.definition.model_copy(update={"partitions": tuple(parts)})
    return last.model_copy(update={"leaves": tuple(leaves), "definition": definition})


def _parents(table: Table) -> dict[int, int]:
    """Return the oid of what each partition is directly a part of; 0 is the table."""
    oids = {partition.id: partition.oid for partition in table.definition.partitions}
    return {partition.oid: oids.get(partition.parent, 0) for partition in table.definition.partitions}


def overlap(one: str, other: str) -> bool:
    """Whether two bounds of partitions have values in common, so that one table can't have both.

    Values are compared as they are written: numbers by their size, all else by its characters. That is the source's
    order but for texts in some collations, where a wrong answer has a target refuse a partition, or its rows.
    """
    if "default" in {one.lower(), other.lower()}:
        return one.lower() == other.lower()
    (kind, first), (other_kind, second) = _values(one), _values(other)
    if kind != other_kind:
        return False  # of tables that are divided in different ways
    if kind == "in":
        return not set(first[0]).isdisjoint(second[0])
    if kind == "with":
        (_, modulus, _, remainder), (_, other_modulus, _, other_remainder) = first[0], second[0]
        return (int(remainder) - int(other_remainder)) % min(int(modulus), int(other_modulus)) == 0
    return _before(first[0], second[1]) and _before(second[0], first[1])


def _values(bound: str) -> tuple[str, list[list[str]]]:
    """Return the kind of a bound, and the values of its lists."""
    kind = bound.partition("(")[0].split()[-1].lower()
    return kind, [_VALUE.findall(values) for values in _LISTS.findall(bound)]


def _before(low: Iterable[str], high: Iterable[str]) -> bool:
    """Whether the lower end of one range is before the upper end of another one."""
    for one, other in zip(low, high, strict=False):
        if one != other:
            return _less(one, other)
        if one in _ENDS:
            break  # what follows means nothing
    return False


def _less(one: str, other: str) -> bool:
    if one in _ENDS or other in _ENDS:
        return _ENDS.get(one, 0) < _ENDS.get(other, 0)
    if (number := _NUMBER.fullmatch(one)) and (other_number := _NUMBER.fullmatch(other)):
        return Decimal(number[1]) < Decimal(other_number[1])
    return one.strip("'") < other.strip("'")
