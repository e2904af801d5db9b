"""One package an engine: connecting, catalogue, quoting, types, positions, error mapping. No service logic."""
