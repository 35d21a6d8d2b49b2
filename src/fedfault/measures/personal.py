"""The models of every client as they do on what it held back: their means, and who is better off with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedfault.stats import mean_interval

GLOBAL, OWN, TUNED, ALONE = MODELS = ("global", "own", "tuned", "alone")
NAMES = {
    GLOBAL: "the server's model",
    OWN: "its own model",
    TUNED: "the model that it trained on",
    ALONE: "the model that it trained alone",
}
PAIRS = ((OWN, GLOBAL), (TUNED, GLOBAL), (TUNED, OWN), (OWN, ALONE), (TUNED, ALONE), (GLOBAL, ALONE))


class Pair(NamedTuple):
    """One model of every client against another: what it loses more on what the client held back."""

    model: str
    than: str
    differences: Mapping[int, float]  # client -> loss of the one minus loss of the other

    @property
    def mean(self) -> float:
        """The mean over clients."""
        return sum(self.differences.values()) / len(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval for the mean by Student's t over the clients of this run; None for fewer than two."""
        return mean_interval(list(self.differences.values()))

    @property
    def better(self) -> int:
        """How many clients are better off with the first model."""
        return sum(d < 0 for d in self.differences.values())

    @property
    def worse(self) -> int:
        """How many clients are worse off with the first model."""
        return sum(d > 0 for d in self.differences.values())


def collect_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Collect the loss of each model that there is, by client; one that is not finite is absent."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["loss"] is not None:
            found.setdefault(row["model"], {})[row["client"]] = row["loss"]
    return {name: found[name] for name in MODELS if name in found}


def pair_models(rows: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Pair the models that there are by client.

    >>> found = [(0, "global", 2.0), (0, "own", 1.5), (1, "global", 1.0)]
    >>> rows = [{"client": k, "model": model, "loss": loss} for k, model, loss in found]
    >>> [(p.model, p.than, p.differences) for p in pair_models(rows)]
    [('own', 'global', {0: -0.5})]
    """
    losses = collect_losses(rows)
    both = [(a, b) for a, b in PAIRS if a in losses and b in losses]
    pairs = [Pair(a, b, {k: x - losses[b][k] for k, x in losses[a].items() if k in losses[b]}) for a, b in both]
    return [pair for pair in pairs if pair.differences]


def average_models(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Average the loss and the metrics of each model over the clients that have them."""
    out: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [{"loss": row["loss"], **row["metrics"]} for row in rows if row["model"] == name]
        keys = dict.fromkeys(key for row in own for key in row)
        values = {key: [row[key] for row in own if key in row] for key in keys}
        out[name] = {key: sum(found) / len(found) for key, found in values.items()}
    return out
