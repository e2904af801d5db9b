"""The compiled transcoder: bytes of a source's formats to row records and back. No I/O, no object per value."""
