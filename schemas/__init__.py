"""The contract that all services share: tables, records, frontiers, states, settings, errors. No I/O, no drivers."""
