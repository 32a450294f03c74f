"""How long ``import vitrail`` and ``vitrail --help`` take: ``python -m benchmarks.startup``.

Medians of 15 processes each, interleaved with a bare interpreter; the aim is under 0.3 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.results_file import record

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import vitrail": [sys.executable, "-c", "import vitrail"],
    "vitrail --help": [sys.executable, "-m", "vitrail.cli.main", "--help"],
    "vitrail finetune --help": [sys.executable, "-m", "vitrail.cli.main", "finetune", "--help"],
}


def main(rounds: int = 15) -> None:
    """Time them, print and record the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(times), 3) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<26}{median:.3f} s")
    record("startup", medians)


if __name__ == "__main__":
    main()
