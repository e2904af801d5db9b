"""The real capture, snapshot and apply loops in a small simulated world, with faults at every call outwards.

`world.py` has the scheduler, the faults and the checks; `database.py` the source, `target.py` the target, each as small
and plain as its promise allows. A history is its seed: `python -m tests.simulation --replay 7` runs one again.
"""
