"""Blocks as machine code: PyTorch's inductor fuses what lies between their matrix products."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from vitrail.errors import UserError
from vitrail.model.cnn import CNN
from vitrail.model.dropout import Dropout, kept
from vitrail.model.encoder import Block

_COMPILERS = ("g++", "clang++", "c++")


def need_compiler() -> None:
    """Raise UserError where there is no C++ compiler, without which inductor cannot write code for a processor."""
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else _COMPILERS)):
        raise UserError(
            "Compiling needs a C++ compiler, and there is none here: install g++ (Debian and Ubuntu: apt install g++), "
            "or go without."
        )


def compile_blocks(module: nn.Module) -> None:
    """Have every ``Block`` in ``module`` compiled at its first call, which takes some seconds for each shape.

    Those of a CNN are too. Names, weights and ``state_dict`` stay as they are; copies of the module are not compiled.

    Raises:
        UserError: there is no C++ compiler.
    """
    need_compiler()
    blocks: list[nn.Module] = [part for part in module.modules() if isinstance(part, Block)]
    blocks += [block for part in module.modules() if isinstance(part, CNN) for block in part.blocks()]
    # Blocks that differ, as in their rates of stochastic depth, are versions of one function to the compiler,
    # which by default gives up after eight; each is met in a whole and in a shorter batch.
    limit = torch._dynamo.config
    limit.recompile_limit = max(limit.recompile_limit, 4 * len(blocks))
    # Inductor draws random numbers slowly; left alone, dropout is quick, and drops what it drops without the compiler.
    Dropout.kept = staticmethod(torch.compiler.disable(kept))  # type: ignore[no-untyped-call]
    for block in blocks:
        block.compile(dynamic=False)
