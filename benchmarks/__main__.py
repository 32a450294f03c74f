"""All measurements that this machine and its data allow: ``python -m benchmarks``, some hours on two cores.

Each prints and records its own results, and writes its section of ``docs/performance.md``.
"""

from __future__ import annotations

import os
import subprocess
import sys

ANYWHERE = ("startup", "training", "memory", "inference", "high_resolution", "parity")
WITH_DATA = ("training_curves", "imagenette", "tune", "engines", "predict", "serving", "time_to_accuracy")
"""Those that want VITRAIL_DATA."""


def main() -> None:
    """Run them one after the other, each in a process of its own: none has another's threads and memory."""
    wanted = [*ANYWHERE, *(WITH_DATA if os.environ.get("VITRAIL_DATA") else ())]
    if WITH_DATA[0] not in wanted:
        print("Set VITRAIL_DATA to a folder with imagenette-subset and cifar10 to measure on real pictures too.")
    failed = []
    for words in wanted:
        print(f"benchmarks.{words}", flush=True)
        name, *options = words.split()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode:
            failed.append(words)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
