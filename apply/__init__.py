"""Apply: the log into a target.

A worker is `loop`, and what it lets take turns: `commands` carries out what people ask for, `mover` brings tables to
their next states, `follower` follows the frontiers (`cohort` reads them, `portions` the changes they name), `loader`
loads chunks. They meet in `standing`, where all groups and tables stand, and in `tables`, what the log says of them;
`trays` and `dead_letters` have the rows that were refused.

All of it knows a target only by `target`. The package of one product, as `postgres`, knows nothing of the
others but the values that go to and fro.
"""
