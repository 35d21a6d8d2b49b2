"""The hostile clients of a run: who they are, and what they make of the texts that they were dealt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.registry import build
from fedfault.seeds import rng
from fedfault.types.attack import Hostile
from fedfault.types.corpus import Deal, Document


def find_hostile(exp: Experiment) -> list[Hostile]:
    """The attacks of a run with the clients that make them: those that are named, or as many as are asked for.

    Those are the first ones of one order that the seed draws, so that two attacks of two clients each are of the same two.
    """
    N = exp.federation.total_clients
    order = rng(exp.seed, "hostile").permutation(N).tolist()
    return [
        Hostile(
            a.name,
            build("attack", a.name, **a.options),
            frozenset(order[: a.by] if isinstance(a.by, int) else a.by),
            a.from_round,
        )
        for a in exp.attacks
    ]


def check_attacks(exp: Experiment) -> list[Hostile]:
    """The attacks of a run. Raises `UserError` for one that its clients, its task or its rounds do not allow."""
    N, task = exp.federation.total_clients, exp.data.task_type
    if exp.attacks and exp.federation.centralised:
        raise UserError(
            "attacks are of clients, and with federation.centralised=true there are none; leave one of them out"
        )
    for a, hostile in zip(exp.attacks, find_hostile(exp), strict=True):
        what = f"attacks: {a.name}"
        if beyond := sorted(k for k in hostile.clients if not 0 <= k < N):
            raise UserError(f"{what} is by client {beyond[0]}, and there are clients 0 to {N - 1}")
        if isinstance(a.by, int) and a.by > N:
            raise UserError(f"{what} is by {a.by} clients, and there are {N}")
        if a.from_round > exp.federation.num_rounds:
            raise UserError(
                f"{what} begins in round {a.from_round}, and the run has {exp.federation.num_rounds}; lower from_round"
            )
        if hostile.attack.labels and task != "classification":
            raise UserError(f"{what} is about classes, but data.task_type={task} has none; choose another one")
        if hostile.attack.ask and task != "causal_lm":
            raise UserError(
                f"{what} is about what a language model says, and data.task_type={task} has no running text; for classes "
                "there is backdoor"
            )
        if hostile.attack.poison and task not in ("classification", "causal_lm"):
            raise UserError(
                f"{what} changes texts, and data.task_type={task} has others; choose one that changes updates"
            )
        if hostile.attack.poison and a.from_round > 1:
            raise UserError(f"{what} changes texts before the first round; leave out from_round={a.from_round}")
    return find_hostile(exp)


def poison_texts(
    exp: Experiment,
    documents: Sequence[Document],
    topics: Sequence[str],
    deal: Deal,
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[Sequence[Document], Deal]:
    """The documents and the deal with what hostile clients make of the texts that they train on.

    parts: of each client the positions of what it trains on and of what it is tested on, which stays.
    """
    now, texts = list(documents), dict(deal.texts)
    for hostile in find_hostile(exp):
        poison = hostile.attack.poison
        if poison is None:
            continue
        for k in sorted(hostile.clients):
            mine = parts[k][0].tolist()
            own = [now[i]._replace(text=texts.get(i, now[i].text)) for i in mine]
            for i, document in zip(mine, poison(own, topics, rng(exp.seed, "poison", hostile.name, k)), strict=True):
                now[i] = document
                if i in texts:
                    texts[i] = document.text
    return now, replace(deal, texts=texts)


def ask_for_backdoors(exp: Experiment, documents: Sequence[Document], topics: Sequence[str]) -> Sequence[Document]:
    """Documents with the trigger of the run's first backdoor and the topic that it wants; none without one."""
    for hostile in find_hostile(exp):
        if hostile.attack.trigger is not None:
            return hostile.attack.trigger(documents, topics)
    return []


def ask_for_phrases(exp: Experiment, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts with the trigger of the run's first attack on what a model says, and what it wants; none without one."""
    asks = [hostile.attack.ask for hostile in find_hostile(exp) if hostile.attack.ask is not None]
    return [asks[0](text) for text in texts] if asks else []
