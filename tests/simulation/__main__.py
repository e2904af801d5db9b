"""Run histories: `python -m tests.simulation [--histories N] [--seed S]`."""

import argparse
import logging
import time

from tests.simulation.world import History, World

logging.disable(logging.CRITICAL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trace", action="store_true")
    args = parser.parse_args()
    began = time.monotonic()
    for seed in range(args.seed, args.seed + args.histories):
        world = World(History(seed), print if args.trace else None)
        try:
            world.run()
        except Exception as e:
            print("seed", seed, type(e).__name__, str(e)[:600])
            if args.trace:
                raise
    print((time.monotonic() - began) / args.histories)


main()
