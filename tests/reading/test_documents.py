import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfault.errors import UserError
from fedfault.reading.documents import (
    drop_repeats,
    fingerprint_documents,
    hash_letters,
    hash_text,
    join_and_cut,
    make_corpus,
    split_off_validation,
)
from fedfault.types.corpus import Document

MANY = [Document(f"text number {i}", "ab"[i % 2]) for i in range(400)]


def test_texts_are_the_same_whatever_their_case_and_blanks():
    same = ("The cat -- sat.", "the CAT  --\nsat.", " the cat -- sat.\t")
    assert len({hash_text(t) for t in same}) == 1
    assert hash_text("caf\u00e9") == hash_text("cafe\u0301")  # the two ways that Unicode has for one character


@pytest.mark.parametrize(
    "texts",
    [
        ("2 + 5", "2 - 5", "2 * 5", "2 / 5", "2 % 5", "2.5", "2 5", "25", "-25", "2 < 5", "2 \u2212 5", "2 \u00d7 5"),
        ("day \U0001f600", "day \U0001f621", "day :)", "day :(", "day", "day!", "day?"),
        ("\U0001f44d\U0001f3fb", "\U0001f44d\U0001f3ff", "\U0001f44d"),  # one sign in several colours of skin
        ("\u0915\u093f", "\u0915\u0940", "\u0915\u0941", "\u0915"),  # Devanagari: ki, kii, ku, ka
        ("\u0995\u09bf", "\u0995\u09c7", "\u0995"),  # Bengali: ki, ke, ka
        ("\u0b95\u0bbf", "\u0b95\u0bc0", "\u0b95"),  # Tamil: ki, kii, ka
        ("\u0e01\u0e34", "\u0e01\u0e35", "\u0e01\u0e48", "\u0e01"),  # Thai: vowels and a tone
        ("\u1000\u102d", "\u1000\u102f", "\u1000"),  # Burmese
        ("\u1780\u17b7", "\u1780\u17bb", "\u1780"),  # Khmer
        ("\u0643\u064e\u062a\u0628", "\u0643\u064f\u062a\u0628", "\u0643\u062a\u0628"),  # Arabic: kataba, kutiba
        ("\u05d1\u05b7", "\u05d1\u05b4", "\u05d1"),  # Hebrew points
        ("a\u0300", "a\u0301", "a"),
        ("$5", "\u20ac5", "5%", "5"),
        ("x_1", "x1", "C", "C++", "C#"),
    ],
    ids=lambda texts: texts[0],
)
def test_signs_emoji_and_vowel_signs_make_texts_different(texts):
    assert len({hash_text(t) for t in texts}) == len(texts)
    documents = [Document(t, str(i)) for i, t in enumerate(texts)]
    made = make_corpus("c", "s", documents)
    assert len(made.train + made.validation) == len(texts)


def test_what_is_dropped_is_counted():
    rows = [("One", "a"), ("one", "a"), ("ONE", "b"), ("", "a"), ("two", "a"), ("two.", "a"), ("three", "b")]
    made = make_corpus(
        "c", "s", [Document(*r) for r in rows], [Document("Three", "b"), Document(" ", "b"), Document("two!", "a")]
    )
    t = made.tally
    assert (t.train, t.validation, t.empty, t.repeated, t.relabelled, t.shared) == (7, 3, 2, 2, 1, 1)
    assert len(made.train) == t.train - 1 - t.repeated - t.shared
    assert t.near == 2  # two, two.
    said = " ".join(t.describe())
    assert "2 empty, 2 repeated (1 with another topic), 1 from training" in said
    assert "2 training texts have the letters and digits of a validation text" in said


def test_topics_that_are_not_validated_are_told():
    """A column of ids as topics: all texts but one train, and one text is the validation set."""
    ids = [Document(f"text {i}", str(i)) for i in range(5)]
    told = (
        "topics without a text in validation: 4; losses and scores are of the others alone, as the only text of a topic"
    )
    assert make_corpus("c", "s", ids).tally.describe()[-1].startswith(told)
    own = make_corpus("c", "s", [Document("one", "a"), Document("two", "b")], [Document("three", "b")]).tally.describe()
    assert own[-1] == "topics without a text in validation: 1; losses and scores are of the others alone"
    assert make_corpus("c", "s", MANY).tally.unheld == 0


def test_repeats_are_kept_where_that_is_asked_for_and_never_are_on_both_sides():
    documents = [Document("one", "a"), Document("One", "b"), *MANY, *MANY]
    made = make_corpus("c", "s", documents, keep_repeats=True)
    assert len(made.train + made.validation) == len(documents)
    assert not {hash_text(d.text) for d in made.train} & {hash_text(d.text) for d in made.validation}
    assert made.tally.repeated == 0
    assert "repeats" in " ".join(made.tally.describe())
    own = make_corpus("c", "s", documents, MANY[:10], keep_repeats=True)
    assert (len(own.train), len(own.validation), own.tally.shared) == (len(documents) - 20, 10, 20)


def test_repeats_alone_are_not_two_texts():
    with pytest.raises(UserError, match="only one text"):
        make_corpus("c", "s", [Document("one", "a")] * 5, keep_repeats=True)


def test_texts_in_other_alphabets_and_without_letters_differ():
    texts = ("猫", "犬", "кот", "?!", "...", "")
    assert len({hash_text(t) for t in texts}) == len({hash_letters(t) for t in texts}) == 6


def test_distinct_keeps_the_first_and_drops_empty_texts():
    documents = [Document(t, str(i)) for i, t in enumerate(["  One. ", "", " \n", "two", "ONE.", "three"])]
    assert drop_repeats(documents) == [Document("One.", "0"), Document("two", "3"), Document("three", "5")]


def test_groups_stay_with_their_texts():
    made = make_corpus(
        "c", "s", [Document(" one ", "a", "x"), Document("two", "a", "y")], [Document("three", "b", "z")]
    )
    assert made.train + made.validation == (("one", "a", "x"), ("two", "a", "y"), ("three", "b", "z"))


def split(documents, *fraction):
    return split_off_validation(documents, [hash_text(d.text) for d in documents], *fraction)


def test_split_has_the_fraction_of_every_topic_and_keeps_the_order():
    train, validation = split(MANY, 0.2)
    assert [sum(d.topic == t for d in validation) for t in "ab"] == [40, 40]
    assert [d for d in MANY if d in set(train)] == train
    assert [d for d in MANY if d in set(validation)] == validation


def test_which_texts_are_held_out_does_not_depend_on_their_order():
    assert set(split(MANY)[1]) == set(split(MANY[::-1])[1])


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "A", "A!", "b", "c d", "C  D", "cd", "", "e"]), st.sampled_from("xy")),
        max_size=12,
    )
)
def test_split_never_puts_a_text_on_both_sides(rows):
    documents = [Document(*row) for row in rows]
    different = {hash_text(d.text) for d in documents if d.text}
    for keep in (False, True):
        if len(different) < 2:
            with pytest.raises(UserError, match=r"mine \(here\): (no|only one) text"):
                make_corpus("mine", "here", documents, keep_repeats=keep)
            continue
        made = make_corpus("mine", "here", documents, keep_repeats=keep)
        sides = [{hash_text(d.text) for d in side} for side in (made.train, made.validation)]
        assert all(sides)
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == different


def test_an_official_validation_part_stays_and_train_loses_its_texts():
    made = make_corpus(
        "c", "s", [Document("One", "a"), Document("two", "a")], [Document("one", "b"), Document("One", "b")]
    )
    assert made.train == (Document("two", "a"),)
    assert made.validation == (Document("one", "b"),)


@pytest.mark.parametrize("texts", [[], ["", "  "], ["only one"]])
def test_too_little_text_is_a_user_error(texts):
    with pytest.raises(UserError, match=r"mine \(here\)"):
        make_corpus("mine", "here", [Document(t, "a") for t in texts])


def test_no_kept_text_is_hashed_twice():
    seen = []

    def count(text):
        seen.append(text)
        return hash_text(text)

    make_corpus("c", "s", MANY, hash_of=count)
    assert len(seen) == len(MANY)
    make_corpus("c", "s", MANY, MANY[:10], hash_of=count)
    assert len(seen) == 2 * len(MANY) + 10


def test_nothing_left_to_train_on_is_a_user_error():
    with pytest.raises(UserError, match="validation"):
        make_corpus("mine", "here", [Document("one", "a")], [Document("One", "a")])


def test_the_fingerprint_changes_with_text_topic_group_side_and_borders():
    a, b, c = Document("ab", "c"), Document("a", "bc"), Document("a", "b", "c")
    sides = [([a], []), ([b], []), ([c], []), ([], [a]), ([a, b], []), ([b, a], [])]
    assert len({fingerprint_documents(*each) for each in sides}) == 6


@pytest.mark.slow
@given(st.lists(st.text("ab \n", min_size=1, max_size=30), max_size=10), st.integers(1, 20))
def test_pieces_lose_no_character_but_white_space(parts, size):
    def letters(texts):
        return "".join("".join(texts).split())

    assert letters(join_and_cut(parts, "\n", size)) == letters(parts)


def test_pieces_are_at_most_as_long_as_asked_unless_a_line_is_longer():
    cut = list(join_and_cut(["x" * 30, "a b\n" * 20, "y"], "\n", size=10))
    assert cut[0] == "x" * 30
    assert all(len(piece) <= 10 for piece in cut[1:])


def say_prompts(documents: int, each: int):
    """Documents that are conversations, `each` of them to a prompt, and the prompt of each text."""
    made = [Document(f"question {n // each}?\nanswer {n}", "a") for n in range(documents)]
    return made, {d.text: d.text.split("\n")[0] for d in made}


@pytest.mark.parametrize("each", [2, 5, 40])
def test_conversations_that_begin_with_one_prompt_stay_on_one_side(each):
    documents, openings = say_prompts(400, each)
    made = make_corpus("c", "s", documents, openings=openings)
    trained, tried = ({openings[d.text] for d in side} for side in (made.train, made.validation))
    assert not trained & tried
    assert len(made.validation) == 40
    assert made.tally.prompts == 0
    assert set(made.validation) == set(make_corpus("c", "s", documents[::-1], openings=openings).validation)


def test_a_prompt_of_its_own_for_each_conversation_changes_nothing():
    documents, openings = say_prompts(400, 1)
    assert make_corpus("c", "s", documents, openings=openings) == make_corpus("c", "s", documents)


def test_prompts_with_many_responses_are_not_held_back_before_others():
    rare = [Document(f"rare {n}?\nanswer", "a") for n in range(500)]
    often = [Document(f"often {n // 10}?\nanswer {n}", "a") for n in range(500)]
    openings = {d.text: d.text.split("\n")[0] for d in (*rare, *often)}
    held = make_corpus("c", "s", [*rare, *often], openings=openings).validation
    assert 0.25 < sum(d.text.startswith("rare") for d in held) / len(held) < 0.75


def test_conversations_that_all_have_one_prompt_are_split_and_that_is_said():
    documents, openings = say_prompts(40, 40)
    made = make_corpus("c", "s", documents, openings=openings)
    assert (len(made.train), len(made.validation), made.tally.prompts) == (36, 4, 4)
    assert made.tally.describe()[-1].startswith("4 validation conversations begin with a prompt that training has too")


def test_prompts_of_validation_files_that_training_has_are_counted():
    documents, openings = say_prompts(40, 2)
    made = make_corpus("c", "s", documents[:35], documents[35:], openings=openings)
    assert made.tally.prompts == 1  # the second answer to question 17
    assert (len(made.train), len(made.validation)) == (35, 5)
