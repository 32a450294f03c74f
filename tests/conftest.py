"""What every test can count on: no network, a cache of its own, and one thread per worker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch and numpy are imported: as many workers as cores share them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

settings.register_profile("vitrail", deadline=None, print_blob=True)  # a busy machine is not a fault
settings.load_profile("vitrail")


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Keep the user's cache out of the tests, unless VITRAIL_CACHE names one (real weights fetched before, say)."""
    if "VITRAIL_CACHE" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vitrail-test-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_CACHE", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Ctrl-C interrupts, also where the tests were started in the background of a shell, which ignores it there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test that looks up any host but this one."""
    look_up = socket.getaddrinfo

    def only_here(host: Any, *rest: Any, **options: Any) -> Any:
        if host not in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0"):
            pytest.fail(f"a test reached for {host}")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium that is here anyway."""
    playwright = pytest.importorskip("playwright.sync_api", reason="there is no playwright here")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        yield browser
        browser.close()
