"""Statements from definitions: what depends on the target's version, and what is made when."""

from __future__ import annotations

from conversion.ddl import (
    after_load,
    create_table,
    drop_tables,
    foreign_keys,
    in_order,
    key_constraint,
    objects_statements,
    sequence_value,
)
from conversion.loss import all_losses, losses
from schemas.table import Column, ColumnDetails, Constraint, Definition, Objects, Sequence, Table, TableId
from schemas.types import Kind

ID = TableId("shop", "orders")


def table(definition: Definition, key: tuple[int, ...] = (0,), columns: tuple[str, ...] = ("id", "a")) -> Table:
    carried = tuple(Column(name=name, kind=Kind.INT32, source_type="integer") for name in columns)
    return Table(id=ID, columns=carried, key=key, definition=definition)


PRIMARY = Constraint(name="orders_pkey", definition="PRIMARY KEY (id)", columns=("id",))
UNIQUE = Constraint(name="orders_a_key", definition="UNIQUE (a)", columns=("a",))
UNIQUE_INDEX = Constraint(
    name="orders_a_idx", definition="CREATE UNIQUE INDEX orders_a_idx ON shop.orders USING btree (a)", columns=("a",)
)
COLUMNS = (
    ColumnDetails(name="id", source_type="integer", nullable=False),
    ColumnDetails(name="a", source_type="integer"),
)


def test_the_key_is_made_with_the_table_and_the_rest_after_the_load() -> None:
    t = table(Definition(columns=COLUMNS, primary_key=PRIMARY, uniques=(UNIQUE,)))
    assert create_table(t) == [
        'create table "shop"."orders" ("id" integer not null, "a" integer, constraint "orders_pkey" PRIMARY KEY (id))'
    ]
    assert after_load(t) == ['alter table "shop"."orders" add constraint "orders_a_key" UNIQUE (a)']


def test_a_unique_index_that_is_the_replica_identity_is_made_with_the_table() -> None:
    t = table(Definition(columns=COLUMNS, primary_key=PRIMARY, indexes=(UNIQUE_INDEX,)), key=(1,))
    assert create_table(t)[1:] == [UNIQUE_INDEX.definition]
    assert after_load(t) == []
    assert key_constraint(t) == UNIQUE_INDEX


def test_an_index_on_an_expression_part_of_the_rows_or_a_deferrable_constraint_is_no_key() -> None:
    for text in (
        "CREATE UNIQUE INDEX i ON shop.orders USING btree (a, lower(b))",
        "CREATE UNIQUE INDEX i ON shop.orders USING btree (a) WHERE (a > 5)",
        "CREATE INDEX i ON shop.orders USING btree (a)",
        "UNIQUE (a) DEFERRABLE",
        "UNIQUE (a WITHOUT OVERLAPS)",
    ):
        index = Constraint(name="i", definition=text, columns=("a",))
        assert key_constraint(table(Definition(columns=COLUMNS, indexes=(index,)), key=(1,))) is None
    included = Constraint(
        name="i",
        definition="CREATE UNIQUE INDEX i ON shop.\"or(d\" USING btree (a) INCLUDE (b) WITH (fillfactor='70')",
        columns=("a",),
    )
    assert key_constraint(table(Definition(columns=COLUMNS, indexes=(included,)), key=(1,))) == included


def test_virtual_columns_are_stored_where_there_are_none() -> None:
    virtual = ColumnDetails(name="v", source_type="integer", generated="(id + 1)", generated_virtual=True)
    t = table(Definition(columns=(virtual,)), key=())
    assert create_table(t) == ['create table "shop"."orders" ("v" integer generated always as ((id + 1)) virtual)']
    assert create_table(t, version=17)[0].endswith("stored)")
    assert [(loss.what, loss.refused) for loss in losses(t, 17)] == [("column v", False)]
    assert losses(t, 18) == []


def test_a_check_that_was_not_validated_waits_for_the_load() -> None:
    check = Constraint(name="c", definition="CHECK ((a > 0)) NOT VALID", columns=("a",))
    t = table(Definition(columns=COLUMNS, checks=(check,)), key=())
    assert "CHECK" not in create_table(t)[0]
    assert after_load(t) == ['alter table "shop"."orders" add constraint "c" CHECK ((a > 0)) NOT VALID']


def test_what_only_18_can_say_is_left_out_below() -> None:
    check = Constraint(name="c", definition="CHECK ((a > 0)) NOT ENFORCED", columns=("a",))
    null = Constraint(name="n", definition="NOT NULL a NOT VALID", columns=("a",))
    t = table(Definition(columns=COLUMNS, checks=(check, null)), key=())
    assert "NOT ENFORCED" in create_table(t)[0]
    assert "NOT NULL a NOT VALID" in after_load(t)[0]
    assert "NOT ENFORCED" not in create_table(t, version=17)[0]
    assert after_load(t, version=17) == []
    assert {loss.what for loss in losses(t, 17)} == {"c", "n"}


def test_words_and_types_that_an_older_target_does_not_know_are_losses() -> None:
    unique = Constraint(name="u", definition="UNIQUE NULLS NOT DISTINCT (a)", columns=("a",))
    multirange = ColumnDetails(name="m", source_type="int4multirange", default="gen_random_uuid()")
    t = table(Definition(columns=(multirange,), uniques=(unique,)), key=())
    assert [loss.refused for loss in losses(t, 12)] == [True, True, True]
    assert len(losses(t, 13)) == 2
    assert losses(t, 15) == []


def test_a_key_that_only_partitions_have_is_told() -> None:
    t = table(Definition(columns=COLUMNS), key=(0,))
    assert [loss.what for loss in losses(t, 18)] == ["key (id)"]


def test_an_identity_takes_its_sequence_with_it() -> None:
    sequence = TableId("shop", "orders_id_seq")
    identity = ColumnDetails(name="id", source_type="bigint", nullable=False, identity="always", sequence=sequence)
    t = table(Definition(columns=(identity,)), key=(), columns=("id",))
    objects = Objects(sequences=(Sequence(id=sequence, definition="as bigint increment by 5 cache 1"),))
    assert create_table(t, objects) == [
        'create table "shop"."orders" ("id" bigint generated always as identity'
        ' (sequence name "shop"."orders_id_seq" increment by 5 cache 1) not null)'
    ]
    assert objects_statements(objects, [t]) == []


def test_objects_are_made_only_if_they_are_not_there() -> None:
    objects = Objects(
        schemas=("shop",),
        extensions=("citext schema public", "plpgsql"),
        types=((TableId("shop", "e"), 'create type "shop"."e" as enum (\'$penstock$\')'),),
        sequences=(Sequence(id=TableId("shop", "s"), definition="as bigint"),),
    )
    schema, extension, built_in, enum, sequence = objects_statements(objects, [])
    assert schema == (
        "do $penstock$ begin if not (to_regnamespace('\"shop\"') is not null)"
        ' then create schema "shop"; end if; end $penstock$'
    )
    assert extension == 'create extension if not exists "citext" schema "public" cascade'
    assert built_in == 'create extension if not exists "plpgsql" cascade'
    assert enum.startswith("do $penstock_$ begin ")
    assert sequence == 'create sequence if not exists "shop"."s" as bigint'


def test_multiranges_are_left_out_of_ranges_before_14() -> None:
    statement = 'create type "s"."r" as range (subtype = integer, multirange_type_name = "s"."r_m""ulti")'
    objects = Objects(types=((TableId("s", "r"), statement),))
    assert "multirange" in objects_statements(objects, [])[0]
    assert "as range (subtype = integer);" in objects_statements(objects, [], version=13)[0]
    assert all_losses([], objects, 13) == []
    column = ColumnDetails(name="m", source_type='s."r_m""ulti"[]')
    t = table(Definition(columns=(column,)), key=())
    assert [loss.what for loss in all_losses([t], objects, 13)] == ["column m"]
    assert all_losses([t], objects, 14) == []


def test_foreign_keys_lead_to_tables_that_are_there() -> None:
    foreign = Constraint(
        name="f", definition="FOREIGN KEY (a) REFERENCES shop.x(id)", references=TableId("shop", "x"), columns=("a",)
    )
    t = table(Definition(columns=COLUMNS, foreign_keys=(foreign,)))
    assert foreign_keys(t) == [f'alter table "shop"."orders" add constraint "f" {foreign.definition}']
    assert foreign_keys(t, among={ID}) == []


def test_parents_come_before_those_that_inherit() -> None:
    parent = Table(id=TableId("z", "parent"), columns=())
    child = Table(id=TableId("a", "child"), columns=(), definition=Definition(inherits=(parent.id,)))
    assert in_order([child, parent]) == [parent, child]
    assert in_order([child]) == [child]


def test_tables_are_dropped_together_and_sequences_set_as_they_stand() -> None:
    assert drop_tables([]) == []
    assert drop_tables([Table(id=ID, columns=())]) == ['drop table if exists "shop"."orders"']
    assert sequence_value(TableId("s", "it's"), 7, False) == (
        "select pg_catalog.setval('\"s\".\"it''s\"'::regclass, 7, false)"
    )
