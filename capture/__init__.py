"""The service that writes a source's committed changes into the log, in commit order, each exactly once.

`source` says what a source is, `loop` turns its steps into frontiers, `tables` knows the versions of every table;
each other file is one engine's source.
"""
