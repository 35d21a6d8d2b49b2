"""The probe of what models give away: which texts a client trained on, by their losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfault.measures.membership import find_area, find_recall
from fedfault.registry import register
from fedfault.seeds import rng
from fedfault.types.task import FinishedRound, Measurements, Probe, TextLosses, fold_for_uploads

TEXTS = 64  # of every client at most that it trained on: the same ones in every round


@register("probe", order=10, on=False, cite=("yeom2018", "carlini2022lira"))
def membership() -> Probe:
    """Membership inference on the server's model and on every client's upload: by loss, and against the base's loss.

    Members are texts that the clients of the round train on, others are what they keep back, of the same law. An attacker
    who sees a model takes a text for a member if its loss is low (Yeom et al., CSF 2018), or if it is low beside that of
    the model before training, which takes away how hard the text is (the reference attack, Carlini et al., S&P 2022,
    section 3). Areas under the ROC curve, 0.5 without any knowledge, of the server's model on the texts of all clients of
    the round:

    membership_loss        by loss
    membership_reference   by the base's loss minus the model's
    membership_recall      of the reference attack: members found while 1 % of the others are taken for members
    membership_base        by the loss of the base, which has seen neither: what the choice of the texts gives away
    membership_null        of the reference attack between two halves of the others: what chance gives
    membership_loss, _reference, _recall   of each client's upload on its own texts

    Local steps may not have come to every text yet. There is nothing without text, or without texts kept back
    (`data.held_out`). Few of these make areas rough: their standard deviation by chance is about
    sqrt((1/members + 1/others) / 12).
    """

    def measure(m: FinishedRound) -> Measurements:
        clients, K = list(m.clients), len(m.clients)
        base = m.task.text_losses(None, clients, TEXTS)
        now = m.task.text_losses([m.after.adapter.flat] * K, clients, TEXTS)
        if base is None or now is None:
            return Measurements()
        with fold_for_uploads(m) as models:
            uploads = m.task.text_losses(models, clients, TEXTS) or []
        kept = [len(own.others) > 0 for own in base]
        if not any(kept) or not all(_is_finite(own) for own in (*base, *now, *uploads)):
            return Measurements()
        before, after = _pool(base), _pool(now)
        members, others = before.members - after.members, before.others - after.others
        mixed = rng(m.seed, "membership", m.round).permutation(others)
        found = {
            "membership_loss": find_area(-after.members, -after.others),
            "membership_reference": find_area(members, others),
            "membership_recall": find_recall(members, others),
            "membership_base": find_area(-before.members, -before.others),
        }
        if len(mixed) > 1:
            found |= {"membership_null": find_area(mixed[::2], mixed[1::2])}
        rows = [_attack(a, b) if ok else [float("nan")] * 3 for a, b, ok in zip(base, uploads, kept, strict=True)]
        names = ("membership_loss", "membership_reference", "membership_recall")
        return Measurements(found, {name: [row[i] for row in rows] for i, name in enumerate(names)})

    return Probe(measure, sparse=True)


def _attack(base: TextLosses, now: TextLosses) -> list[float]:
    members, others = base.members - now.members, base.others - now.others
    return [find_area(-now.members, -now.others), find_area(members, others), find_recall(members, others)]


def _pool(each: Sequence[TextLosses]) -> TextLosses:
    return TextLosses(np.concatenate([own.members for own in each]), np.concatenate([own.others for own in each]))


def _is_finite(own: TextLosses) -> bool:
    return bool(np.isfinite(own.members).all() and np.isfinite(own.others).all())
