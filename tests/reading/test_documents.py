import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.reading.documents import (
    drop_repeats,
    fingerprint_documents,
    hash_text,
    join_and_cut,
    make_corpus,
    split_off_validation,
)
from fedfault.types.corpus import Document

MANY = [Document(f"text number {i}", "ab"[i % 2]) for i in range(400)]


def test_texts_with_the_same_letters_are_the_same():
    assert hash_text("The cat -- sat.") == hash_text("the CAT\nsat") != hash_text("the cat sat down")


def test_texts_in_other_alphabets_and_without_letters_differ():
    assert len({hash_text(t) for t in ("猫", "犬", "кот", "?!", "...", "")}) == 6


def test_distinct_keeps_the_first_and_drops_empty_texts():
    documents = [Document(t, str(i)) for i, t in enumerate(["  One. ", "", " \n", "two", "ONE", "three"])]
    assert drop_repeats(documents, taken={hash_text("Three")}) == [Document("One.", "0"), Document("two", "3")]


def test_groups_stay_with_their_texts():
    made = make_corpus(
        "c", "s", [Document(" one ", "a", "x"), Document("two", "a", "y")], [Document("three", "b", "z")]
    )
    assert made.train + made.validation == (("one", "a", "x"), ("two", "a", "y"), ("three", "b", "z"))


def test_split_has_the_fraction_of_every_topic_and_keeps_the_order():
    train, validation = split_off_validation(MANY, 0.2)
    assert [sum(d.topic == t for d in validation) for t in "ab"] == [40, 40]
    assert [d for d in MANY if d in set(train)] == train
    assert [d for d in MANY if d in set(validation)] == validation


def test_which_texts_are_held_out_does_not_depend_on_their_order():
    assert set(split_off_validation(MANY)[1]) == set(split_off_validation(MANY[::-1])[1])


@given(st.lists(st.tuples(st.sampled_from(["a", "A!", "b", "c d", "CD", "", "e"]), st.sampled_from("xy")), max_size=12))
def test_split_never_puts_a_text_on_both_sides(rows):
    documents = [Document(*row) for row in rows]
    different = {hash_text(d.text) for d in documents if d.text}
    if len(different) < 2:
        with pytest.raises(UserError, match="different text"):
            split_off_validation(documents)
        return
    sides = [{hash_text(d.text) for d in side} for side in split_off_validation(documents)]
    assert all(sides)
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == different


def test_an_official_validation_part_stays_and_train_loses_its_texts():
    made = make_corpus(
        "c", "s", [Document("One", "a"), Document("two", "a")], [Document("one!", "b"), Document("One", "b")]
    )
    assert made.train == (Document("two", "a"),)
    assert made.validation == (Document("one!", "b"),)


@pytest.mark.parametrize("texts", [[], ["", "  "], ["only one"]])
def test_too_little_text_is_a_user_error(texts):
    with pytest.raises(UserError, match=r"mine \(here\)"):
        make_corpus("mine", "here", [Document(t, "a") for t in texts])


def test_nothing_left_to_train_on_is_a_user_error():
    with pytest.raises(UserError, match="validation"):
        make_corpus("mine", "here", [Document("one", "a")], [Document("One", "a")])


def test_the_fingerprint_changes_with_text_topic_group_side_and_borders():
    a, b, c = Document("ab", "c"), Document("a", "bc"), Document("a", "b", "c")
    sides = [([a], []), ([b], []), ([c], []), ([], [a]), ([a, b], []), ([b, a], [])]
    assert len({fingerprint_documents(*each) for each in sides}) == 6


@given(st.lists(st.text("ab \n", min_size=1, max_size=30), max_size=10), st.integers(1, 20))
def test_pieces_lose_no_character_but_white_space(parts, size):
    def letters(texts):
        return "".join("".join(texts).split())

    assert letters(join_and_cut(parts, "\n", size)) == letters(parts)


def test_pieces_are_at_most_as_long_as_asked_unless_a_line_is_longer():
    cut = list(join_and_cut(["x" * 30, "a b\n" * 20, "y"], "\n", size=10))
    assert cut[0] == "x" * 30
    assert all(len(piece) <= 10 for piece in cut[1:])
