"""What carries a new version of a table to a target, where the text alone tells whether that is right."""

from conversion.alter import alter_table
from schemas.table import Column, ColumnDetails, Definition, Table, TableId
from schemas.types import Kind

ID = TableId("shop", "parts")


def version(*computed: ColumnDetails, plain: tuple[tuple[int, str], ...] = ((1, "id"),)) -> Table:
    columns = tuple(
        Column(name=name, kind=Kind.INT32, source_type="integer", type_oid=23, type_modifier=-1, number=number)
        for number, name in plain
    )
    details = tuple(ColumnDetails(name=name, source_type="integer", number=number) for number, name in plain)
    return Table(id=ID, columns=columns, key=(0,), definition=Definition(columns=(*details, *computed)))


def twice(expression: str = "(id * 2)", name: str = "twice") -> ColumnDetails:
    return ColumnDetails(name=name, source_type="integer", generated=expression, number=2)


def test_a_column_that_is_computed_in_another_way_is_made_anew() -> None:
    assert alter_table(version(twice()), version(twice("(id * 3)")), made=True) == [
        'alter table "shop"."parts" drop column "twice"',
        'alter table "shop"."parts" add column "twice" integer generated always as ((id * 3)) stored',
    ]
    assert alter_table(version(twice()), version(twice()), made=True) == []


def test_a_column_that_is_computed_no_more_keeps_what_its_rows_have() -> None:
    assert alter_table(version(twice()), version(plain=((1, "id"), (2, "double"))), made=True) == [
        'alter table "shop"."parts" alter column "twice" drop expression if exists',
        'alter table "shop"."parts" rename column "twice" to "double"',
    ]
    # Another column of that name is another column.
    assert alter_table(version(twice()), version(plain=((1, "id"), (3, "twice"))), made=True) == [
        'alter table "shop"."parts" drop column "twice"',
        'alter table "shop"."parts" add column "twice" integer',
    ]
