"""The order of samples: a permutation in every pass, distinct ids in every batch of the whole stream."""

import numpy as np
import pytest

from modeling_r2d2.processing.sampling import batched_permutation


def generator(seed: int = 0):
    return lambda number, stream: np.random.default_rng((seed, number, stream))


def stream(ids: np.ndarray, batch: int, passes: int, seed: int = 0) -> np.ndarray:
    parts = [batched_permutation(ids, batch, number, generator(seed)) for number in range(passes)]
    for part in parts:
        assert np.array_equal(np.sort(part), np.arange(len(ids)))
    return np.concatenate(parts)


def repetitions(ids: np.ndarray, batch: int, order: np.ndarray) -> int:
    full = len(order) // batch * batch
    return sum(batch - len(set(block)) for block in ids[order[:full]].reshape(-1, batch))


EVEN = np.tile(np.arange(300), 5)


@pytest.mark.parametrize("batch", [10, 64, 150, 300])
@pytest.mark.parametrize("count", [1500, 1470, 1403])
def test_batches_are_distinct_across_passes_too(count, batch):
    """A concept has five pictures or fewer, and some sizes leave rests at both ends of a pass."""
    ids = EVEN[:count] if batch < 300 else EVEN
    assert repetitions(ids, batch, stream(ids, batch, passes=5)) == 0


def test_uneven_ids():
    """Zipf-like: some ids have many samples, most one."""
    ids = np.concatenate([np.repeat(np.arange(20), np.arange(1, 41, 2)), np.arange(100, 700)])
    assert repetitions(ids, 24, stream(ids, 24, passes=4)) == 0


def test_what_cannot_be_distinct_is_spread():
    ids = np.concatenate([np.zeros(50, dtype=int), np.arange(1, 51)])
    order = stream(ids, 20, passes=1)
    zeros = (ids[order].reshape(5, 20) == 0).sum(axis=1)
    assert zeros.tolist() == [10] * 5


def test_fewer_ids_or_samples_than_a_batch():
    assert len(stream(np.zeros(10, dtype=int), 4, passes=3)) == 30
    assert len(stream(np.arange(5), 8, passes=3)) == 15
    assert len(stream(np.arange(8), 8, passes=2)) == 16


def test_reproducible_and_different_in_every_pass():
    one, again, other = stream(EVEN, 64, 3), stream(EVEN, 64, 3), stream(EVEN, 64, 3, seed=1)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:1500], one[1500:3000])


def test_company_is_random():
    """Any two ids meet in a batch about as often as in a plain shuffle."""
    ids, batch, passes = np.tile(np.arange(40), 4), 16, 400
    met = np.zeros((40, 40))
    for block in ids[stream(ids, batch, passes)].reshape(-1, batch):
        met[np.ix_(block, block)] += 1
    pairs = met[~np.eye(40, dtype=bool)]
    # a batch holds 16 of 40 ids: 16 · 15 of the 40 · 39 ordered pairs
    expected = passes * 10 * 16 * 15 / (40 * 39)
    assert abs(pairs.mean() / expected - 1) < 0.01
    assert pairs.min() > 0.8 * expected
    assert pairs.max() < 1.2 * expected


def test_every_sample_may_stand_anywhere():
    ids, places = np.tile(np.arange(12), 3), np.zeros((36, 36))
    for seed in range(1500):
        places[np.arange(36), batched_permutation(ids, 8, 1, generator(seed))] += 1
    assert np.abs(places / 1500 - 1 / 36).max() < 0.02
