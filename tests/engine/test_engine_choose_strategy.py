"""The strategy of fine-tuning after the course's table."""

import pytest

from engine.choose_strategy import FEW_BELOW, SIMILAR_FROM, choose

TABLE = {(20, 0.9): "linear", (20, 0.1): "differential", (5000, 0.9): "head_then_all", (5000, 0.1): "all"}


@pytest.mark.parametrize(("case", "name"), TABLE.items())
def test_each_cell_of_the_table_has_its_strategy_and_says_its_numbers(case, name):
    number, knows = case
    choice = choose(number, knows=knows, similarity="measured")
    assert choice.name == name
    assert choice.why.startswith(f"{number:,} images per class are {'few' if number == 20 else 'many'} (")
    assert f"come {knows:.2f} of the way from guessing to no mistake: " in choice.why
    assert choice.why.endswith("similar (0.8 or more)" if knows == 0.9 else "different (below 0.8)")


def test_thresholds_belong_to_many_and_to_similar():
    assert choose(FEW_BELOW, knows=SIMILAR_FROM, similarity="measured").name == "head_then_all"
    assert choose(FEW_BELOW - 1, knows=SIMILAR_FROM - 1e-9, similarity="measured").name == "differential"


@pytest.mark.parametrize("knows", [None, -0.2, 0.0, 1.0])
def test_what_the_user_knows_counts_whatever_was_measured(knows):
    similar, different = (choose(20, knows=knows, similarity=one) for one in ("similar", "different"))
    assert (similar.name, different.name) == ("linear", "differential")
    said = "strategy.similarity says that they are similar"
    assert similar.why == f"20 images per class are few (below 500), and {said}"


def test_without_a_measurement_the_more_careful_strategy_is_taken():
    assert choose(20, knows=None, similarity="measured").name == "differential"
    choice = choose(5000, knows=None, similarity="measured")
    assert choice.name == "head_then_all"
    assert choice.why.endswith("how similar they are to what the network knows was not measured")
