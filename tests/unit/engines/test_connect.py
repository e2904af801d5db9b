"""URLs: read, shown without secrets, merged with our settings."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from engines.postgres.connect import SETTINGS, _conninfo, redact
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
        _conninfo("postgresql://u:se@cret@h/d", SETTINGS)
    assert "cret" not in str(caught.value) + caught.value.remedy + str(caught.value.__context__)


def test_options_of_the_url_are_kept_before_ours_which_win() -> None:
    made = conninfo_to_dict(_conninfo("postgresql://h/d?options=-c%20work_mem%3D64MB", SETTINGS))
    options = str(made["options"])
    assert options.startswith("-c work_mem=64MB -c datestyle=ISO ")
    assert "-c default_transaction_isolation=read\\ committed" in options


def test_time_outs_of_the_url_outrank_the_defaults() -> None:
    made = conninfo_to_dict(_conninfo("postgresql://h/d?connect_timeout=3", SETTINGS, application_name="penstock"))
    assert (made["connect_timeout"], made["keepalives"]) == (3, 1) or made["connect_timeout"] == "3"
    assert made["application_name"] == "penstock"
