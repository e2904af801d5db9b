"""The service that carries the log to a target: prepare, load, catch up, and follow, exactly once."""
