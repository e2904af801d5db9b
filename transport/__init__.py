"""The log between the services: one protocol, three implementations."""
