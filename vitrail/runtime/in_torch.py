"""A model's features by PyTorch itself, as it is or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitrail.model.compiling import need_compiler
from vitrail.runtime.plan import Backend, Precision
from vitrail.runtime.sizes import in_pieces, in_sizes, sizes_up_to


class InTorch:
    """A module that gives features, in bf16 autocast or float32, compiled by inductor or not.

    Compiled, weights become constants that are packed for the processor's products, and every size of batch is
    compiled once; inductor keeps what it has compiled in a folder of its own.

    Raises:
        UserError: compilation is asked for and there is no C++ compiler.
    """

    def __init__(self, module: nn.Module, precision: Precision, most: int, threads: int, compiled: bool) -> None:
        self.backend: Backend = "compiled" if compiled else "eager"
        self.precision = precision
        self.most = most
        self.sizes = sizes_up_to(most) if compiled else ()
        self.threads = threads
        self.compiled = compiled
        if compiled:
            need_compiler()
            self.run = torch.compile(module, dynamic=False, options={"freezing": True})
        else:
            self.run = module

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F)."""
        return (in_sizes if self.compiled else in_pieces)(self._features, images, self.most)

    def _features(self, images: Tensor) -> Tensor:
        if self.compiled:
            # All engines are versions of one function to the compiler, which gives up after eight and runs PyTorch.
            # That is set here because every thread has a setting of its own.
            setting = torch._dynamo.config
            if setting.recompile_limit < setting.accumulated_recompile_limit:
                setting.recompile_limit = setting.accumulated_recompile_limit
        bf16 = self.precision == "bf16"
        with _threads(self.threads), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features: Tensor = self.run(images)
        return features.float()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many, and then as many as before: the number is the process's, and others want their own."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
