import threading

import pytest

from tasks.ahead import ahead


def test_results_come_in_the_order_of_the_items_and_no_more_than_a_window_waits():
    begun: list[int] = []
    lock = threading.Lock()

    def square(number: int) -> int:
        with lock:
            begun.append(number)
        return number * number

    results = ahead(square, range(100), threads=3, window=5)
    assert [next(results) for _ in range(4)] == [0, 1, 4, 9]
    assert max(begun) <= 4 + 5  # Of the items behind the reader's
    assert list(results) == [number * number for number in range(4, 100)]
    assert sorted(begun) == list(range(100))


def test_what_an_item_raises_comes_in_its_turn():
    def half(number: int) -> int:
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    results = ahead(half, [4, 2, 3, 8], threads=2)
    assert (next(results), next(results)) == (2, 1)
    with pytest.raises(ValueError, match="3 is odd"):
        next(results)


def test_nothing_in_nothing_out():
    assert list(ahead(str, [], threads=2)) == []
