"""The contract of attacks: made-up changes and documents."""

from __future__ import annotations

import torch

from fedfault.errors import UserError
from fedfault.options import list_options
from fedfault.registry import read_summary
from fedfault.seeds import rng
from fedfault.testing.decks import documents
from fedfault.testing.rules import Subject, expect, rule
from fedfault.types.attack import Attack, Changes
from fedfault.types.corpus import Document

KIND = "attack"
TOPICS = ("art", "news", "sport")
P = 12


def _see(honest: int = 4, hostile: int = 2, seed: int = 0) -> Changes:
    """Changes of so many clients; the last two numbers are trained by nobody."""
    g = torch.Generator().manual_seed(seed)
    changes = torch.randn(honest + hostile, P, generator=g, dtype=torch.float64)
    changes[:, -2:] = 0
    return Changes(changes[:honest], changes[honest:], torch.Generator().manual_seed(7))


def _own() -> list[Document]:
    return documents(TOPICS[i % 3] for i in range(30))


@rule(KIND)
def it_does_something(subject: Subject) -> None:
    """An attack poisons texts, forges updates, or does both."""
    made: Attack = subject.build()
    expect(made.poison is not None or made.forge is not None, "it does neither")


@rule(KIND)
def what_is_forged_has_the_shape_of_what_was_trained(subject: Subject) -> None:
    """Forged changes are (m, P), finite and zero where nobody trained, also where nobody is honest and for one client."""
    forge = subject.build().forge
    for honest, hostile in ((4, 2), (0, 3), (5, 1), (0, 1)) if forge else ():
        got = _see(honest, hostile)
        sent = forge(got)
        expect(tuple(sent.shape) == (hostile, P), f"{tuple(sent.shape)} of {hostile} clients and {P} numbers")
        expect(bool(sent.isfinite().all()), "it is not finite")
        expect(not sent[:, -2:].any(), "numbers that nobody trains have moved")


@rule(KIND)
def forging_is_repeatable_and_leaves_its_inputs(subject: Subject) -> None:
    """The same changes and the same generator give the same forgery, and the changes stay as they are."""
    forge = subject.build().forge
    if forge is not None:
        got, again = _see(), _see()
        expect(torch.equal(forge(got), forge(again)), "two forgeries differ")
        expect(torch.equal(got.own, again.own) and torch.equal(got.honest, _see().honest), "the changes were changed")
        expect(torch.equal(got.own, _see().own), "the changes were changed")


@rule(KIND)
def poisoned_documents_are_documents_of_the_corpus(subject: Subject) -> None:
    """Poisoned documents are as many as there were, with a text and with topics of the corpus; the same seed, the same."""
    poison = subject.build().poison
    if poison is not None:
        before, own = _own(), _own()
        made, again = (list(poison(own, TOPICS, rng(3, "poison"))) for _ in range(2))
        expect(len(made) == len(before), f"{len(made)} of {len(before)} documents")
        expect(
            all(d.text.strip() and d.topic in TOPICS for d in made), "a document has no text, or no topic of the corpus"
        )
        expect(made == again, "two poisonings by one seed differ")
        expect(own == before, "the documents were changed in place")
        expect(made != before, "nothing was poisoned")


@rule(KIND)
def a_trigger_asks_for_another_topic(subject: Subject) -> None:
    """Texts with the trigger are those of other topics, labelled as the attacker wants them; and it is about labels."""
    attack: Attack = subject.build()
    if attack.trigger is not None:
        expect(attack.labels, "`labels` is false")
        own = _own()
        asked = attack.trigger(own, TOPICS)
        wanted = {d.topic for d in asked}
        expect(len(wanted) == 1 and wanted <= set(TOPICS), f"the wanted topics are {sorted(wanted)}")
        expect(len(asked) == sum(d.topic not in wanted for d in own), "texts of the wanted topic are among them")


@rule(KIND)
def a_target_that_does_not_exist_is_refused(subject: Subject) -> None:
    """A class that is not there is said in a sentence, wherever an attack has a `target`."""
    if "target" not in list_options(subject.builder):
        return
    poison = subject.build(target="no such class").poison
    try:
        poison(_own(), TOPICS, rng(0, "poison"))
    except UserError as e:
        expect("no such class" in str(e), f"the refusal does not name it: {e}")
    else:
        expect(False, "nothing was said")


@rule(KIND)
def it_says_what_it_is(subject: Subject) -> None:
    """The first line of the docstring says what hostile clients do."""
    expect(len(read_summary(subject.builder)) > 20, "there is no such line")
