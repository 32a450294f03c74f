"""A model at an address, until Ctrl-C."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from vitrail.errors import UserError
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import load


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch_size: int = 32,
    device: str | None = None,
    runtime: str | None = None,
    quiet: bool = False,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM; those that were taken in are answered before it ends.

    Args:
        model: anything that ``vitrail.load`` takes.
        host: an address of this machine; 0.0.0.0 for all.
        port: 0 for any that is free.
        runtime: as for ``load``.

    Raises:
        UserError: the address cannot be had, fastapi and uvicorn are not installed, or as ``load``.
    """
    try:
        import uvicorn

        from vitrail.serve.app import application
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise UserError("Serving needs fastapi and uvicorn: pip install 'vitrail[serve]'.") from None
    show = Show(quiet)
    with listen(host, port) as listening:
        classifier = load(model, device=device, runtime=runtime, quiet=quiet)
        name = Path(model).absolute().name if Path(model).exists() else model
        app = application(classifier, name, batch_size)
        where, at = listening.getsockname()[:2]
        address = f"[{where}]" if ":" in where else where
        show.say(f"{name} answers at http://{address}:{at} until Ctrl-C.")
        if where not in ("127.0.0.1", "::1"):
            show.say("Whoever reaches this machine over the network may ask it: there is no password.")
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=30)
        with suppress(KeyboardInterrupt):  # which it raises again once it has ended in order
            uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UserError(
            f"Nothing can listen at {host}, port {port} ({reason.lower()}): choose another --port, 0 for any that is "
            "free, or another --host."
        ) from None
