"""Settings from the environment."""

import pytest

from schemas.config import settings
from schemas.errors import ConfigInvalid


def test_nothing_set_gives_defaults() -> None:
    assert settings({}).metrics_port is None


def test_a_variable_is_read() -> None:
    assert settings({"PENSTOCK_METRICS_PORT": "9187"}).metrics_port == 9187


def test_a_wrong_value_is_told_by_name_alone() -> None:
    with pytest.raises(ConfigInvalid, match="PENSTOCK_LOG_LEVEL") as caught:
        settings({"PENSTOCK_LOG_LEVEL": "hunter2"})
    assert "hunter2" not in str(caught.value)
