"""What is made when a table is loaded: indexes, keys, statistics, the values of sequences, access and views."""

from __future__ import annotations

from collections.abc import Collection

import psycopg

from apply.postgres import state
from apply.postgres.build import Builder
from apply.postgres.session import Session
from apply.postgres.writers import Writers
from apply.target import TableProgress, TableRefused
from conversion.ddl import access, after_load, foreign_keys, make_view, one_at_a_time
from engines.postgres.errors import translate, translated
from engines.postgres.quoting import literal, quote
from schemas.errors import TransientError
from schemas.pipeline import TargetSettings, matches
from schemas.table import Objects, Table, TableId
from transport.views import Registered

SET_SEQUENCE = """
select pg_catalog.setval({sequence}::regclass, highest.value)
from (select max({column}) as value from {table}) as highest, {name} as now
where highest.value > now.last_value
"""


class Completion:
    """Completes tables on other connections than that which writes; of a table that is not made by us nothing but the
    statistics is ours to make."""

    def __init__(
        self, session: Session, writers: Writers, builder: Builder, settings: TargetSettings, pipeline: str
    ) -> None:
        self._session, self._writers, self._builder = session, writers, builder
        self._settings, self._pipeline = settings, pipeline

    def finish(self, version: Registered, table: TableProgress) -> bool:
        """Go on with indexes and unique constraints; return whether all is there."""
        if not table.made:
            return True
        definition = self._writers.placed(version.table)
        statements = after_load(definition, version=self._session.major)
        done = self._build("finish", definition.id, statements)
        if done and statements:
            self._writers.look_again({definition.name})
        return done

    def tie(
        self,
        version: Registered,
        table: TableProgress,
        objects: Objects,
        others: Collection[TableId],
        *,
        last: bool,
    ) -> bool:
        """Go on with all the rest; return whether it is there. `others` are the tables that keys may refer to."""
        definition = self._writers.placed(version.table)
        # Rows are looked up by their keys whatever is known of them: statistics need not come before the changes.
        statements = [f"analyze {quote(*definition.name)}"]
        keys = definition.definition.foreign_keys if table.made else ()
        if table.made:
            statements += self._sequences(definition)
            # Keys that are looked at while changes go on would refuse what is right only at the end of a transaction.
            if self._session.replica or last:
                statements += self._keys(definition, others)
            statements += self._companions(definition.id, objects)
        done = self._build("tie", definition.id, statements)
        if done and keys:
            self._writers.look_again({definition.name, *(key.references for key in keys if key.references)})
        return done

    def _companions(self, table: TableId, objects: Objects) -> list[str]:
        """Return what gives a table, and the views that read it, to whom they belong; and what makes these views, if
        this is the last table that they wait for."""
        given = self._access(table, objects)
        statements = [one_at_a_time(given, state.LOCK)] if given else []
        if self._settings.views:
            above, tables = {table}, dict[TableId, set[TableId]]()
            for view in objects.views:  # each behind those that it reads
                tables[view.id] = set[TableId]().union(*(tables.get(read, {read}) for read in view.reads))
                if above.intersection(view.reads) and matches(view.id, self._settings.tables):
                    above.add(view.id)
                    below = {read: self._access(read, objects) for read in sorted(tables[view.id])}
                    given = self._access(view.id, objects)
                    statements.append(make_view(view, self._pipeline, state.LOCK, given, below))
        return statements

    def _access(self, id: TableId, objects: Objects) -> list[str]:
        settings = self._settings
        return access(id, objects, grants=settings.grants, owners=settings.owners, version=self._session.major)

    def _keys(self, table: Table, others: Collection[TableId]) -> list[str]:
        """Return what makes the foreign keys, without holding up the writing to either table for long."""
        statements: list[str] = []
        for key in table.definition.foreign_keys:
            one = table.model_copy(update={"definition": table.definition.model_copy(update={"foreign_keys": (key,)})})
            for statement in foreign_keys(one, others, version=self._session.major):
                if key.definition.upper().endswith((" NOT VALID", " NOT ENFORCED")) or table.definition.partition_key:
                    statements.append(statement)
                else:
                    statements.append(f"{statement} not valid")
                    statements.append(f"alter table {quote(*table.name)} validate constraint {quote(key.name)}")
        return statements

    @staticmethod
    def _sequences(table: Table) -> list[str]:
        """Return what sets the columns' own sequences behind the highest value that was loaded, never back."""
        whole = {"smallint", "integer", "bigint"}
        return [
            SET_SEQUENCE.format(
                sequence=literal(quote(*column.sequence)),
                name=quote(*column.sequence),
                column=quote(column.name),
                table=quote(*table.name),
            )
            for column in table.definition.columns
            if column.sequence is not None and column.source_type in whole
        ]

    def built(self) -> list[TableId]:
        with translated("target", "making indexes and keys"):
            return [table for _, table in self._builder.poll()]

    def _build(self, what: str, table: TableId, statements: list[str]) -> bool:
        try:
            return self._builder.go_on((what, table), statements)
        except psycopg.Error as error:
            ours = translate(error, "target", f"making indexes and keys of {table}")
            if isinstance(ours, TransientError):
                raise ours from error
            raise TableRefused(table, ours) from error
