"""The order of samples: a permutation per pass in which every batch holds distinct ids where that is possible.

Pairs of one image id are positives of one another, so two of them in one batch weaken the contrast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: In each every block meets another one, so six mix up to 64 blocks whole; more are mixed enough for training.
MIXING_ROUNDS = 6


def batched_permutation(
    ids: np.ndarray, batch: int, number: int, generator: Callable[[int, int], np.random.Generator]
) -> np.ndarray:
    """The order of pass `number` in an endless stream of passes that is cut into batches from its start on.

    The set's size need not be a multiple of `batch`: a batch may begin in one pass and end in the next, and is
    then distinct too. Every batch holds distinct ids unless some id has more samples than a pass has whole batches,
    or there are fewer ids than `batch`; then repetitions are spread as evenly as possible. A set smaller than a
    batch is simply shuffled.

    Args:
        ids: (N,) int.
        batch: samples per batch, of all processes.
        generator: of (pass, stream); the same arguments give the same random numbers.

    Returns:
        (N,) int64, a permutation.
    """
    count = len(ids)
    if count < batch:
        return generator(number, 0).permutation(count)
    head, tail = _ends(count, batch, number)
    last = _draw_tail(ids, tail, number, generator)
    free = np.ones(count, dtype=bool)
    free[last] = False
    # the batch that the pass before left unfinished
    left = _draw_tail(ids, batch - head if head else 0, number - 1, generator)
    rng = generator(number, 0)
    first = _draw_distinct(ids, np.flatnonzero(free), head, rng, avoid=ids[left])
    free[first] = False
    middle = _deal(ids, np.flatnonzero(free), batch, rng)
    return np.concatenate([first, middle.ravel(), last])


def _ends(count: int, batch: int, number: int) -> tuple[int, int]:
    """How many samples of a pass finish the batch of the pass before, and how many begin the next one's."""
    head = -number * count % batch
    return head, (count - head) % batch


def _draw_tail(
    ids: np.ndarray, size: int, number: int, generator: Callable[[int, int], np.random.Generator]
) -> np.ndarray:
    """The end of pass `number`, which depends on nothing else, so that the pass after can make it again."""
    if not size:
        return np.empty(0, dtype=np.int64)
    return _draw_distinct(ids, np.arange(len(ids)), size, generator(number, 1))


def _draw_distinct(
    ids: np.ndarray, rows: np.ndarray, size: int, rng: np.random.Generator, avoid: np.ndarray | None = None
) -> np.ndarray:
    """`size` of `rows` at random, of distinct ids and none of `avoid` as far as there are such."""
    shuffled = rng.permutation(rows)
    _, first = np.unique(ids[shuffled], return_index=True)
    second_choice = np.ones(len(shuffled), dtype=bool)
    second_choice[first] = False
    if avoid is not None and avoid.size:
        second_choice |= np.isin(ids[shuffled], avoid)
    # stable: within first and second choice the order stays random
    return shuffled[np.argsort(second_choice, kind="stable")[:size]]


def _deal(ids: np.ndarray, rows: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
    """`rows` as (blocks, batch), every block of distinct ids where possible.

    Sorted by id, the rows are dealt to the blocks in turn like cards, so those of one id land in different
    blocks. Then random pairs of blocks exchange what only one of them has, since dealing alone would give the
    same company to the same ids.
    """
    blocks = len(rows) // batch
    shuffled = rng.permutation(rows)
    _, inverse = np.unique(ids[shuffled], return_inverse=True)
    rank = rng.permutation(inverse.max() + 1) if len(rows) else np.empty(0, dtype=np.int64)
    # sorted by a random rank of their ids; row i goes to block i % blocks
    dealt = shuffled[np.argsort(rank[inverse], kind="stable")].reshape(batch, blocks).T.copy()
    for _ in range(min(MIXING_ROUNDS, 1 + blocks.bit_length()) if blocks > 1 else 0):
        order = rng.permutation(blocks)
        for one, other in zip(order[0::2], order[1::2], strict=False):
            _exchange(ids, dealt[one], dealt[other], rng)
    return rng.permuted(dealt[rng.permutation(blocks)], axis=1)


def _exchange(ids: np.ndarray, one: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> None:
    """Share out at random, in place, what only one of two blocks has.

    Rows of an id that both have stay where they are. The others may go to either block: if each block had an id once at
    most, so it has afterwards, since nothing in the pool is of an id that both have.
    """
    only_one = np.flatnonzero(~np.isin(ids[one], ids[other]))
    only_other = np.flatnonzero(~np.isin(ids[other], ids[one]))
    pool = rng.permutation(np.concatenate([one[only_one], other[only_other]]))
    one[only_one], other[only_other] = pool[: len(only_one)], pool[len(only_one) :]
