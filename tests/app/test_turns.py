"""Who computes when: first come, first served, and nobody waits for long without being told."""

import threading
import time

import pytest

from modeling_r2d2.app.turns import BusyError, Turns


def test_one_at_a_time_in_the_order_of_coming():
    turns, order, inside = Turns(1, seconds=20), [], []

    def visit(number: int) -> None:
        with turns.turn():
            inside.append(number)
            assert len(inside) == 1
            time.sleep(0.01)
            order.append(inside.pop())

    threads = []
    with turns.turn():
        for number in range(8):
            threads.append(threading.Thread(target=visit, args=(number,)))
            threads[-1].start()
            while len(turns._line) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_who_waits_too_long_or_finds_the_line_full_hears_so():
    turns = Turns(1, waiting=1, seconds=0.3)
    message = []

    def visit() -> None:
        try:
            with turns.turn():
                pass
        except BusyError:
            message.append(time.monotonic())

    with turns.turn():
        start = time.monotonic()
        waiting = threading.Thread(target=visit)
        waiting.start()
        while not turns._line:
            time.sleep(0.001)
        with pytest.raises(BusyError), turns.turn():
            pass
        assert time.monotonic() - start < 0.25  # at once, the line being full
        waiting.join()
        assert len(message) == 1
    with turns.turn():  # and the turn is free again
        pass


def test_an_error_gives_the_turn_back():
    turns = Turns(1, seconds=0.1)
    with pytest.raises(ZeroDivisionError), turns.turn():
        raise ZeroDivisionError
    with turns.turn():
        pass
