"""URLs: read, shown without secrets, merged with our settings."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from engines.postgres.connect import _conninfo, _settle, redact
from schemas.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgres://h/d?password=secret&sslmode=require", "postgresql://h/d"),
        ("postgresql://u:secret@a:1,b:2/d", "postgresql://u@a:1,b:2/d"),
        ("postgresql://u:secret@a,b:2/d", "postgresql://u@a,b:2/d"),
        ("host=h user=u password=secret dbname=d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/tmp&password=secret", "postgresql://%2Ftmp/d"),
        ("postgresql://u:se@cret@h/d", "postgresql://…"),
        ("postgresql://u:1/secret@h/d", "postgresql://…"),
        ("postgresql://u:12?secret@h/d", "postgresql://u@h/d"),
        ("postgresql://u:secret%@h/d", "postgresql://…"),
        ("mysql://u:secret@h/d", "postgresql://…"),
        ("", "postgresql://…"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact(url) == shown
    assert "cret" not in redact(url)


def test_a_url_that_cannot_be_read_is_refused_without_repeating_it() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        _conninfo("postgresql://u:se@cret@h/d")
    assert "cret" not in str(caught.value) + caught.value.remedy + str(caught.value.__context__)


def test_options_of_the_url_are_kept_and_ours_are_set_afterwards() -> None:
    made = conninfo_to_dict(_conninfo("postgresql://h/d?options=-c%20work_mem%3D64MB"))
    assert made["options"] == "-c work_mem=64MB"
    statement = _settle(160_000, {"row_security": "off"})
    assert statement.startswith("select pg_catalog.set_config('datestyle', 'ISO', false), ")
    assert "set_config('idle_session_timeout', '0', false)" in statement
    assert "set_config('row_security', 'off', false)" in statement
    assert "transaction_timeout" not in statement
    assert "transaction_timeout" in _settle(170_000, {})


def test_a_pooler_in_between_sees_no_options_of_ours() -> None:
    assert "options" not in conninfo_to_dict(_conninfo("postgresql://h/d", application_name="penstock"))


def test_time_outs_of_the_url_outrank_the_defaults() -> None:
    made = conninfo_to_dict(_conninfo("postgresql://h/d?connect_timeout=3", application_name="penstock"))
    assert (made["connect_timeout"], made["keepalives"]) == (3, 1) or made["connect_timeout"] == "3"
    assert made["application_name"] == "penstock"
