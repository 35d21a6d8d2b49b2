"""Words that a newcomer may not know: marked once, where they first stand, and each with its meaning."""

from __future__ import annotations

from dataclasses import replace

from fedfault.report.glossary import Explained, Word, list_words
from handmade import make

NAT = Word("Nat", "nats?", "a unit.")


def test_a_word_is_marked_at_its_first_place_only_and_never_within_another():
    page = Explained([NAT, Word("Signature", "signatures?", "a name.")])
    assert page.mark("signature of a nation").count("<button") == 1
    assert page.mark("two nats, one nat").count("<button") == 1
    assert page.mark("nats & signatures") == "nats &amp; signatures"
    assert [word.name for word in page.used] == ["Signature", "Nat"]


def test_what_is_in_a_tag_is_no_word():
    page = Explained([Word("A", "alpha", "one."), Word("B", "word-a|button", "two.")])
    assert page.mark("alpha").count("<button") == 1


def test_words_are_those_of_the_figures_and_the_kind_of_run():
    run = make()
    names = {word.name for word in list_words(run, set(), judged=True)}
    assert {"Nat", "Mixture", "Control run"} <= names
    assert not names & {"CKA", "Jain", "CVaR", "Regret"}
    assert "Control run" not in {word.name for word in list_words(run, set(), judged=False)}
    assert {"CKA", "Jain", "CVaR"} <= {word.name for word in list_words(run, {"layers", "fairness"}, judged=False)}
    labelled = replace(run, config={**run.config, "data": {"task_type": "classification"}})
    assert "all labels together" in {w.name: w.meaning for w in list_words(labelled, set(), judged=False)}["Mixture"]
