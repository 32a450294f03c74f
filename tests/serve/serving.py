"""A model at an address, in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import torch
import uvicorn
from fastapi import FastAPI

from vitrail.serve.app import application
from vitrail.serve.server import listen
from vitrail.tasks.classifier import Classifier, load

CLASSES = ("red <b>", "green", "blue")


class Said(NamedTuple):
    """An answer."""

    status: int
    document: Any
    headers: dict[str, str]


class Served:
    """A server, and how to ask it."""

    def __init__(self, app: FastAPI, server: uvicorn.Server, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.address = f"http://127.0.0.1:{port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Said:
        """One request on a connection of its own."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        told = {name.lower(): value for name, value in response.getheaders()}
        return Said(response.status, json.loads(text) if text and "json" in told["content-type"] else text, told)


@contextmanager
def running(app: FastAPI) -> Iterator[Served]:
    """Serve an application while the block runs."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Served(app, server, listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def serving(classifier: Classifier, **options: Any) -> AbstractContextManager[Served]:
    """Serve a model while the block runs."""
    return running(application(classifier, "toy & co", batch_size=4, **options))


def toy(classes: tuple[str, ...] = CLASSES) -> Classifier:
    """A model of random weights."""
    torch.manual_seed(0)
    classifier = load("none", 32, architecture="ViT-Ti/16", classes=classes, quiet=True)
    if classes:
        torch.nn.init.normal_(classifier.model.classifier.weight)  # type: ignore[union-attr]
    return classifier
