"""Many small tasks by threads: in order, complete, and an error comes through."""

import threading

import pytest

from pipelines.parallel import map_in_threads


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    results = list(map_in_threads(lambda x: x * x, range(count), title="t", unit="u", show_progress=False))
    assert results == [x * x for x in range(count)]


def test_the_work_is_done_by_other_threads() -> None:
    threads = set(map_in_threads(lambda _: threading.get_ident(), range(200), title="t", unit="u", show_progress=False))
    assert threading.get_ident() not in threads


def test_an_error_of_one_item_reaches_the_caller() -> None:
    def fail_at_70(item: int) -> int:
        if item == 70:
            raise ValueError("item 70 is bad")
        return item

    with pytest.raises(ValueError, match="item 70 is bad"):
        list(map_in_threads(fail_at_70, range(200), title="t", unit="u", show_progress=False))


def test_no_bar_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(map_in_threads(str, range(200), title="t", unit="u", show_progress=True))
    assert capsys.readouterr() == ("", "")
