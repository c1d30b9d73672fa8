"""A contestant in a process of its own, which `peers` starts: `_contestant.py RACE PLACE [quick]`.

It trains one epoch, and says so. Then it trains as many epochs as each line of the standard input
says, and answers each with the seconds and what there is to report, as a line of JSON.
"""

import importlib
import json
import os
import sys
import time

from contestants import workloads


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    race, place = sys.argv[1:3]
    workload = workloads.load(race, quick="quick" in sys.argv[3:])
    module, function = place.split(":")
    run = getattr(importlib.import_module(f"contestants.{module}"), function)(workload)

    def answer(epochs):
        began = time.perf_counter()
        reported = run(epochs) or {}
        print(json.dumps({"seconds": time.perf_counter() - began, **reported}), file=answers)
        answers.flush()

    answer(1)
    for line in sys.stdin:
        answer(int(line))


if __name__ == "__main__":
    main()
