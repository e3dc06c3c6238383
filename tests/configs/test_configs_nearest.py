"""The nearest valid names, against answers written by hand."""

import pytest

from configs.nearest import nearest


@pytest.mark.parametrize(
    ("name", "valid", "wanted"),
    [
        ("simple_cn", ["simple_cnn"], "nearest: simple_cnn; valid: simple_cnn"),
        ("xyz", ["simple_cnn"], "valid: simple_cnn"),
        ("padd", ["none", "pad", "rrc"], "nearest: pad; valid: none, pad, rrc"),
        ("b.lr", ["a.lr", "z.unlike"], "nearest: a.lr; valid: a.lr, z.unlike"),
        ("lr", ["optimizer_section.lr", "z.unlike"], "nearest: optimizer_section.lr; valid: optimizer_section.lr, z."),
    ],
)
def test_the_nearest_names_come_first_then_all_valid_ones(name: str, valid: list[str], wanted: str) -> None:
    assert nearest(name, valid).startswith(wanted)


def test_the_most_alike_of_several_is_named_first_and_at_most_three_are() -> None:
    answer = nearest("abcdef", ["abcxyz", "abcdef1", "abcdxx", "abcdexy"])
    assert answer.startswith("nearest: abcdef1, abcdexy, abcdxx; valid: abcxyz, ")


@pytest.mark.parametrize(("count", "shown"), [(12, True), (13, False)])
def test_more_than_twelve_valid_names_are_not_listed_but_help_is_named(count: int, shown: bool) -> None:
    valid = [f"name{index:02}" for index in range(count)]
    assert nearest("zzz", valid) == "valid: " + (", ".join(valid) if shown else "see --help")


def test_what_stands_for_many_names_can_be_said_or_all_be_listed() -> None:
    valid = [f"name{number}" for number in range(20)]
    assert nearest("zzz", valid, if_many="20 names") == "valid: 20 names"
    assert nearest("zzz", valid, if_many=None) == "valid: " + ", ".join(valid)
