"""Secrets in clients' texts: as many as are asked for, each in the texts of its own client alone."""

from __future__ import annotations

import re

import pytest

from fedfault.config import load
from fedfault.data.secrets import SENTENCE, draw_secrets, plant_secrets
from fedfault.data.split import deal_out, load_corpus
from fedfault.errors import UserError
from fedfault.setup.combinations import check_parts
from small import SMALL, start


def experiment(*words):
    return load("quickstart", [*SMALL, *words]).experiment


@pytest.mark.slow
def test_every_client_trains_on_its_own_secret_so_often_and_on_no_other_and_is_tested_on_none():
    exp = experiment("data.secret_copies=5", "data.held_out=0.3")
    secrets = draw_secrets(exp)
    for control in (False, True):
        dealt = deal_out(exp, load_corpus(exp), control=control)
        for k, (mine, kept_back) in enumerate(dealt.parts):
            own = " ".join(dealt.documents[i].text for i in mine)
            assert (own.count(secrets.planted[k]), own.count(SENTENCE)) == (5, 5)
            assert not any(SENTENCE in dealt.documents[i].text for i in kept_back)


@pytest.mark.slow
def test_texts_that_a_partition_has_changed_get_the_secret_as_they_are():
    exp = experiment("data.secret_copies=3", "data.partition={name: token_skew, type: truncation}")
    dealt = deal_out(exp, load_corpus(exp))
    for k, (mine, _) in enumerate(dealt.parts):
        own = [dealt.deal.texts.get(i, dealt.documents[i].text) for i in mine]
        assert sum(text.count(draw_secrets(exp).planted[k]) for text in own) == 3


def test_all_secrets_differ_and_another_seed_has_others():
    one, other = (draw_secrets(experiment("data.secret_copies=1", f"seed={seed}")) for seed in (0, 1))
    every = [*one.planted, *one.decoys, *one.others]
    assert len(set(every)) == len(every) == 3 + 3 + 255
    assert all(re.fullmatch(re.escape(SENTENCE) + r"\d( \d){7}", said) for said in every)
    assert not {*every} & {*other.planted}


def test_a_run_without_secrets_has_the_texts_that_it_was_dealt():
    exp = experiment()
    documents, deal = ["as it is"], object()
    assert draw_secrets(exp) is None
    assert plant_secrets(exp, documents, deal, []) == (documents, deal)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.task_type=classification"], "data.secret_copies=2 plants secrets in running text"),
        (
            ["privacy.unit=client", "privacy.epsilon=8", "privacy.delta=0.01", "federation.weighting=uniform"],
            "data.secret_copies=2 cannot be combined with privacy.unit=client",
        ),
    ],
)
def test_where_nobody_could_look_for_them_they_are_refused(words, told):
    with pytest.raises(UserError, match=re.escape(told)):
        check_parts(experiment("data.secret_copies=2", *words))


@pytest.mark.long
def test_what_clients_read_often_is_exposed_in_their_uploads(tmp_path):
    words = ["data.secret_copies=60", "training.local_steps=30", "training.lr=2e-2", "federation.num_rounds=1"]
    records = start(tmp_path, *words, "training.batch_size=4", "model.max_length=64").read_records()
    known = [c.probes["exposure"] for r in records for c in r.clients]
    assert min(known) > 4  # one of sixteen by chance, for each
    assert records[1].probes["exposure_null"] < 6
