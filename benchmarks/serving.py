"""``vitrail serve`` beside ``Classifier.predict`` on the same photos: ``python -m benchmarks.serving``.

JPEGs of 500 x 375, made of the real ones of ``imagenette-subset``; random weights with 1,000 classes, by
``openvino:int8`` (``--runtime``). The server is a process of its own; one client, then 16, each with a connection that
stays, post photos from this process, on the same cores. By turns with ``predict`` from the files in batches of 32;
medians over the rounds, and how long an answer takes. Every model is a file in ``results/serving/``. Five minutes on
two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

# As in every command of Vitrail, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import vitrail
from benchmarks.limits import limits
from benchmarks.predict import make_model, make_ours, make_photos
from benchmarks.results_file import RESULTS, publish, record
from vitrail.report.markdown import table
from vitrail.runtime.memory import keep_memory

CELLS = RESULTS / "serving"
CLIENTS = (1, 16)
PREDICT = "vitrail predict"


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=960, help="in all rounds together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["ViT-B/16", "ViT-S/16"])
    parser.add_argument("--runtime", default="openvino:int8")
    asked = parser.parse_args()
    keep_memory()  # as in every command, the server's too
    data = Path(os.environ.get("VITRAIL_DATA", "")) / "imagenette-subset"
    if not (data / "train").is_dir():
        sys.exit("Set VITRAIL_DATA to the folder that holds imagenette-subset/{train,val}.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = make_photos(data, folder / "photos", asked.photos, (500, 375), grain=0)
        for model in asked.models:
            make_model(model, folder)
            ours = make_ours(model, folder, asked.runtime, photos)
            found = {"model": model, "photos": asked.photos, **measured(ours, photos, asked.rounds, asked.runtime)}
            record(f"serving/{model.replace('/', '-')}", found, limits())
    publish("serving", section(), *CELLS.glob("*.json"))


def section() -> str:
    """In Markdown, of what is measured."""
    rows: list[list[str]] = []
    for path in sorted(CELLS.glob("*.json")):
        found = json.loads(path.read_text())["findings"]
        for way, speed in found["images/s"].items():
            waits = found["ms an answer"].get(way)
            rows.append(
                [
                    found["model"],
                    f"{way}, {found['runtime']}",
                    f"{speed:.1f}",
                    f"{found['ratios'][way]:.2f}" if way in found["ratios"] else "",
                    *(f"{wait:.0f}" for wait in waits or ()),
                    *([] if waits else ["", ""]),
                ]
            )
    if not rows:
        return "Not measured yet (`python -m benchmarks.serving`)."
    return table(["model", "way", "images/s", f"to {PREDICT}", "ms an answer, median", "95 % within"], rows)


def measured(folder: Path, photos: Sequence[Path], rounds: int, runtime: str) -> dict[str, object]:
    """Images a second of every way, by turns, each round on its part of the photos; and milliseconds an answer."""
    classifier = vitrail.load(folder, runtime=runtime, quiet=True)
    speeds: dict[str, list[float]] = {PREDICT: [], **{_name(clients): [] for clients in CLIENTS}}
    waits: dict[str, list[float]] = {_name(clients): [] for clients in CLIENTS}
    with serving(folder, runtime) as address:
        asked_by(address, photos[:64], max(CLIENTS))  # warm
        classifier.predict(photos[:64])
        for part in (photos[start::rounds] for start in range(rounds)):
            start = time.perf_counter()
            classifier.predict(part)
            speeds[PREDICT].append(len(part) / (time.perf_counter() - start))
            for clients in CLIENTS:
                start = time.perf_counter()
                waits[_name(clients)] += asked_by(address, part, clients)
                speeds[_name(clients)].append(len(part) / (time.perf_counter() - start))
    medians = {name: round(statistics.median(found), 2) for name, found in speeds.items()}
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(speeds[name], speeds[PREDICT], strict=True)), 3)
        for name in waits
    }
    told = {
        name: [round(1000 * statistics.median(found), 1), round(1000 * statistics.quantiles(found, n=20)[-1], 1)]
        for name, found in waits.items()
    }
    print(folder.name, f"({runtime}), images/s:", medians, ratios, "ms an answer:", told, flush=True)
    return {"runtime": runtime, "images/s": medians, "ratios": ratios, "ms an answer": told}


def _name(clients: int) -> str:
    return f"vitrail serve, {clients} client{'s' if clients > 1 else ''}"


@contextmanager
def serving(folder: Path, runtime: str) -> Iterator[str]:
    """The address that a server of the model answers at, host and port."""
    command = [sys.executable, "-m", "vitrail", "serve", str(folder), "--port", "0", "--runtime", runtime]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        said = ""
        try:
            for line in server.stdout:
                said += line
                if found := re.search(r"http://([\w.:]+)", line):
                    yield found[1]
                    break
            else:
                raise RuntimeError(f"The server did not begin: {said}")
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate()  # it says that it ends, and somebody has to hear it


def asked_by(address: str, photos: Sequence[Path], clients: int) -> list[float]:
    """Post the photos, each client its share over a connection of its own; seconds that each answer took."""

    def client(share: Sequence[Path]) -> list[float]:
        connection, seconds = HTTPConnection(address), []
        for photo in share:
            start = time.perf_counter()
            connection.request("POST", "/predict", photo.read_bytes())
            with connection.getresponse() as answer:
                body = answer.read()
            if answer.status != 200:
                raise RuntimeError(body.decode())
            seconds.append(time.perf_counter() - start)
        connection.close()
        return seconds

    with ThreadPoolExecutor(clients) as pool:
        return [one for share in pool.map(client, [photos[at::clients] for at in range(clients)]) for one in share]


if __name__ == "__main__":
    main()
