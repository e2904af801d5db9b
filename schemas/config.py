"""Settings from the environment: the only place that reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import ConfigInvalid

LogLevel = Literal["debug", "info", "warning", "error"]

_PREFIX = "PENSTOCK_"


class Settings(BaseModel):
    """What belongs to a machine or a container rather than to a pipeline. Each field `x_y` is `PENSTOCK_X_Y`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_level: LogLevel = "info"  # of the services' own log files
    metrics_port: int | None = None  # where a service answers /metrics, /healthz and /readyz
    metrics_host: str = "0.0.0.0"  # where it listens


def environment() -> Mapping[str, str]:
    """Return the environment, for the `${NAME}`s of a pipeline file."""
    return os.environ


def settings(variables: Mapping[str, str] | None = None) -> Settings:
    """Return the settings. Raises `ConfigInvalid` for a value that makes no sense; its name is told, it itself not."""
    given = environment() if variables is None else variables
    known = {name: given[_PREFIX + name.upper()] for name in Settings.model_fields if _PREFIX + name.upper() in given}
    try:
        return Settings.model_validate(known)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        remedy = f"one of {', '.join(get_args(LogLevel))}" if name == "log_level" else "give another value"
        raise ConfigInvalid(f"the environment variable {_PREFIX}{name.upper()} is not valid", remedy=remedy) from None
