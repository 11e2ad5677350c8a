"""Runs scenarios and prints what they found as Markdown: `python -m benchmarks window cost --runs 5`.

What is measured is told on stderr as it comes. Every claim is printed with whether it holds; the exit code
stays 0 all the same, unless there is `--check`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.cost import cost
from benchmarks.destinations import destinations
from benchmarks.memory import memory
from benchmarks.people import people
from benchmarks.report import Result
from benchmarks.speed import STEPS, look_ahead, step, storm

RESULTS = Path(__file__).parent / "results"

SCENARIOS: Mapping[str, Callable[[Bench], Result]] = {
    **{name: step(name) for name in STEPS},
    "look_ahead": look_ahead,
    "storm": storm,
    "memory": memory,
    "cost": cost,
    "people": people,
    "destinations": destinations,
}


def main() -> int:
    """Exit code: 1 where a claim does not hold and `--check` asks."""
    chosen = _parse_arguments()
    runs = chosen.runs or (1 if chosen.tiny else 3)
    folder = chosen.results or (None if chosen.tiny else RESULTS)
    results = []
    with Bench(runs=runs, events=chosen.events, is_tiny=chosen.tiny) as bench:
        for name in chosen.scenarios or SCENARIOS:
            results.append(SCENARIOS[name](bench))
            if folder:
                results[-1].save(folder, {"runs": runs, "events": chosen.events, "tiny": chosen.tiny})
            print(results[-1].as_markdown(), flush=True)
    broken = [claim for result in results for claim in result.claims if not claim.holds]
    return 1 if broken and chosen.check else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; or all")
    parser.add_argument("--tiny", action="store_true", help="seconds, for tests: the numbers mean nothing")
    parser.add_argument("--runs", type=int, help="of each contender, interleaved; 3 by default")
    parser.add_argument("--events", type=int, help="instead of each scenario's own number")
    parser.add_argument(
        "--results", type=Path, help="folder of the JSON files; tiny ones are not kept elsewhere"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a claim does not hold")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.scenarios) - set(SCENARIOS)):
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return chosen


if __name__ == "__main__":
    sys.exit(main())
