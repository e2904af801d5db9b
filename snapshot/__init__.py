"""The service that reads whole tables into the log, in snapshots that meet the change stream exactly.

`reader` says what an engine has to offer, `rules` which snapshot may serve what, `holder` keeps snapshots alive,
`loop` reads chunks and makes them final, `heal` mends what was read in several snapshots; each other file is one
engine.
"""
