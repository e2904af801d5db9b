"""What carries a new version of a table to a target, where the text alone tells whether that is right."""

from conversion.alter import alter_table, loosened
from schemas.table import Column, ColumnDetails, Constraint, Definition, Partitioned, Since, Table, TableId
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


def test_what_refuses_rows_and_is_gone_at_the_source_may_go_early_but_never_the_key() -> None:
    def table(*, constrained: bool) -> Table:
        plain = version(plain=((1, "id"), (2, "code"), (3, "note")))
        id, code, note = plain.definition.columns
        columns = (
            id.model_copy(update={"nullable": False}),
            code.model_copy(update={"nullable": not constrained}),
            note.model_copy(update={"default": "" if constrained else "1"}),
        )
        definition = Definition(
            columns=columns,
            primary_key=Constraint(name="k", definition="PRIMARY KEY (id)", columns=("id",)),
            uniques=(Constraint(name="u", definition="UNIQUE (code)", columns=("code",)),) if constrained else (),
            checks=(Constraint(name="c", definition="CHECK (code > 0)", columns=("code",)),) if constrained else (),
        )
        return plain.model_copy(update={"definition": definition})

    old, new = table(constrained=True), table(constrained=False)
    assert alter_table(old, loosened(old, new), made=True) == [
        'alter table "shop"."parts" alter column "code" drop not null',
        'alter table "shop"."parts" drop constraint if exists "u"',
        'alter table "shop"."parts" drop constraint if exists "c"',
    ]
    assert loosened(old, old) == old and loosened(new, old) == new  # nothing is made narrower, nor anything else
    nullable = tuple(column.model_copy(update={"nullable": True}) for column in new.definition.columns)
    keyless = new.model_copy(update={"definition": Definition(columns=nullable)})
    assert loosened(new, keyless) == new


def test_partitions_are_those_of_the_table_by_the_name_that_it_has_there() -> None:
    def table(name: str, parent: str, *parts: str, detached: tuple[str, ...] = ()) -> Table:
        found = tuple(
            Partitioned(id=TableId("shop", part), parent=TableId("shop", parent), bound=f"for {part}", oid=oid)
            for oid, part in enumerate(("first", "second"), 1)
            if part in parts
        )
        since = Since(detached=tuple(TableId("shop", part) for part in detached))
        return Table(
            id=ID,
            renamed=TableId("shop", name),
            columns=(),
            key=(),
            definition=Definition(partitions=found),
            since=since,
        )

    # The table was renamed, and another one may have its name.
    assert alter_table(table("parts", "parts", "first"), table("pieces", "pieces", detached=("first",)), made=True) == [
        'alter table "shop"."parts" rename to "pieces"',
        'alter table "shop"."pieces" detach partition "shop"."first"',
    ]
    # It waits under a third name, or the catalogue was read when it had another one already.
    (attached,) = alter_table(table("aside", "parts", "first"), table("aside", "pieces", "first", "second"), made=True)
    assert 'alter table "shop"."aside" attach partition "shop"."second"' in attached
    assert 'create table "shop"."second" partition of "shop"."aside"' in attached
    (detached,) = alter_table(table("aside", "parts", "first"), table("aside", "x", detached=("first",)), made=True)
    assert detached == 'alter table "shop"."aside" detach partition "shop"."first"'
