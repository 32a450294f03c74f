"""A model at an address, until Ctrl-C."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch

from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.classifier import load

LOOPBACK = ("127.0.0.1", "::1")


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Sequence[str] = (),
    batch_size: int = 32,
    device: str | None = None,
    runtime: str | None = None,
    quiet: bool = False,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; what was taken in by then is answered, unless the signal comes twice.

    Args:
        model: anything that ``vitrail.load`` takes.
        host: an address of this machine; 0.0.0.0 for all.
        port: 0 for any that is free.
        names: that it is asked by besides, where ``host`` is for this machine alone; elsewhere any name will do.
        batch_size: pictures that the model is given at once, at most.
        runtime: as for ``load``.

    Raises:
        UserError: the address cannot be had, a name is none, ``batch_size`` is less than 1, fastapi and uvicorn are not
            installed, or as ``load``.
    """
    try:
        import uvicorn

        from vitrail.serve.app import application, host_names
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise UserError("Serving needs fastapi and uvicorn: pip install 'vitrail[serve]'.") from None
    show = Show()  # where it is has to be known, however quiet it is to be

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit:
                os._exit(128 + sig)  # a batch cannot be left in its middle, and nothing is half-written
            super().handle_exit(sig, frame)  # before a word is said, during which the next may come
            show.say("Answering what was taken in. Once more ends it at once.")

    known = host_names((*LOOPBACK, "localhost", *names))  # a slip is told before the model is loaded
    with listen(host, port) as listening:
        classifier = load(model, device=device, runtime=runtime, quiet=quiet)
        name = Path(model).absolute().name if Path(model).exists() else model
        where, at = listening.getsockname()[:2]
        here = where in LOOPBACK
        app = application(classifier, name, batch_size, known if here else None)
        _compiled(classifier.predictor, batch_size, Show(quiet))
        address = f"[{where}]" if ":" in where else where
        show.say(f"{name} answers at http://{address}:{at} until Ctrl-C.")
        if not here:
            show.say("Whoever reaches this machine over the network may ask it: there is no password.")
        with suppress(KeyboardInterrupt):  # which it raises again once it has ended in order
            Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on")).run(sockets=[listening])


def _compiled(predictor: Predictor, most: int, show: Show) -> None:
    """Have the engine compiled for every size of batch that may come, so that no request waits for that."""
    sizes = predictor.sizes(most)
    if sizes:
        show.say(f"Compiling for batches of {', '.join(map(str, sizes))}, so that no request waits for that.")
    config = predictor.model.config
    for size in sizes:
        predictor.features(torch.zeros(size, config.channels, *config.image_size))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, and whose connections send at once what they are given.

    Raises:
        UserError: it cannot be had.
    """
    if not host.strip():
        raise UserError("An empty --host is no address: say 127.0.0.1 for this machine alone, 0.0.0.0 for all.")
    try:
        listening = _listen(host, port)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        if isinstance(error, UnicodeError):  # of which it speaks as of an encoding
            reason = "no host is called so"
        raise UserError(
            f"Nothing can listen at {host}, port {port} ({reason.lower()}): choose another --port, 0 for any that is "
            "free, or another --host."
        ) from None
    # asyncio asks that only of connections that know their protocol, which those of create_server do not. Otherwise
    # the second half of an answer waits until the first is acknowledged: 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _listen(host: str, port: int) -> socket.socket:
    *others, last = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, *_, address in others:
        with suppress(OSError):  # such as one of IPv6, where that is switched off
            return socket.create_server(address, family=family)
    return socket.create_server(last[-1], family=last[0])
