"""All measurements that this machine and its data allow: ``python -m benchmarks``."""

from __future__ import annotations

import os

from benchmarks import imagenette, inference, parity, startup, training


def main() -> None:
    """Run them one after the other; each prints and records its own results."""
    startup.main()
    training.main()
    inference.main()
    parity.main()
    if os.environ.get("VITRAIL_DATA"):
        imagenette.main()
    else:
        print("Set VITRAIL_DATA to a folder with imagenette-subset to measure the main job too.")


if __name__ == "__main__":
    main()
