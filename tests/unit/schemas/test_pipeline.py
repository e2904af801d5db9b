"""The pipeline file: what is accepted, and that every mistake is told with file and line and without secrets."""

from pathlib import Path

import pytest

from schemas.errors import ConfigInvalid
from schemas.pipeline import (
    AtBudget,
    LogSettings,
    Mode,
    OnRowError,
    Pipeline,
    Prepare,
    duration,
    load_pipeline,
    matches,
    size,
)
from schemas.table import TableId

GOOD = """\
pipeline: shop
source:
  url: postgresql://penstock:${SECRET}@db/shop
tables: ["public.*", "!public.tmp_*"]
log: kafka://broker-1:9092,broker-2:9092
state: ./.penstock
mode: load-and-changes
targets:
  - name: copy
    url: postgresql://penstock@other/shop
    prepare: create
  - name: reports
    url: postgresql://penstock@reports/dwh
    tables: ["public.orders*"]
"""


def load(folder: Path, text: str, **variables: str) -> Pipeline:
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return load_pipeline(file, {"SECRET": "hunter2", **variables})


def refused(folder: Path, text: str) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as caught:
        load(folder, text)
    assert caught.value.remedy
    assert "hunter2" not in str(caught.value) + caught.value.remedy
    return caught.value


def test_the_example_of_the_manual_is_read(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD)
    assert pipeline.pipeline == "shop"
    assert pipeline.source.url.get_secret_value() == "postgresql://penstock:hunter2@db/shop"
    assert pipeline.log.url == "kafka://broker-1:9092,broker-2:9092"
    assert pipeline.state == tmp_path / ".penstock"
    assert pipeline.mode is Mode.LOAD_AND_CHANGES
    assert [target.prepare for target in pipeline.targets] == [Prepare.CREATE, Prepare.CREATE]
    assert pipeline.target("reports").tables == ("public.orders*",)


def test_the_smallest_file_has_defaults(tmp_path: Path) -> None:
    pipeline = load(
        tmp_path,
        "pipeline: p\nsource: {url: 'postgresql://a/b'}\ntargets: [{name: t, url: 'postgresql://a/c'}]\n",
    )
    assert pipeline.log.url is None
    assert pipeline.tables == ("*.*",)
    assert pipeline.state == tmp_path / ".penstock"


def test_no_secret_is_in_the_representation(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load(tmp_path, GOOD))


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("mode: load-and-changes", "modes: load", 7, "unknown key 'modes'"),
        ("mode: load-and-changes", "mode: sometimes", 7, "mode"),
        ("mode: load-and-changes", "mode: load\nmode: load", 8, "twice"),
        ("pipeline: shop", "pipeline: My-Shop", 1, "pipeline"),
        ("pipeline: shop", "pipeline: 12", 1, "string"),
        ("pipeline: shop\n", "", 1, "'pipeline' is missing"),
        ("${SECRET}@db/shop", "${NOT_THERE}@db/shop", 3, "'NOT_THERE' is not set"),
        ("postgresql://penstock:${SECRET}@db/shop", "mysql://penstock:${SECRET}@db/shop", 3, "postgresql://"),
        ("@db/shop", "@db", 3, "no database"),
        ('tables: ["public.*"', '  at-wal-budget: release\ntables: ["public.*"', 2, "wal-budget: 50GB"),
        ('tables: ["public.*"', '  wal-budget: 50\ntables: ["public.*"', 4, "500MB"),
        ("name: reports", "name: copy", 12, "second target"),
        ("name: reports", "name: Reports!", 12, "name"),
        ("    url: postgresql://penstock@reports/dwh\n", "", 12, "'url' is missing"),
        ("    prepare: create", "    prepared: create", 11, "unknown key 'prepared'"),
        ("    prepare: create", "    prepare: perhaps", 11, "prepare"),
        ("log: kafka://broker-1:9092,broker-2:9092", "log: http://broker", 5, "kafka://"),
        ("log: kafka://broker-1:9092,broker-2:9092", "log: {budget: 20}", 5, "500MB"),
        ("log: kafka://broker-1:9092,broker-2:9092", "log: {budget: 20 parsecs}", 5, "500MB"),
        ("log: kafka://broker-1:9092,broker-2:9092", "log:\n  budget: 1GB\n  deadline: 10", 7, "500ms"),
        ("log: kafka://broker-1:9092,broker-2:9092", "log: {replication-factor: 3}", 5, "kafka://"),
        ("mode: load-and-changes", "workers: {snapshot: 0}", 7, "workers.snapshot"),
        ("mode: load-and-changes", "mode: [load", 8, "not YAML"),
        ('tables: ["public.*", "!public.tmp_*"]', "tables: public.*", 4, "tables has to be a list"),
        ("    prepare: create", "    on-row-error: drop-it", 11, "on-row-error"),
        ("    prepare: create", "    rules: [{on-row-error: set-aside}]", 11, "'tables' is missing"),
        ("    prepare: create", "    rules: [{tables: [a], what: set-aside}]", 11, "unknown key 'what'"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in GOOD
    error = refused(tmp_path, GOOD.replace(old, new))
    assert str(error).startswith(f"{tmp_path}/pipeline.yaml:{line}: ")
    assert words in str(error)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "pipeline.yaml:1: " in str(refused(tmp_path, ""))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="can't be read"):
        load_pipeline(tmp_path / "nothing.yaml")


def test_a_log_may_be_a_mapping(tmp_path: Path) -> None:
    text = GOOD.replace(
        "log: kafka://broker-1:9092,broker-2:9092",
        "log: {url: kafka://b:1, replication-factor: 3, settings: {sasl.password: '${SECRET}'}}",
    )
    log = load(tmp_path, text).log
    assert (log.url, log.replication_factor) == ("kafka://b:1", 3)
    assert log.plain_settings() == {"sasl.password": "hunter2"}
    assert "hunter2" not in repr(log)


def test_the_sources_log_has_no_budget_unless_one_is_given(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).source.wal_budget is None
    given = GOOD.replace("tables: [", "  wal-budget: 50GB\n  at-wal-budget: release\ntables: [", 1)
    source = load(tmp_path, given).source
    assert (source.wal_budget, source.at_wal_budget) == (50 * 10**9, AtBudget.RELEASE)


def test_a_budget_has_a_unit() -> None:
    assert LogSettings.model_validate({"budget": "20GB"}).budget == 20 * 10**9
    assert size("1.5 GiB") == 3 * 2**29
    assert duration("500ms") == 0.5
    assert duration("2h") == 7200


def test_a_pattern_that_matches_nothing_is_told_with_its_line(tmp_path: Path) -> None:
    pipeline = load(tmp_path, GOOD)
    pipeline.require_matches([TableId("public", "orders"), TableId("other", "x")])
    with pytest.raises(ConfigInvalid, match=r"pipeline.yaml:14: no table fits 'public.orders\*'"):
        pipeline.require_matches([TableId("public", "customers")])
    with pytest.raises(ConfigInvalid, match=r"pipeline.yaml:4: no table fits 'public.\*'"):
        pipeline.require_matches([TableId("other", "x")])


def test_a_pattern_for_tables_to_come_is_no_mistake_where_they_are_taken_over(tmp_path: Path) -> None:
    text = GOOD.replace('tables: ["public.*"', 'tables: ["public.*", "events.?_*"', 1)
    there = [TableId("public", "orders")]
    pipeline = load(tmp_path, text)
    pipeline.require_matches(there)
    assert pipeline.awaited(there) == [f"{tmp_path / 'pipeline.yaml'}:4: no table fits 'events.?_*' yet"]
    for wrong in (text.replace("events.?_*", "events.x"), text.replace("load-and-changes", "load")):
        with pytest.raises(ConfigInvalid, match=r"pipeline.yaml:4: no table fits 'events"):
            load(tmp_path, wrong).require_matches(there)


def test_the_last_word_on_a_table_counts_and_the_target_has_it(tmp_path: Path) -> None:
    text = GOOD.replace(
        "mode: load-and-changes",
        """
rules:
  - {tables: ["public.o*"], on-row-error: set-aside}
  - {tables: ["public.orders"], on-row-error: pause-table}""",
    )
    text = text.replace(
        "    prepare: create",
        """
    on-row-error: set-aside
    rules:
      - {tables: ["public.c*"], on-row-error: pause-table}
      - {tables: ["public.customers"], on-row-error: set-aside}""",
    )
    pipeline = load(tmp_path, text)

    def set_aside(target: str) -> set[str]:
        policy = pipeline.policies(target)
        names = ("orders", "others", "customers", "cities", "x")
        return {n for n in names if policy(TableId("public", n)).on_row_error is OnRowError.SET_ASIDE}

    assert set_aside("reports") == {"others"}
    assert set_aside("copy") == {"orders", "others", "customers", "x"}


def test_a_rule_that_fits_no_table_is_told_with_its_line(tmp_path: Path) -> None:
    rule = '    rules: [{tables: ["public.orders", "public.orderz"], on-row-error: set-aside}]'
    pipeline = load(tmp_path, GOOD.replace("    prepare: create", rule))
    with pytest.raises(ConfigInvalid, match=r"pipeline.yaml:11: no table fits 'public.orderz'"):
        pipeline.require_matches([TableId("public", "orders")])


def test_excluding_patterns_win_wherever_they_stand() -> None:
    assert matches(TableId("public", "a"), ("!public.b", "public.*"))
    assert not matches(TableId("public", "b"), ("!public.b", "public.*"))
    assert not matches(TableId("public", "b"), ("public.*", "!public.b"))
    assert matches(TableId("public", "a"), ("!public.b",))


@pytest.mark.parametrize("text", ["pipeline: \0", "pipeline: a: b\n", "pipeline: {", "- 1", "'", "!!binary x: y"])
def test_a_file_that_is_no_mapping_in_yaml_is_told(tmp_path: Path, text: str) -> None:
    assert "pipeline.yaml:1: " in str(refused(tmp_path, text))


@pytest.mark.parametrize("text", ["[" * 5000, "pipeline: &a [*a]"])
def test_a_file_that_is_nested_without_end_is_told(tmp_path: Path, text: str) -> None:
    assert "nested too deeply" in str(refused(tmp_path, text))


def test_what_looks_like_a_date_and_is_none_is_told_with_its_line(tmp_path: Path) -> None:
    assert "pipeline.yaml:2: " in str(refused(tmp_path, "mode: load\npipeline: 2024-02-31\n"))
