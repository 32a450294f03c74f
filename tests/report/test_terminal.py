"""What a person is told, where nobody may listen any more."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TOLD = """
import sys
from vitrail.report.terminal import Show

show = Show(out={out})
for _ in range(2):
    show.say("begun")
    with show.progress("Working") as advance:
        advance(1, 2)
print("and what others say", file=sys.stderr)
print("done")
"""


@pytest.mark.parametrize("out", [False, True])
def test_the_work_goes_on_unheard_but_not_for_results_that_nobody_takes(out: bool) -> None:
    ours, theirs = os.pipe()
    os.close(ours)  # whoever read has gone
    process = subprocess.run(
        [sys.executable, "-c", TOLD.format(out=out)],
        stdout=theirs if out else subprocess.PIPE,
        stderr=subprocess.PIPE if out else theirs,
        text=True,
    )
    os.close(theirs)
    if out:
        assert (process.returncode, process.stderr) == (1, "")
    else:
        assert (process.returncode, process.stdout) == (0, "done\n")
