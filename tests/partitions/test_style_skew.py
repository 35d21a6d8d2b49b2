import re

import numpy as np
import pytest

from fedfault.errors import UserError
from fedfault.partitions.style_skew import style_skew
from fedfault.partitions.topic_isolation import topic_isolation
from fedfault.registry import build
from fedfault.types.corpus import Document

FORMAL = "The report of the committee on the reform of national law"  # 11 words
CASUAL = "wow I really love you so much and you know it"  # 11 words


def split(documents, num_clients, seed=0, **options):
    return style_skew(**options)(documents, num_clients, np.random.default_rng(seed))


def values(deal, of):
    """The values of each client's documents, clients in the order of their means."""
    return sorted(([of[i] for i in own] for own in deal.clients), key=np.mean)


def emds(deal):
    return [float(number) for number in re.findall(r"\d\.\d{3}", deal.notes[-1])]


def test_length_sorts_texts_by_their_words():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 61))
    deal = split([Document("word " * n, "topic") for n in lengths], 4, criterion="length")
    assert list(map(sorted, values(deal, lengths))) == [list(range(k, k + 15)) for k in (1, 16, 31, 46)]
    assert "means from 8 to 53 (words)" in deal.notes[0]


def test_formality_parts_reports_from_talk_whatever_their_length():
    documents = [Document((FORMAL, CASUAL)[i % 2] + " indeed" * (i % 3), "topic") for i in range(60)]
    clients = split(documents, 2, criterion="formality").clients
    assert sorted(sorted({i % 2 for i in own.tolist()}) for own in clients) == [[0], [1]]


def test_complexity_differs_between_clients_and_length_does_not():
    generator = np.random.default_rng(1)
    long = generator.integers(3, 60, 800)
    simple = generator.random(800) < 0.5
    documents = [
        Document(" ".join(["cat" if s else "vocabulary"] * n), "topic") for n, s in zip(long, simple, strict=True)
    ]
    deal = split(documents, 2, criterion="complexity")
    hard, easy = values(deal, simple)
    assert np.mean(hard) < 0.1
    assert np.mean(easy) > 0.9
    first, second = values(deal, long)
    assert abs(np.mean(first) - np.mean(second)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["length", "formality", "complexity", "source"])
def test_without_purity_every_style_is_an_iid_split(criterion):
    """Even sizes, and the longer half of the texts is at every client in proportion: hypergeometric mean, variance."""
    documents = [Document(FORMAL if i < 30 else CASUAL[:8], "topic", "ab"[i < 30]) for i in range(60)]
    generator = np.random.default_rng(2)
    deals = [style_skew(criterion=criterion, purity=0.0)(documents, 4, generator) for _ in range(200)]
    formal = np.array([[(own < 30).sum() for own in deal.clients] for deal in deals])
    assert {tuple(map(len, deal.clients)) for deal in deals} == {(15, 15, 15, 15)}
    assert np.abs(formal.mean(axis=0) - 7.5).max() < 0.5
    assert abs(formal.var(axis=0).mean() / (15 / 4 * 45 / 59) - 1) < 0.2


def test_a_source_is_at_one_client_as_a_topic_is_in_topic_isolation():
    documents = [Document("text", f"t{i % 3}", f"g{i % 5}") for i in range(50)]
    deal = split(documents, 5, criterion="source")
    assert sorted(sorted({documents[i].group for i in own}) for own in deal.clients) == [[f"g{k}"] for k in range(5)]
    by_topic = [Document("text", d.group) for d in documents]
    isolated = topic_isolation()(by_topic, 5, np.random.default_rng(0))
    assert [own.tolist() for own in deal.clients] == [own.tolist() for own in isolated.clients]


def test_without_groups_the_topics_are_the_sources_and_the_notes_say_so():
    documents = [Document("text", f"t{i % 4}") for i in range(40)]
    deal = split(documents, 8, criterion="source")
    assert all(len({documents[i].topic for i in own}) == 1 for own in deal.clients)
    assert "topics are the sources" in deal.notes[0]
    assert "4 sources for 8 clients: several clients share a source" in deal.notes
    assert emds(deal)[0] == pytest.approx(1.5)  # 2 (1 - 1/4): the labels are as far apart as can be


def test_a_source_too_small_for_its_clients_is_explained():
    documents = [Document("text", "topic", "ab"[i >= 50]) for i in range(52)]
    with pytest.raises(UserError) as error:
        split(documents, 10, criterion="source")
    for part in ("52 documents of 2 sources", "the smallest of 2", "at most 4 clients", "smaller purity"):
        assert part in str(error.value)
    assert min(map(len, split(documents, 10, criterion="source", purity=0.0).clients)) == 5


def test_the_notes_tell_how_far_labels_come_along_and_that_length_was_behind_it():
    """Formal texts are all long, casual ones all short, and each style is a label: the split is one by label.
    Among texts of one length there is one style only, so nothing is left of it."""
    documents = [Document(FORMAL if i % 2 else "love it", f"t{i % 2}") for i in range(400)]
    as_made, same_length, by_chance = emds(split(documents, 2, criterion="formality"))
    assert as_made == 1.0
    assert same_length < 0.25
    assert by_chance < 0.25
    assert emds(split(documents, 2, criterion="length"))[0] == 1.0


def test_a_style_that_length_does_not_explain_stays_in_the_notes():
    documents = [Document((FORMAL, CASUAL)[i % 2], f"t{i % 2}") for i in range(400)]
    as_made, same_length, _ = emds(split(documents, 2, criterion="formality"))
    assert as_made == 1.0
    assert same_length > 0.7  # texts of one length are not always one half formal


@pytest.mark.parametrize("wrong", [{"purity": 1.1}, {"purity": -0.1}, {"criterion": "beauty"}])
def test_other_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        build("partition", "style_skew", **wrong)


def test_documents_of_which_some_have_no_source_are_refused():
    given = [Document(f"text {i}", "t", "ab"[i % 2] if i < 8 else "") for i in range(10)]
    with pytest.raises(UserError, match=r"source: 2 of 10 documents have no group, the first is 'text 8'"):
        split(given, 2, criterion="source")


@pytest.mark.parametrize("criterion", ["formality", "complexity"])
def test_texts_that_all_have_one_score_are_an_iid_split_and_that_is_said(criterion):
    chinese = [
        Document("".join(chr(0x4E00 + (7 * i + k) % 3000) for k in range(20 + i)) + "\u3002", "t") for i in range(40)
    ]
    assert any("the same" in note and "IID" in note for note in split(chinese, 4, criterion=criterion).notes)
    assert not any("IID" in note for note in split(chinese, 1, criterion=criterion).notes)
    english = [Document((FORMAL, CASUAL)[i % 2], "t") for i in range(40)]
    assert not any("IID" in note for note in split(english, 4, criterion=criterion).notes)
