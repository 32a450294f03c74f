"""The ``vitrail`` command: every subcommand is one thin file beside this one."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Annotated

import typer

from vitrail import __version__
from vitrail.cli.compare import compare
from vitrail.cli.convert import convert
from vitrail.cli.embed import embed
from vitrail.cli.evaluate import evaluate
from vitrail.cli.few_shot import few_shot
from vitrail.cli.finetune import finetune
from vitrail.cli.inspect import inspect
from vitrail.cli.noisy_student import noisy_student
from vitrail.cli.parity import parity
from vitrail.cli.predict import predict
from vitrail.cli.pretrain import pretrain
from vitrail.cli.recipes import recipes
from vitrail.cli.report import report
from vitrail.cli.reproduce import reproduce
from vitrail.cli.serve import serve
from vitrail.cli.show import show
from vitrail.cli.suite import suite
from vitrail.cli.tune import tune
from vitrail.errors import UserError
from vitrail.runtime.memory import keep_memory

app = typer.Typer(
    help="Vision Transformers from paper to practice: labelled photos in, a classifier out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    finetune,
    pretrain,
    evaluate,
    predict,
    embed,
    inspect,
    report,
    convert,
    show,
    parity,
    recipes,
    reproduce,
    noisy_student,
    compare,
    suite,
    few_shot,
    tune,
    serve,
):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vitrail {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command; a mistake that a person can mend becomes one sentence and exit code 2."""
    # Threads of torch that wait for work sleep, and leave the processor to those that decode pictures. It is read
    # when torch is loaded, which no command does before it is run; what the user has set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_memory()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half-written is cleaned up
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        print(f"vitrail: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sentence = "The disk is full where the output goes: free some space, or send it elsewhere."
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename is not None:
            sentence = f"{error.filename} is closed to you ({error.strerror}): choose another place, or ask for access."
        else:
            raise
        print(f"vitrail: {sentence}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
