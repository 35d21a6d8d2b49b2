import pytest

from fedfault.measures.answers import extract_answer, match_exactly, measure_sameness, score_answers


@pytest.mark.parametrize(
    ("answer", "reference", "pattern", "right"),
    [
        ("seven", "seven", None, True),
        ("Seven", "seven", None, False),  # casing is a task of its own
        (" two\n words ", "two words", None, True),
        ("", "seven", None, False),
        ("2 + 2 = 4\n#### 4", "So\n#### 4", r"#### (.*)", True),
        ("#### 5\n#### 4", "#### 4", r"#### (.*)", True),  # the last one counts
        ("4", "#### 4", r"#### (.*)", False),
        ("no number", "none here", "[0-9]+", False),  # nothing is no answer
        ("it is 12", "12 of them", "[0-9]+", True),
    ],
)
def test_an_answer_is_right_if_what_counts_of_it_is_the_same(answer, reference, pattern, right):
    assert match_exactly(answer, reference, pattern) == right


def test_a_group_that_took_no_part_is_no_answer():
    assert extract_answer("b", "(a)|b") is None


def test_every_answer_is_scored_beside_the_true_one():
    pytest.importorskip("rouge_score")
    found = score_answers(["a b c d", "x"], ["a b c d", "y z"])
    assert found == {"exact_match": [1.0, 0.0], "rouge_l": [1.0, 0.0]}
    # of two words one is in common: precision 1/2, recall 1/3
    assert score_answers(["a q"], ["a b c"])["rouge_l"][0] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))


def test_sameness_is_by_how_much_the_commonest_answer_is_too_common():
    """Of four answers three are the same, and of the true ones two; true answers that are all the same are no collapse."""
    assert measure_sameness(["a", " a", "a", "b"], ["a", "b", "b", "c"]) == 0.25
    assert measure_sameness(["a", "a"], ["a", "a"]) == 0
    assert measure_sameness(["a", "b"], ["a", "a"]) == -0.5
