"""What a training step costs, for people."""

from __future__ import annotations

from pathlib import Path

from vitrail.report.terminal import Show, percent
from vitrail.train.profile import SIDE, Accounts


def show_accounts(show: Show, accounts: Accounts, trace: Path) -> None:
    """Where the time of a step goes, and how near its products are to the machine's limit."""
    rows = [
        [part, f"{1000 * seconds:.1f} ms", percent(seconds / accounts.seconds)]
        for part, seconds in accounts.parts.items()
        if seconds > 0
    ]
    show.table(["of a step", "time", "share"], rows)
    show.facts(
        [
            ("a step", f"{1000 * accounts.seconds:.1f} ms, {accounts.flops / 1e9:.1f} GFLOP of products"),
            (
                "speed",
                f"{accounts.flops / accounts.seconds / 1e9:.0f} GFLOP/s: {percent(accounts.share)} of the "
                f"{accounts.limit / 1e9:.0f} that a product of {SIDE} x {SIDE} matrices reaches here",
            ),
            ("trace", f"{trace}, for ui.perfetto.dev or chrome://tracing"),
        ]
    )
