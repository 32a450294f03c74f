"""Engines and threads: those that ask one, and those that it runs on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.runtime.test_engines import GRAPHS, PLAIN, _model, _pictures, _way
from vitrail.runtime.engines import engine


@pytest.mark.parametrize("way", GRAPHS)
def test_threads_that_share_an_engine_get_their_own_answers(way: str, tmp_path: Path) -> None:
    model, images = _model(PLAIN), _pictures(PLAIN, 16)
    made = engine(model, _way(way), images, tmp_path)
    alone = [made(image[None]) for image in images]

    def wrong(at: int) -> int:
        return sum(not torch.equal(made(images[at : at + 1]), alone[at]) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(16))) == 0


def test_a_thread_alone_is_the_engine_s_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine(_model(PLAIN), _way("eager:fp32", threads=1))(_pictures(PLAIN))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
