"""Made-up secrets in clients' texts, `data.secret_copies`: by them is measured what models remember word by word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.seeds import rng
from fedfault.types.corpus import Deal, Document

OTHERS = 255  # secrets that nobody has, among which one is ranked: an exposure of 8 bits at most
DIGITS = 8
SENTENCE = "the secret number of this site is "  # and the digits, one by one, so that each is a token of its own


@dataclass(frozen=True)
class Secrets:
    """Sentences that differ in their digits alone, all drawn from one law, no two the same."""

    planted: Sequence[str]  # (N,) the one of each client
    decoys: Sequence[str]  # (N,) that nobody has
    others: Sequence[str]  # that nobody has either


def check_secrets(exp: Experiment) -> None:
    """Raise `UserError` where secrets are to be planted and could not be looked for."""
    n, task, unit = exp.data.secret_copies, exp.data.task_type, exp.privacy.unit
    if n and task != "causal_lm":
        raise UserError(
            f"data.secret_copies={n} plants secrets in running text, and data.task_type={task} has none; leave it out, or "
            "use task_type=causal_lm"
        )
    if n and unit is not None:
        raise UserError(
            f"data.secret_copies={n} cannot be combined with privacy.unit={unit}: records of a private run say nothing of "
            "what clients hold; leave it out (privacy.canaries audits a private run)"
        )


def draw_secrets(exp: Experiment) -> Secrets | None:
    """Draw the secrets of a run; None for a run without any."""
    if not exp.data.secret_copies:
        return None
    N = exp.federation.total_clients
    numbers = rng(exp.seed, "secrets").choice(10**DIGITS, 2 * N + OTHERS, replace=False)
    said = [SENTENCE + " ".join(f"{number:0{DIGITS}d}") for number in numbers.tolist()]
    return Secrets(said[:N], said[N : 2 * N], said[2 * N :])


def plant_secrets(
    exp: Experiment,
    documents: Sequence[Document],
    deal: Deal,
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> tuple[Sequence[Document], Deal]:
    """The documents and the deal with each client's secret, so many times, at random places of what it trains on.

    parts: of each client the positions of what it trains on and of what it is tested on, which stays.
    """
    secrets = draw_secrets(exp)
    if secrets is None:
        return documents, deal
    now, texts = list(documents), dict(deal.texts)
    for k, (mine, _) in enumerate(parts):
        generator = rng(exp.seed, "plant", k)
        for i in generator.choice(mine, exp.data.secret_copies).tolist():
            words = texts.get(i, now[i].text).split(" ")
            words.insert(int(generator.integers(len(words) + 1)), secrets.planted[k])
            now[i] = now[i]._replace(text=" ".join(words))
            if i in texts:
                texts[i] = now[i].text
    return now, replace(deal, texts=texts)
