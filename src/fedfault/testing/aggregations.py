"""The contract of aggregations. Products are compared, not factors: methods may choose those freely."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedfault.algebra import mask, mean
from fedfault.registry import build, load_builders
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.exchange import collect_personal_models
from fedfault.rounds.federation import Federation
from fedfault.runs.folder import RunFolder
from fedfault.testing.agreement import collect_weights, expect_same_step
from fedfault.testing.rules import Subject, expect, expect_close, rule
from fedfault.testing.toys import LowRank, federation, run_to_end
from fedfault.types.adapter import Adapter, Layout, Site
from fedfault.types.algorithm import TRAITS, Aggregation, Algorithm, Pooled, State, Uploads
from fedfault.types.task import Step

KIND = "aggregation"
LAYOUT = Layout.of(
    [Site("q", "lora", (3, 4, 5)), Site("head", "full", (7,)), Site("v", "lora", (3, 6, 2), scaling=0.5)], scaling=1.5
)
EQUAL, UNEQUAL = (3, 3, 3, 3), (1, 3, 2, 3)
RANKS = (1, 2, 3, 2)  # of runs
FAR = 1e6  # how far away a client is that has gone wrong


def make_uploads(
    ranks: Sequence[int] = EQUAL, weight: Sequence[float] = (3.0, 1.0, 7.0, 2.0), rows: Tensor | None = None
) -> Uploads:
    """Clients anywhere, both signs, or the given rows (K, P); slices beyond a rank are zero."""
    g = torch.Generator().manual_seed(len(ranks))
    before, sent = torch.randn(LAYOUT.size, generator=g), torch.randn(len(ranks), LAYOUT.size, generator=g)
    sent = (sent if rows is None else rows) * mask(LAYOUT, torch.tensor(ranks))
    x, y = Adapter(LAYOUT, before), Adapter(LAYOUT, sent)
    return Uploads(x, y, torch.tensor(weight, dtype=torch.float64), torch.tensor(ranks), round=2, seed=7)


def _small(aggregation: Aggregation, task: LowRank | None = None, steps: int = 2, **changes: Any) -> Federation:
    """Four clients, two steps a round unless told otherwise."""
    work = {"steps": steps, **changes.pop("work", {})}
    return federation(task or LowRank(clients=4, r=3), "fedavg", aggregation, work=work, **changes)


def _is_robust(subject: Subject) -> bool:
    aggregation: Aggregation = subject.build()
    return "robust" in aggregation.traits


@rule(KIND)
def one_client_is_that_client(subject: Subject) -> None:
    """What one client sends alone is the model."""
    got = make_uploads(ranks=(3,), weight=(4.0,))
    alone = collect_weights(Pooled(replace(got.sent, flat=got.sent.flat[0])))
    expect_close(collect_weights(subject.build().combine(got)), alone, "the model of one client")


@rule(KIND)
def clients_that_agree_are_any_one_of_them(subject: Subject) -> None:
    """The average of equal models is that model: weights sum to one, and nobody counts twice."""
    one = make_uploads().sent.flat[:1]
    pooled = subject.build().combine(make_uploads(rows=one.expand(4, -1)))
    expect_close(
        collect_weights(pooled), collect_weights(Pooled(Adapter(LAYOUT, one[0]))), "the model of four equal clients"
    )


@rule(KIND)
def only_the_proportions_of_weights_count(subject: Subject) -> None:
    """All weights times 37 are the same weights."""
    combine, got = subject.build().combine, make_uploads(UNEQUAL)
    more = collect_weights(combine(got._replace(weight=got.weight * 37)))
    expect_close(more, collect_weights(combine(got)), "the model with 37 times the weights")


@rule(KIND)
def a_client_without_weight_does_not_count(subject: Subject) -> None:
    """A client of weight zero might as well not be there; a `robust` rule may count heads."""
    if _is_robust(subject):
        return
    combine, four = subject.build().combine, make_uploads(ranks=(1, 2, 2, 3), weight=(3.0, 1.0, 7.0, 0.0))
    three = make_uploads(ranks=(1, 2, 2), weight=(3.0, 1.0, 7.0), rows=four.sent.flat[:3])
    without = collect_weights(combine(three._replace(before=four.before)))
    expect_close(collect_weights(combine(four)), without, "the model with a client of weight zero")


@rule(KIND)
def the_order_of_clients_does_not_matter(subject: Subject) -> None:
    """The same clients in another order give the same model, with equal and with unequal ranks."""
    combine, order = subject.build().combine, torch.tensor([2, 0, 3, 1])
    for ranks in (EQUAL, UNEQUAL):
        got = make_uploads(ranks)
        turned = got._replace(
            sent=replace(got.sent, flat=got.sent.flat[order]),
            weight=got.weight[order],
            ranks=got.ranks[order],
            clients=tuple(order.tolist()),
        )
        expect_close(collect_weights(combine(turned)), collect_weights(combine(got)), f"ranks {ranks} in another order")


@rule(KIND)
def what_is_trained_in_full_is_the_plain_weighted_mean(subject: Subject) -> None:
    """Heads and biases are averaged by weight, to the bit; an aggregation that takes another location is `robust`."""
    if _is_robust(subject):
        return
    got = make_uploads(UNEQUAL)
    flat, site = subject.build().combine(got).adapter.flat, LAYOUT.sites[1]
    same = torch.equal(LAYOUT.part(flat, site), LAYOUT.part(mean(got.sent, got.weight).flat, site))
    expect(same, 'it is something else: `traits=frozenset({"robust"})` says that this is meant')


@rule(KIND)
def a_robust_rule_bounds_what_hostile_clients_do(subject: Subject) -> None:
    """As many of seven clients as a `robust` rule `tolerates`, however far they are, cannot carry the model away."""
    if not _is_robust(subject):
        return
    aggregation: Aggregation = subject.build()
    many = -1 if aggregation.tolerates is None else aggregation.tolerates(7)
    expect(0 <= many < 7, "`tolerates` does not say how many of seven clients it stands")
    ranks, weight = (3,) * 7, (1.0,) * 7
    near = make_uploads(ranks, weight)
    flat = near.sent.flat.clone()
    flat[3 : 3 + many] *= FAR
    most = max(float(w.abs().max()) for k in range(7) for w in collect_weights(Pooled(_row(near.sent, k))).values())
    pooled = aggregation.combine(make_uploads(ranks, weight, flat))
    got = max(float(w.abs().max()) for w in collect_weights(pooled).values())
    expect(got <= 10 * most, f"weights of up to {most:.3g}, {many} clients {FAR:.0g} times as far: {got:.3g}")


def _row(x: Adapter, k: int) -> Adapter:
    return replace(x, flat=x.flat[k])


@rule(KIND)
def results_have_the_shapes_and_numbers_of_the_model(subject: Subject) -> None:
    """The result has the model's layout and precision, and what is folded is B (d_out, R) and A (R, d_in)."""
    for dtype in (torch.float32, torch.float64):
        got = make_uploads(UNEQUAL)
        x, sent = (replace(a, flat=a.flat.to(dtype)) for a in (got.before, got.sent))
        pooled = subject.build().combine(got._replace(before=x, sent=sent))
        made, flat = pooled.adapter, pooled.adapter.flat
        wanted = (LAYOUT, (LAYOUT.size,), dtype)
        expect((made.layout, tuple(flat.shape), flat.dtype) == wanted, f"{flat.dtype} {tuple(flat.shape)} of {dtype}")
        for site in LAYOUT.lora if pooled.fold else ():
            (_, d_in, d_out), (A, B) = site.shape, pooled.fold[site.name]
            shapes = (A.shape[1], B.shape[0], A.shape[0], A.dtype, B.dtype)
            expect(shapes == (d_in, d_out, B.shape[1], dtype, dtype), f"{site.name}: A {A.shape}, B {B.shape}")


@rule(KIND)
def its_inputs_stay_as_they_are(subject: Subject) -> None:
    """What clients sent, what the server had, weights and ranks are not changed in place."""
    got, kept = make_uploads(UNEQUAL), make_uploads(UNEQUAL)
    subject.build().combine(got)
    for name, now, then in (
        ("before", got.before.flat, kept.before.flat),
        ("sent", got.sent.flat, kept.sent.flat),
        ("weight", got.weight, kept.weight),
        ("ranks", got.ranks, kept.ranks),
    ):
        expect(torch.equal(now, then), f"{name} was changed")


@rule(KIND)
def its_traits_exist(subject: Subject) -> None:
    """What an aggregation says of itself is in `TRAITS`."""
    unknown = subject.build().traits - set(TRAITS)
    expect(not unknown, f"no trait {', '.join(sorted(unknown))}; the traits are {', '.join(TRAITS)}")


@rule(KIND, slow=True)
def no_slice_dies(subject: Subject) -> None:
    """A slice of rank never has zeros in A and in B: it would have no gradient, and the rank would shrink in silence."""
    for cohort in (2, 4):
        fed = _small(subject.build(), ranks=(1, 1, 3, 1), cohort_size=cohort, num_rounds=6)
        for state, _ in rounds(fed, begin(fed)):
            A, B = state.adapter.layout.pair(state.adapter.flat, state.adapter.layout.sites[0])
            alive = ((A.norm(dim=1) > 0) | (B.norm(dim=0) > 0))[: max(state.ranks)]  # what all have pruned may go
            dead = (~alive).nonzero().flatten().tolist()
            expect(not dead, f"slices {dead} are zero after round {state.round} of a run in which one client has them")


@rule(KIND, slow=True)
def it_learns(subject: Subject) -> None:
    """Eight rounds of FedAvg on a small regression bring the loss below 0.8 of what it was."""
    _, records = run_to_end(_small(subject.build(), num_rounds=8, steps=4, work={"lr": 0.2}))
    first, last = (records[i].scores["validation"].loss for i in (0, -1))
    expect(last < 0.8 * first, f"the loss went from {first:.4g} to {last:.4g}")


def _function(fed: Federation, state: State) -> list[Tensor]:
    """What the model, and every client's own where it has one, computes."""
    own = collect_personal_models(state, fed.aggregation.private(state.adapter.layout))
    flats = [state.adapter.flat] if own is None else list(own.flat)
    task: Any = fed.task
    task.fold(state.base)
    return [task._out(flat, torch.eye(4)) for flat in flats]


@rule(KIND)
def an_idle_round_changes_nothing(subject: Subject) -> None:
    """A round without training leaves the model as it is; where ranks differ too, unless `shrinks` gives the reason."""
    for ranks in ((), RANKS):
        fed = _small(subject.build(), num_rounds=2, ranks=ranks)
        trained, _ = run_to_end(fed)
        after, _ = run_to_end(replace(fed, num_rounds=3, work=replace(fed.work, lr=0.0)), trained)
        pairs = zip(_function(fed, trained), _function(fed, after), strict=True)
        gap = max(float((a - b).abs().max()) for a, b in pairs)
        if ranks and fed.aggregation.shrinks:
            expect(gap > 1e-3, f"`shrinks` says {fed.aggregation.shrinks!r}, but the model moved by {gap:.2g} only")
        else:
            expect(gap < 1e-5, f"the model moved by {gap:.2g} with ranks {ranks or 'that are equal'}")


@rule(KIND)
def a_cohort_of_k_is_k_cohorts_of_one(subject: Subject) -> None:
    """Clients that train one after the other give the model of clients that train together."""
    for ranks in ((), RANKS):
        whole, _ = run_to_end(_small(subject.build(), num_rounds=2, ranks=ranks))
        single, _ = run_to_end(_small(subject.build(), num_rounds=2, ranks=ranks, clients_per_pass=1))
        fed = _small(subject.build())
        for a, b in zip(_function(fed, whole), _function(fed, single), strict=True):
            expect_close(b, a, f"one at a time, ranks {ranks or 'equal'}", rtol=1e-4, atol=1e-5)


@rule(KIND, slow=True)
def a_resumed_run_equals_an_uninterrupted_one(subject: Subject) -> None:
    """A run that goes on from its checkpoint is the whole run, to the bit: frozen weights, ranks, folds and memory too."""

    def make() -> Federation:
        return _small(subject.build(), cohort_size=3, num_rounds=5, ranks=RANKS)

    first, again = make(), make()
    whole, records = run_to_end(first)
    iterator = rounds(again, begin(again))
    for _ in range(4):
        state, _ = next(iterator)
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch) / "run")
        folder.save(state)
        again = make()
        loaded, _ = folder.load(again.task.layout, "cpu")
    resumed, later = run_to_end(again, loaded)
    expect(torch.equal(resumed.adapter.flat, whole.adapter.flat), "the models differ")
    for name in ("ranks", "folds", "seen", "stored"):
        expect(getattr(resumed, name) == getattr(whole, name), f"{name} differ")
    for name, change in whole.base.items():
        expect(torch.equal(resumed.base[name], change), f"what was added to the frozen weights of {name} differs")
    for name, a in whole.clients.items():
        expect(torch.equal(resumed.clients[name].flat, a.flat), f"what clients keep as {name!r} differs")
    expect(again.task.checksums() == first.task.checksums(), "the frozen weights differ")
    plain = [replace(r, seconds={}) for r in records[4:]]
    expect([replace(r, seconds={}) for r in later] == plain, "the records differ")


@rule(KIND)
def a_client_trains_and_sends_the_slices_of_its_rank_and_no_others(subject: Subject) -> None:
    """Slices beyond a client's rank are zero while it trains, and are not among its bytes."""

    class Watched(LowRank):
        def grad(self, params: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
            beyond = ~mask(self.layout, torch.tensor([RANKS[k] for k in step.clients.tolist()]))
            expect(not params[beyond].any(), "a slice beyond a client's rank is not zero")
            return super().grad(params, step)

    task, built = Watched(clients=4, r=3), subject.build()
    private, own = built.private(task.layout), mask(task.layout, torch.tensor([1, 2, 3]))
    sent = (own if private is None else own & ~private).sum(1)
    _, records = run_to_end(_small(built, task, num_rounds=3, ranks=RANKS))
    for record in records[1:]:
        sizes = [c.bytes_up for c in record.clients][:3]
        rises = all(b > a if n > m else b == a for a, b, m, n in zip(sizes, sizes[1:], sent, sent[1:], strict=False))
        expect(rises, f"ranks 1, 2 and 3 send {sizes} bytes")
        for c in record.clients:
            expect(c.bytes_up <= 4 * (9 * RANKS[c.client] + 5), f"rank {RANKS[c.client]} sends {c.bytes_up} bytes")


@rule(KIND)
def an_update_that_is_not_finite_is_left_out(subject: Subject) -> None:
    """A client that sends infinities is named and left out, and the model stays finite."""
    task = LowRank(clients=4, r=3)
    task.Y[2][:] = torch.inf
    state, records = run_to_end(_small(subject.build(), task, num_rounds=2, ranks=RANKS))
    expect(bool(state.adapter.flat.isfinite().all()), "the model is not finite")
    expect(all("client 2" in r.events[0] for r in records[1:]), f"the events do not name it: {records[1].events}")
    total = sum(c.weight for c in records[2].clients)
    expect(abs(total - 1) < 1e-6, f"the weights of the others sum to {total}")


@rule(KIND)
def two_runs_with_one_seed_are_identical(subject: Subject) -> None:
    """Nothing is random but what the seed draws."""
    (a, ra), (b, rb) = (run_to_end(_small(subject.build(), cohort_size=3, num_rounds=3, ranks=RANKS)) for _ in range(2))
    expect(torch.equal(a.adapter.flat, b.adapter.flat), "the models differ")
    expect([r.clients for r in ra] == [r.clients for r in rb], "the records differ")


@rule(KIND, slow=True)
def what_stands_its_traits_takes_its_usual_step(subject: Subject) -> None:
    """Where clients agree, no server that stands the traits takes another step than with a plain average: name them all."""
    aggregation: Aggregation = subject.build()
    for name in load_builders("algorithm"):
        algorithm: Algorithm = build("algorithm", name)
        if not any(algorithm.refusal(trait) for trait in aggregation.traits):
            expect_same_step(algorithm, aggregation, f"the algorithm {name}")
