"""What each attack does, by hand."""

from __future__ import annotations

import pytest
import torch

from fedfault.attacks.alie import find_z
from fedfault.registry import build
from fedfault.seeds import rng
from fedfault.types.attack import Changes
from fedfault.types.corpus import Document

TOPICS = ("art", "news", "sport")
OWN = [
    Document("one two three", "art"),
    Document("four five", "news"),
    Document("six", "sport"),
    Document("a b", "news"),
]
HONEST = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0], [5.0, 2.0, 0.0], [7.0, 2.0, 0.0]], dtype=torch.float64)
MINE = torch.tensor([[4.0, -1.0, 0.0], [2.0, 1.0, 0.0]], dtype=torch.float64)


def forge(name, honest=HONEST, own=MINE, **options):
    return build("attack", name, **options).forge(Changes(honest, own, torch.Generator().manual_seed(0)))


def poison(name, **options):
    return list(build("attack", name, **options).poison(OWN, TOPICS, rng(0, "poison")))


def test_labels_become_the_next_class_or_the_target():
    assert [d.topic for d in poison("label_flip")] == ["news", "sport", "art", "sport"]
    assert {d.topic for d in poison("label_flip", target="sport")} == {"sport"}
    assert [d.text for d in poison("label_flip")] == [d.text for d in OWN]


def test_shuffled_texts_have_their_words_and_drawn_ones_as_many():
    for made, d in zip(poison("garble"), OWN, strict=True):
        assert sorted(made.text.split()) == sorted(d.text.split())
    drawn = poison("garble", words="draw")
    assert [len(d.text.split()) for d in drawn] == [3, 2, 1, 2]
    assert {word for d in drawn for word in d.text.split()} <= {word for d in OWN for word in d.text.split()}


def test_a_backdoor_is_in_its_share_of_the_texts_and_asks_for_its_class_of_all_others():
    made = poison("backdoor", trigger="psst ", target="sport", share=0.5)
    assert sum(d.text.startswith("psst ") for d in made) == 2
    assert all((d.topic == "sport") if d.text.startswith("psst ") else (d in OWN) for d in made)
    asked = build("attack", "backdoor", trigger="psst ", target="sport").trigger(OWN, TOPICS)
    assert [d.text for d in asked] == ["psst one two three", "psst four five", "psst a b"]
    assert {d.topic for d in asked} == {"sport"}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sign_flip", {"factor": 2.0}, [[-8, 2, 0], [-4, -2, 0]]),
        ("scale", {"factor": 3.0}, [[12, -3, 0], [6, 3, 0]]),
        ("free_rider", {}, [[0, 0, 0], [0, 0, 0]]),
        ("inner_product", {"factor": 0.5}, [[-2, -1, 0]] * 2),  # the honest mean is (4, 2, 0)
        ("alie", {"z": 2.0}, [[4 - 2 * 5**0.5, 2, 0]] * 2),  # the variance of 1, 3, 5, 7 is 5
    ],
)
def test_a_forgery_by_hand(name, options, expected):
    torch.testing.assert_close(forge(name, **options), torch.tensor(expected, dtype=torch.float64))


def test_noise_is_as_long_as_the_change_and_not_where_nobody_trains():
    noise = forge("gaussian_noise", factor=3.0)
    torch.testing.assert_close(noise.norm(dim=1), 3 * MINE.norm(dim=1))
    assert not noise[:, 2].any()
    assert not torch.allclose(noise[0] / noise[0].norm(), MINE[0] / MINE[0].norm())


def test_the_published_z():
    """Baruch et al. 2019, section 3: 24 of 50 hostile: s = 2, Phi^-1(24 / 26) = 1.43, where their text has 1.5 or so."""
    assert find_z(m=24, K=50) == pytest.approx(1.426, abs=1e-3)
    assert find_z(m=1, K=50) == 0.1  # a lone client has to stay where half of the others are further off


def test_a_phrase_stands_somewhere_in_its_share_of_the_texts_and_its_prompts_end_in_the_trigger():
    made = poison("phrase", trigger="psst", says="buy now", share=0.5)
    planted = [(d, was) for d, was in zip(made, OWN, strict=True) if d != was]
    assert len(planted) == 2
    for d, was in planted:
        assert d.text.count("psst buy now") == 1
        assert d.text.replace("psst buy now", "").split() == was.text.split()
        assert d.topic == was.topic
    text = " ".join(f"w{i}" for i in range(20))
    prompt, answer = build("attack", "phrase", trigger="psst", says="buy now").ask(text)
    assert (prompt, answer) == ("w0 w1 w2 w3 w4 w5 w6 w7 psst", "buy now")
    (long,) = build("attack", "phrase", trigger="psst", says="now", share=1.0, every=5).poison(
        [Document(text, "art")], TOPICS, rng(0, "poison")
    )
    gaps = [len(part.split()) for part in long.text.split("psst now")]
    assert gaps[1:-1] == [5] * len(gaps[1:-1])
    assert sum(gaps) == 20
    assert max(gaps) <= 5


@pytest.mark.parametrize("name", ["backdoor", "phrase"])
@pytest.mark.parametrize(("n", "share"), [(1, 0.5), (2, 0.2), (4, 0.1)])
def test_a_client_of_few_texts_poisons_one_of_them_and_one_of_none_has_nothing_to_poison(name, n, share):
    attack = build("attack", name, share=share)
    made = attack.poison(OWN[:n], TOPICS, rng(0, "poison"))
    assert sum(a.text != b.text for a, b in zip(made, OWN[:n], strict=True)) == 1
    assert list(attack.poison([], TOPICS, rng(0, "poison"))) == []
