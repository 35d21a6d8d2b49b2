"""From a checked configuration to the privacy of a run: what is refused, and a federation whose releases are noisy."""

from __future__ import annotations

import secrets
from dataclasses import replace

import torch

from fedfault.backbones.replay import refuse_to_record
from fedfault.config.schema import Experiment
from fedfault.errors import UserError
from fedfault.privacy.accounting import Release, check_installed, find_noise
from fedfault.privacy.budget import Budget
from fedfault.privacy.clients import hide_clients
from fedfault.privacy.examples import check_examples
from fedfault.rounds.federation import Federation
from fedfault.seeds import entropy, torch_rng
from fedfault.setup import equipment
from fedfault.types.algorithm import TRAITS, Aggregation, Algorithm
from fedfault.types.task import Trainable

CHECKED = 3  # examples of each of two clients whose gradients are taken side by side and one by one


def check_privacy(exp: Experiment, algorithm: Algorithm, aggregation: Aggregation) -> None:
    """Raise `UserError` for what a private run could not keep to itself, before anything is loaded."""
    unit = exp.privacy.unit
    if unit is None:
        return
    check_installed()
    for setting, leaks, instead in _list_leaks(exp):
        if leaks:
            raise UserError(f"privacy.unit={unit} cannot be combined with {setting}; {instead}")
    trait, f = f"hides {unit}s", exp.federation
    if why := algorithm.refusal(trait):
        raise UserError(
            f"privacy.unit={unit} cannot be combined with federation.algorithm={f.algorithm.name}: it {TRAITS[trait]}, but "
            f"{why}; use fedavg, fedprox or one of fedavgm, fedadagrad, fedadam, fedyogi"
        )
    if unit == "client" and (not aggregation.is_mean or aggregation.traits - {"alternates"}):
        raise UserError(
            f"privacy.unit=client cannot be combined with federation.aggregation={f.aggregation.name}: it needs more of "
            "the clients than a noisy average of what they changed; use fedit, ffa_lora or rolora"
        )
    if unit == "client" and exp.privacy.delta is not None and exp.privacy.delta >= 1 / f.total_clients:
        raise UserError(_explain_delta(exp.privacy.delta, f.total_clients, "clients"))


def _list_leaks(exp: Experiment) -> list[tuple[str, bool, str]]:
    """Settings that would tell more than is accounted for: what, whether it is set, what to do."""
    f, example = exp.federation, exp.privacy.unit == "example"
    uneven = equipment.is_simulated(exp) or equipment.has_unequal_ranks(exp)
    return [
        ("federation.centralised=true", f.centralised, "leave one of them out"),
        (
            f"federation.weighting={f.weighting}, which tells how much data clients have",
            f.weighting != "uniform",
            "use federation.weighting=uniform",
        ),
        (
            f"federation.selection={f.selection.name}, which tells the same",
            f.selection.name != "uniform",
            "use federation.selection=uniform",
        ),
        ("tiers, deadlines, traces or unequal ranks: who is late would tell", uneven, "leave them out"),
        ("attacks, some of which know what others send", bool(exp.attacks), "leave them out"),
        (
            "federation.bad_updates=stop: that the run stops would tell of one client",
            f.bad_updates == "stop",
            "use federation.bad_updates=drop",
        ),
        (
            f"federation.on_failure={f.on_failure}, which trains on the same data again",
            f.on_failure in ("rollback", "cluster"),
            "use federation.on_failure=continue or stop",
        ),
        (
            "detectors.calibration=auto, which trains further models on the same data",
            exp.detectors.calibration == "auto",
            "use packaged or none",
        ),
        (
            "training.gradient_accumulation, which weighs parts of a batch by what is in them",
            example and exp.training.gradient_accumulation > 1,
            "leave it out: examples go through the model in as small passes as fit",
        ),
        (
            "data.task_type=preference, whose losses nobody has checked one by one",
            exp.data.task_type == "preference",
            "use another task",
        ),
        (
            "training.local_epochs, as the number of steps would tell how many examples there are",
            example and exp.training.local_steps is None,
            "use training.local_steps",
        ),
    ]


def _explain_delta(delta: float, n: int, what: str) -> str:
    return (
        f"privacy.delta={delta:g} allows one of {n} {what} to be published as it is; give less than 1/{n}, such as "
        f"{0.1 / n:.0e}"
    )


def hide(fed: Federation, exp: Experiment) -> Federation:
    """The federation with noise where the configuration asks for it; others come back as they are.

    Raises `UserError` for an epsilon that no noise reaches, and a delta that protects nobody.
    """
    p = exp.privacy
    if p.unit is None or p.delta is None:
        return fed
    drawn, of, times = _count_releases(fed) if p.unit == "example" else _count_rounds(fed)
    if p.unit == "example" and p.delta >= 1 / (n := sum(fed.task.examples(k) for k in range(fed.total_clients))):
        raise UserError(_explain_delta(p.delta, n, "examples"))
    noise = p.noise_multiplier or find_noise(p.epsilon or 0.0, p.delta, times[-1], drawn, of, p.sampling)
    budget = Budget(
        unit=p.unit,
        release=Release(noise, drawn, of, p.sampling),
        clip=p.clip,
        delta=p.delta,
        secret=secrets.randbits(128) if p.secret is None else entropy(0, "privacy", p.secret),
        times=times,
        adapt_to=p.adaptive_clip,
        canaries=p.canaries if p.unit == "client" else 0,
    )
    algorithm = hide_clients(fed.algorithm, fed.aggregation, budget) if p.unit == "client" else fed.algorithm
    probes = {name: probe for name, probe in fed.probes.items() if probe.public}
    record = fed.record
    if record is not None and p.unit == "example":
        record = refuse_to_record("the noise of every step is drawn on the CPU")
    return replace(fed, algorithm=algorithm, budget=budget, probes=probes, record=record)


def draw_secret(exp: Experiment) -> list[str]:
    """Draw what the noise of a new private run follows from, as `key=value`; nothing where none is needed."""
    p = exp.privacy
    return [] if p.unit is None or p.secret is not None else [f"privacy.secret=s{secrets.token_hex(16)}"]


def _count_rounds(fed: Federation) -> tuple[int, int, tuple[int, ...]]:
    """Clients drawn for a round, of how many, and the releases by the end of each round: one in each."""
    return fed.cohort_size, fed.total_clients, tuple(range(fed.num_rounds + 1))


def _count_releases(fed: Federation) -> tuple[int, int, tuple[int, ...]]:
    """Examples drawn for a step of the smallest client, of how many, and the steps of whoever trains most, by round.

    An example is in the data of one client, so that the others cost it nothing. No client's examples are drawn more often
    than those of the smallest one, and none has more steps than this.
    """
    least, steps = min(fed.task.examples(k) for k in range(fed.total_clients)), fed.work.steps or 1
    each, times = [0] * fed.total_clients, [0]
    for t in range(1, fed.num_rounds + 1):
        for k in fed.cohort(t):
            each[k] += steps
        times.append(max(each))
    return min(fed.work.batch_size, least), least, tuple(times)


def describe_privacy(fed: Federation) -> list[str]:
    """Say in sentences what a run hides, at what cost, and what it leaves out for that."""
    b = fed.budget
    if b is None:
        return []
    often = {"poisson": "each by itself", "fixed": "always as many"}[b.release.sampling]
    said = [
        f"privacy of {b.unit}s: epsilon {b.spend(fed.num_rounds):.3g} at delta {b.delta:g} after {b.times[-1]} releases; "
        f"noise {b.release.noise:.3g} times the clip {b.clip:g}; {b.release.drawn} of {b.release.of} drawn, {often}"
    ]
    return [*said, "losses, norms and bytes of clients, who trained, and what probes see of them are not recorded"]


def check_gradients(fed: Federation, task: Trainable | None = None) -> None:
    """Raise `UserError` where gradients of single examples are not what they should be, or nothing would be learned.

    At parameters around the start: where B is zero, the gradient of A is too. `task`: by default the run's.
    """
    if fed.budget is None:
        return
    x = fed.task.init(fed.seed).flat
    at = x + 0.02 * torch.randn(x.shape, generator=torch_rng(fed.seed, "check")).to(x)
    for k in {0, fed.total_clients - 1}:
        numbers = list(range(min(CHECKED, fed.task.examples(k))))
        if wrong := check_examples(task or fed.task, at, k, numbers):
            raise UserError(f"privacy is refused: {wrong} (client {k})")
