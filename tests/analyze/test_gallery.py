"""Maps beside pictures: the numbers of a planted patch."""

from __future__ import annotations

import numpy as np

from vitrail.analyze.gallery import AttentionMaps


def test_the_planted_patch_is_named_counting_from_one() -> None:
    shares = np.full((1, 2, 3), 0.1)
    shares[0, 1, 2] = 0.5
    found = AttentionMaps(np.zeros((1, 16, 24, 3), np.uint8), ("a.png",), {"rollout": shares})
    (peak,) = found.summary()["peaks"]
    assert (peak["row"], peak["column"], round(peak["times"], 9)) == (2, 3, 3.0)
    table = found.table()
    best = int(table["share"].argmax())
    assert (table["row"][best], table["column"][best], table["map"][best]) == (2, 3, "rollout")
    assert (table["row"].min(), table["column"].min()) == (1, 1)
    # The figure: the picture over its map.
    assert len(found.plot().axes) == 2
