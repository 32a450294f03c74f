"""Which device there is, and what it can do."""

from __future__ import annotations

import torch

from vitrail.errors import UserError


def pick_device(name: str | None = None) -> torch.device:
    """The device asked for, or the fastest kind this machine has.

    Raises:
        UserError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # meta has no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"There is no device {name!r} on this machine: leave the choice out, or say cpu.") from None
    return device


def native_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 matrices itself; emulating it would be slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))
