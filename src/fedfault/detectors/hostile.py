"""Clients whose updates are not like those of honest ones: `hostile_client`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from fedfault.records import Detector, Reading, Records, RoundRecord
from fedfault.registry import register

NUMBERS = ("length", "direction", "likeness", "harm")
SHORTEST = 1e-6  # of the median length: what sends back what it got has no logarithm
FEWEST = 3  # clients of a round, of which one can stand out
LEAST = 0.02  # standard deviation of a number between honest clients, at least
NAMED = 8  # clients of a sentence, at most

Means = dict[int, dict[str, float]]  # client -> number -> its mean over the client's rounds


@register("detector", cite=("fung2020foolsgold", "wang2020valuation"))
def hostile_client() -> Detector:
    """Some clients stand out from honest clients of the same partition: by length, direction, likeness or harm.

    Of every client the mean over its rounds of each number of `measure_outlying` is taken in standard deviations from the
    mean over all clients of honest control runs; the statistic is the largest one of any client.

    Honest clients whose data differ stand out from IID ones as far as hostile clients do, so that IID controls set no
    threshold here and without controls it is silent: they have to be runs of the same partition, with seeds of their own
    (`fedfault calibrate CONFIG --honest`). The sentence names all clients that stand out further than any honest
    one of the controls. Those that stay within the spread of honest clients are not seen: docs/trust.md has rates.

    >>> from fedfault.testing.histories import history
    >>> def run(c):
    ...     cosines = [[1, .5, .5, c], [.5, 1, .5, c], [.5, .5, 1, c], [c, c, c, 1]]
    ...     return history(clients=[{}, {k: {} for k in range(4)}], matrices={"update_cosine": [None, cosines]})
    >>> detector = hostile_client()
    >>> scale = detector.learn_scale([run(0.5), run(0.4), run(0.45)])
    >>> print(detector.explain(detector.read(run(-0.5), scale)[-1]))
    client 3 stands out from honest clients of this partition, by the direction of its updates: a median cosine of -0.50
    """

    def follow(records: Iterable[RoundRecord], scale: Mapping[str, float]) -> Iterator[Reading | None]:
        sums: dict[int, dict[str, tuple[float, int]]] = {}
        for r in records:
            found = measure_outlying(r)
            _add(sums, found)
            means = _average(sums)
            z = {
                k: most
                for k in means
                if (most := max(_standardise(means[k], scale).values(), default=None)) is not None
            }
            yield _read_worst(r.round, means, z, scale) if found and z else None

    return Detector(
        follow,
        _explain,
        reads=("matrix/update_cosine",),
        advice=(
            "look at what these clients did: fedfault blame RUN",
            "federation.aggregation=geometric_median",
            "federation.aggregation=krum",
        ),
        min_effect=0.0,
        min_std=0.5,
        default_threshold=None,
        learn_scale=_learn_spread,
        of_partition=True,
        leads_to=("divergence", "oscillation", "client_drift", "negative_transfer", "forgetting", "slow_convergence"),
    )


def measure_outlying(record: RoundRecord) -> dict[int, dict[str, float]]:
    """Measure every client of a round by up to four numbers, larger where it stands out more; {} for fewer than three.

    length      |log(norm of its update / median norm)|
    direction   minus the median cosine between its update and the others'
    likeness    the largest cosine between its update and another one
    harm        how much smaller the validation loss would be without its update, where the probe `contributions` is on
    """
    K, norms = len(record.clients), np.array([c.update_norm for c in record.clients])
    cosines = np.array(record.matrices.get("update_cosine", ()), dtype=float)
    middle = float(np.median(norms)) if K >= FEWEST else 0.0
    if not (math.isfinite(middle) and middle > 0) or cosines.shape != (K, K):
        return {}
    np.fill_diagonal(cosines, np.nan)
    medians, largest = _find_medians(cosines)
    lengths = np.abs(np.log(np.maximum(norms / middle, SHORTEST)))
    out = {}
    for c, *values in zip(record.clients, lengths.tolist(), (-medians).tolist(), largest.tolist(), strict=True):
        found = dict(zip(NUMBERS, values, strict=False))
        if (effect := c.probes.get("contribution/validation")) is not None:
            found["harm"] = -effect
        out[c.client] = {name: value for name, value in found.items() if math.isfinite(value)}
    return out


def find_longest(record: RoundRecord) -> tuple[int, float] | None:
    """The client of a round with the longest update, and how many times as long as the median one it is.

    None for fewer than three clients whose lengths are known, and where the median is zero.
    """
    norms = {c.client: c.update_norm for c in record.clients if math.isfinite(c.update_norm)}
    middle = float(np.median([*norms.values()])) if len(norms) >= FEWEST else 0.0
    if not middle > 0:
        return None
    client = max(norms, key=norms.__getitem__)
    return client, norms[client] / middle


def _find_medians(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median and the largest of the finite numbers of each row, (K,); NaN for a row without any."""
    known = np.sort(np.where(np.isfinite(rows), rows, np.nan), axis=1)  # NaN comes last
    n, i = np.isfinite(known).sum(1), np.arange(len(rows))
    return (known[i, (n - 1) // 2] + known[i, n // 2]) / 2, known[i, n - 1]


def _add(sums: dict[int, dict[str, tuple[float, int]]], found: Means) -> None:
    for client, numbers in found.items():
        own = sums.setdefault(client, {})
        for name, value in numbers.items():
            total, n = own.get(name, (0.0, 0))
            own[name] = total + value, n + 1


def _average(sums: Mapping[int, Mapping[str, tuple[float, int]]]) -> Means:
    return {k: {name: total / n for name, (total, n) in own.items()} for k, own in sums.items()}


def average_rounds(records: Records) -> Means:
    """Average every client's numbers over its rounds of a run."""
    sums: dict[int, dict[str, tuple[float, int]]] = {}
    for r in records:
        _add(sums, measure_outlying(r))
    return _average(sums)


def _standardise(own: Mapping[str, float], scale: Mapping[str, float]) -> dict[str, float]:
    """A client's numbers in standard deviations from the mean of honest clients, those that the controls have."""
    return {n: (own[n] - scale[f"{n}_mean"]) / scale[f"{n}_sd"] for n in NUMBERS if n in own and f"{n}_sd" in scale}


def _read_worst(round: int, means: Means, z: Mapping[int, float], scale: Mapping[str, float]) -> Reading:
    """The reading of a round: who stands out the most, by which number, and who else does beyond all honest clients."""
    worst = max(z, key=z.__getitem__)
    each = _standardise(means[worst], scale)
    name = max(each, key=each.__getitem__)
    beyond = sorted((k for k in z if z[k] > scale.get("largest", math.inf) or k == worst), key=lambda k: -z[k])
    evidence = {"worst_client": float(worst), name: means[worst][name], "beyond": float(len(beyond))}
    return Reading(round, z[worst], z[worst], {**evidence, **{f"client {k}": z[k] for k in beyond[:NAMED]}})


def _explain(r: Reading) -> str:
    named = sorted(int(name.removeprefix("client ")) for name in r.evidence if name.startswith("client "))
    more = int(r.evidence["beyond"]) - len(named)
    name = next(n for n in NUMBERS if n in r.evidence)
    value, worst = r.evidence[name], int(r.evidence["worst_client"])
    by = {
        "length": f"by the length of its updates, {math.exp(min(value, 20)):.1f} times from the median",
        "direction": f"by the direction of its updates: a median cosine of {-value:.2f}",
        "likeness": f"by their likeness: a cosine of {value:.2f} to another client",
        "harm": f"by harm: without it the loss would be {value:.3f} lower",
    }[name]
    others = f" and {more} more" if more else ""
    if len(named) == 1:
        return f"client {worst} stands out from honest clients of this partition, {by}"
    every = ", ".join(map(str, named))
    return f"clients {every}{others} stand out from honest clients of this partition, client {worst} the most, {by}"


def _learn_spread(controls: Sequence[Records]) -> dict[str, float]:
    """The mean and standard deviation of every number over all clients of the controls, and the largest one in these."""
    clients = [own for records in controls for own in average_rounds(records).values()]
    scale: dict[str, float] = {}
    for name in NUMBERS:
        values = [own[name] for own in clients if name in own]
        if len(values) > 1:
            scale |= {f"{name}_mean": float(np.mean(values)), f"{name}_sd": math.hypot(float(np.std(values)), LEAST)}
    seen = [value for own in clients for value in _standardise(own, scale).values()]
    return scale | ({"largest": max(seen)} if seen else {})
