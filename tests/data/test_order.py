"""Which sample comes when."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.order import Purpose, batch_at, generator, pieces, steps_per_epoch

PURPOSES: tuple[Purpose, ...] = ("view", "step", "sample")


@given(samples=st.integers(1, 300), batch_size=st.integers(1, 70), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_is_every_sample_once_in_even_batches(samples: int, batch_size: int, seed: int, epoch: int) -> None:
    steps = steps_per_epoch(samples, batch_size)
    dealt = [batch_at(epoch * steps + step, samples, batch_size, seed) for step in range(steps)]
    assert {which for which, _ in dealt} == {epoch}
    assert Counter(sample for _, batch in dealt for sample in batch) == Counter(range(samples))
    sizes = [len(batch) for _, batch in dealt]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= (1 if batch_size % 2 else 2)
    if batch_size % 2 == 0:
        assert not any(size % 2 for size in sizes[:-1]), "pairs stay together"


@given(samples=st.integers(1, 100), pairs=st.integers(1, 9), repeats=st.integers(2, 4), step=st.integers(0, 40))
def test_a_repeated_sample_has_places_of_its_own_and_is_no_neighbour_of_itself(
    samples: int, pairs: int, repeats: int, step: int
) -> None:
    epoch, once = batch_at(step, samples, 2 * pairs, 0)
    which, places = batch_at(step, samples, 2 * pairs * repeats, 0, repeats)
    assert which == epoch
    assert len(set(places)) == len(places)
    assert [place % samples for place in places] == once * repeats
    if len(once) % 2 == 0:
        seen = [place % samples for place in places]
        assert all(one != other for one, other in zip(seen[::2], seen[1::2], strict=True))


def test_epochs_and_seeds_differ_and_places_do_not() -> None:
    first, second, other = batch_at(0, 50, 50, 0)[1], batch_at(1, 50, 50, 0)[1], batch_at(0, 50, 50, 1)[1]
    assert first != second
    assert first != other
    assert generator(3, "view", 2, 1).random() == generator(3, "view", 2, 1).random()
    draws = {generator(3, purpose, *place).random() for purpose in PURPOSES for place in ((2, 1), (1, 2))}
    assert len(draws) == 6


@given(size=st.integers(1, 60), count=st.integers(1, 9))
def test_pieces_are_the_batch_in_order_and_divide_no_pair(size: int, count: int) -> None:
    cut = pieces(range(100, 100 + size), count)
    assert [sample for piece in cut for sample in piece] == list(range(100, 100 + size))
    assert len(cut) == min(count, (size + 1) // 2)
    assert all(cut)
    assert not any(len(piece) % 2 for piece in cut[:-1])
    assert max(map(len, cut)) - min(map(len, cut)) <= 3
