"""``vitrail serve``."""

from __future__ import annotations

from typing import Annotated

import typer

from vitrail.cli.options import BatchSize, Device, Quiet, Runtime


def serve(
    model: Annotated[str, typer.Argument(help="A run folder, or any model that finetune's --weights takes.")],
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    name: Annotated[
        list[str] | None, typer.Option(help="A further name it is asked by, such as a proxy's; may be repeated.")
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    runtime: Runtime = None,
    quiet: Quiet = False,
) -> None:
    """Answer over HTTP: a picture in, classes or features out, and a page to try it on."""
    from vitrail.serve.server import serve as task

    task(model, host, port, name or (), batch_size, device, runtime, quiet)
