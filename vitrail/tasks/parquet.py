"""Tables as Parquet files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import UserError


def pyarrow(otherwise: str = "") -> Any:
    """The library.

    Raises:
        UserError: it is not installed; ``otherwise`` completes the sentence.
    """
    try:
        import pyarrow as found
    except ImportError:
        raise UserError(f"Parquet needs pyarrow: pip install 'vitrail[parquet]'{otherwise}.") from None
    return found


def write_parquet(path: Path, columns: Mapping[str, Any]) -> None:
    """Write columns of equal length, arrays of numpy or of pyarrow, or lists."""
    table = pyarrow().table(dict(columns))
    from pyarrow import parquet

    parquet.write_table(table, path)
