"""Where things made once and used again are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """The user's cache folder for Vitrail; the environment variable VITRAIL_CACHE puts it elsewhere."""
    return Path(os.environ.get("VITRAIL_CACHE") or platformdirs.user_cache_dir("vitrail")).expanduser()
