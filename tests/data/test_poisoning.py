"""Who is hostile in a run, and what becomes of the texts."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fedfault.config import load
from fedfault.data.poisoning import find_hostile
from fedfault.data.split import deal_out, load_corpus
from fedfault.errors import UserError
from fedfault.setup.combinations import check_parts
from small import SMALL


def experiment(attacks, *words):
    return load("quickstart", [*SMALL, f"attacks={attacks}", *words]).experiment


def test_as_many_clients_as_are_asked_for_are_drawn_by_the_seed_the_same_for_all_attacks():
    exp = experiment("[{name: scale, by: 1}, {name: sign_flip, by: 2}, {name: free_rider, by: [0]}]")
    one, two, named = find_hostile(exp)
    assert len(one.clients) == 1
    assert one.clients < two.clients
    assert named.clients == {0}
    assert len({find_hostile(exp.model_copy(update={"seed": seed}))[1].clients for seed in range(8)}) > 1


def test_only_what_hostile_clients_train_on_is_changed():
    exp = experiment("[{name: garble, by: [1]}]")
    corpus = load_corpus(exp)
    plain, poisoned = deal_out(exp.model_copy(update={"attacks": []}), corpus), deal_out(exp, corpus)
    changed = [i for i, (a, b) in enumerate(zip(plain.documents, poisoned.documents, strict=True)) if a != b]
    assert changed
    assert set(changed) <= set(poisoned.parts[1][0].tolist())
    assert all(np.array_equal(a, b) for a, b in zip(plain.deal.clients, poisoned.deal.clients, strict=True))
    control = deal_out(exp, corpus, control=True)
    assert list(control.documents) == list(plain.documents)


def test_texts_that_a_partition_has_changed_are_poisoned_as_they_are():
    exp = experiment("[{name: garble, by: [0]}]", "data.partition={name: token_skew, type: truncation}")
    corpus = load_corpus(exp)
    plain, poisoned = deal_out(exp.model_copy(update={"attacks": []}), corpus), deal_out(exp, corpus)
    for i in plain.parts[0][0].tolist():
        if i in plain.deal.texts:
            assert sorted(poisoned.deal.texts[i].split()) == sorted(plain.deal.texts[i].split())


@pytest.mark.parametrize(
    ("attacks", "words", "told"),
    [
        ("[{name: scale, by: [9]}]", [], "attacks: scale is by client 9, and there are clients 0 to"),
        ("[{name: scale, by: 99}]", [], "attacks: scale is by 99 clients, and there are"),
        ("[{name: label_flip}]", [], "attacks: label_flip is about classes, but data.task_type=causal_lm has none"),
        ("[{name: garble, from_round: 2}]", [], "attacks: garble changes texts before the first round"),
        ("[{name: scale, from_round: 4}]", [], "attacks: scale begins in round 4, and the run has 3"),
        ("[{name: scale, by: []}]", [], "by"),
        ("[{name: scal}]", [], "scal"),
        ("[{name: scale, factr: 2}]", [], "factr"),
        ("[{name: scale}]", ["federation.centralised=true"], "attacks are of clients"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_in_a_sentence(attacks, words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        check_parts(experiment(attacks, *words))


def test_more_hostile_clients_than_a_rule_stands_are_refused():
    words = ["federation.total_clients=7", "federation.participation_rate=1.0", "federation.aggregation=krum"]
    check_parts(experiment("[{name: scale, by: 1}]", *words))
    with pytest.raises(UserError, match=r"attacks: 2 of the 7 clients .* federation.aggregation=krum stands 1"):
        check_parts(experiment("[{name: scale, by: 2}]", *words))
    check_parts(experiment("[{name: scale, by: 5}]", *words[:2]))  # the mean promises nothing
    with pytest.raises(UserError, match=r"federation.aggregation=krum needs at least 5 clients a round"):
        check_parts(experiment("[]", "federation.total_clients=4", "federation.participation_rate=1.0", words[2]))


def test_the_one_client_that_a_rule_trusts_has_to_be_there_and_honest():
    trusts = "federation.aggregation={name: fltrust, trusted: %d}"
    check_parts(experiment("[{name: scale, by: [1]}]", trusts % 0))
    with pytest.raises(UserError, match=r"attacks: client 1 is hostile, and federation.aggregation=fltrust trusts it"):
        check_parts(experiment("[{name: scale, by: [1]}]", trusts % 1))
    with pytest.raises(UserError, match=r"fltrust trusts client 3, and there are clients 0 to 2"):
        check_parts(experiment("[]", trusts % 3))
