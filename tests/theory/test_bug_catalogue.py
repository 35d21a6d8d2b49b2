"""Real bugs of public code, planted again: each is stopped by a check at run time, or an invariant's number is far off."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedfault.aggregations.fedex import fedex_lora
from fedfault.aggregations.fedit import fedit
from fedfault.aggregations.ffa import ffa_lora
from fedfault.aggregations.flexlora import flexlora
from fedfault.algebra import mean, stack, svd
from fedfault.algorithms.fedavg import fedavg
from fedfault.algorithms.fedopt import fedyogi
from fedfault.algorithms.fedprox import fedprox
from fedfault.algorithms.moon import contrastive_loss, moon
from fedfault.algorithms.scaffold import scaffold, scaffold_update_space
from fedfault.rounds import clients, passes
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import IntegrityError
from fedfault.rounds.trainer import Trainer
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter, Layout, Pair, Site
from fedfault.types.algorithm import Aggregation, ExtraTerms, Pooled, Uploads


def states(algorithm, aggregation=None, task=None, **changes):
    fed = federation(task or LowRank(), algorithm, aggregation or fedit(), **{"num_rounds": 2, **changes})
    return [state for state, _ in rounds(fed, begin(fed))]


def tc1(algorithm, num_rounds, work, sizes=(1, 1), H=(1.0, 4.0), b=(0.0, 1.0), **changes):
    """Where a run on the specification's two quadratics ends."""
    task = Quadratic([[h] for h in H], [[x] for x in b], list(sizes))
    work = {"batch_size": 99, "weighting": "samples", **work}
    return states(algorithm, task=task, num_rounds=num_rounds, work=work, **changes)[-1]


# components with a bug, as they were published


class Deaf(Trainer):
    """Loads with strict=False under names that do not match: clients go on from their own model."""

    own = None

    def __call__(self, start, *extra, **options):
        done = super().__call__(start if self.own is None else self.own, *extra, **options)
        type(self).own = done.adapter
        return done


class Thawed(Trainer):
    """Freezes before the adapter is there, that is, nothing."""

    def __init__(self, *given, trainable, **more):
        super().__init__(*given, **more, trainable=None)


class Sequential(passes.Pass):
    """One head for all, trained by one client after the other."""

    head = None

    def run(self):
        if self.head is not None:
            self.x = torch.cat([self.x[:, :-5], self.head], 1)
        y = super().run()
        type(self).head = y[:, -5:].clone()
        return y


class Refreshed(passes.Pass):
    """Takes the anchor anew right before every step."""

    def __init__(self, job, rows, *who):
        fresh = ExtraTerms(lambda y, x, rows: job.extra.gradient(y, y.clone(), rows))
        super().__init__(replace(job, extra=fresh), rows, *who)


class Hooked(Trainer):
    """A gradient hook of every client that visits the shared model, never removed."""

    def __init__(self, *given, trainable, **more):
        super().__init__(*given, **more, trainable=trainable.all(0, keepdim=True).expand_as(trainable))


def first_client_only(got: Uploads) -> Pooled:
    """`weighted_sindgle_weights` accumulates into nothing."""
    return Pooled(replace(got.sent, flat=got.sent.flat[0] * (got.weight[0] / got.weight.sum()).to(got.sent.flat)))


def transposed_residual(got: Uploads) -> Pooled:
    pooled = fedex_lora().combine(got)
    return pooled._replace(fold={name: Pair(pair.B.mT, pair.A.mT) for name, pair in pooled.fold.items()})


def svd_of_the_transpose(got: Uploads) -> Pooled:
    layout, (site,) = got.sent.layout, got.sent.layout.lora
    flat = mean(got.sent, got.weight).flat
    A, B = layout.pair(flat, site)
    A_all, B_all = stack(layout.pair(got.sent.flat, site), got.weight / got.weight.sum(), got.ranks)
    U, S, Vh = svd(Pair(B_all.mT, A_all.mT))
    B.copy_(U[:, : len(A)] * S[: len(A)].sqrt())
    A.copy_(S[: len(A), None].sqrt() * Vh[: len(A)])
    return Pooled(replace(got.before, flat=flat))


def own_scaling(got, memory, train):
    """Clients of rank r scale by alpha / r, the server by alpha / r_max."""
    done = train(got["x"])
    return {"x": replace(done.adapter, layout=replace(done.adapter.layout, scaling=4.0)), "n": done.weight}, memory


def prox(pull):
    """FedProx with another pull."""

    def client(got, memory, train):
        done = train(got["x"], ExtraTerms(gradient=pull))
        return {"x": done.adapter, "n": done.weight}, memory

    return replace(fedavg(), client=client)


def scaffold_with(dc=lambda new, old: new - old, c_new=None, **functions):
    """SCAFFOLD whose clients send another change of c, or make c_i+ in another way."""

    def client(got, memory, train):
        up, home = scaffold().client(got, memory, train)
        new = home["c"] if c_new is None else c_new(got, memory, up, train)
        return {**up, "dc": dc(new, memory["c"])}, {"c": new}

    return replace(scaffold(), client=client, **functions)


def uniform_c(state, got, average):
    """The models weighed by p, c by 1 / N."""
    c = state.memory["c"] + mean(got["dc"], torch.ones_like(got["n"])) * (len(got["n"]) / len(state.weights))
    return replace(state, adapter=average(got["x"], got["n"]), memory={"c": c})


def yogi_with(square="delta", step="m", beta1=0.9, beta2=0.99, tau=1e-3, lr=0.1):
    """FedYogi that squares m, or steps by Delta."""

    def server(state, got, average):
        delta = average(got["x"], got["n"]) - state.adapter
        m = beta1 * state.memory["m"] + (1 - beta1) * delta
        v, s = state.memory["v"].flat, {"delta": delta, "m": m}[square].flat ** 2
        v = v - (1 - beta2) * s * torch.sign(v - s)
        x = state.adapter.flat + lr * {"delta": delta, "m": m}[step].flat / (v.sqrt() + tau)
        at = lambda flat: replace(state.adapter, flat=flat)  # noqa: E731
        return replace(state, adapter=at(x), memory={"m": m, "v": at(v)})

    return replace(fedyogi(), server=server)


def moon_forgets(got, memory, train):
    """The previous model is saved when the new one arrives, so that it is the new one."""

    def contrast(z, see, rows):
        new = see(got["x"].flat.expand(len(rows), -1))
        return contrastive_loss(z, new, new, 0.5)

    done = train(got["x"], ExtraTerms(loss=contrast))
    return {"x": done.adapter, "n": done.weight}, {"previous": replace(got["x"], flat=got["x"].flat.expand(6, -1))}


# bugs that a check at run time stops


def load_nothing(patch):
    patch.setattr(clients, "Trainer", Deaf)
    patch.setattr(Deaf, "own", None)
    states(fedavg())


def share_a_head(patch):
    patch.setattr(passes, "Pass", Sequential)
    patch.setattr(Sequential, "head", None)
    states(fedavg(), clients_per_pass=1)


def freeze_too_early(patch):
    patch.setattr(clients, "Trainer", Thawed)
    states(fedavg(), ffa_lora())


def refresh_the_anchor(patch):
    patch.setattr(passes, "Pass", Refreshed)
    states(fedprox(mu=1.0))


def runs(algorithm=None, pool=None):
    """A run of three rounds with a component of its own."""
    return lambda patch: states(algorithm or fedavg(), pool, num_rounds=3)


def random_start(x):
    g = torch.Generator().manual_seed(0)
    return {"c": replace(x, flat=torch.randn(x.flat.shape, generator=g))}


MISSPELT = Aggregation(first_client_only, is_mean=True)
TRANSPOSED = Aggregation(transposed_residual, traits=frozenset({"folds"}))
SCALED = replace(fedavg(), client=own_scaling)
OFF = "c is off the weighted mean of all clients' c"
NOT_LOADED = "does not start from what the server sent"

STOPPED = [  # bug, the invariant that it breaks, how the run stops, how it comes about
    ("B-1 adapter never loaded", "I-G4", NOT_LOADED, load_nothing),
    ("B-2 misspelt accumulator", "I-L1", "is not the weighted mean", runs(pool=MISSPELT)),
    ("B-3 frozen before wrapped", "I-F1", "client 0 changed frozen numbers", freeze_too_early),
    ("B-4 residual transposed", "I-E1", r"adds \(4, 5\) numbers to frozen weight w of \(5, 4\)", runs(pool=TRANSPOSED)),
    ("B-5 anchor refreshed", "I-P6", "the anchor of client 0 moved", refresh_the_anchor),
    ("B-6 c_i sent for its change", "I-SC2", OFF, runs(scaffold_with(dc=lambda new, old: new))),
    ("B-6 c_i overwritten too soon", "I-SC2", OFF, runs(scaffold_with(dc=lambda new, old: new - new))),
    ("B-6 c_i random at first", "I-SC1", OFF, runs(scaffold_with(init_client=random_start))),
    ("B-7 models by p, c by 1/N", "I-SC5", OFF, runs(scaffold_with(server=uniform_c))),
    ("B-11 head un-federated", "I-G6", NOT_LOADED, share_a_head),
    ("B-13 alpha / r of their own", "I-SCL", "LoRA scaling 4, the server's is 2", runs(SCALED)),
]


@pytest.mark.parametrize(("bug", "invariant", "words", "plant"), STOPPED, ids=[b[0] for b in STOPPED])
def test_a_check_stops(bug, invariant, words, plant, monkeypatch):
    with pytest.raises(IntegrityError, match=words):
        plant(monkeypatch)


# bugs that an invariant's number gives away


def off_the_prox_point(algorithm, task=Quadratic) -> float:
    """I-P5: with exact local solutions and mu = 1, TC1 ends at 0.6153846154."""
    fed = federation(
        task([[1.0], [4.0]], [[0.0], [1.0]], [1, 1]), algorithm, num_rounds=25, work={"steps": 40, "lr": 0.3}
    )
    *_, (state, _) = rounds(fed, begin(fed))
    return abs(state.adapter.flat.item() - 0.6153846154)


class Overwritten(Quadratic):
    """`loss = proximal term` in place of `loss = loss + proximal term`."""

    def grad(self, *given):
        loss, gradient, tokens = super().grad(*given)
        return loss, torch.zeros_like(gradient), tokens


def off_the_gradient(algorithm, optimizer="sgd", steps=1) -> float:
    """I-SC3: after a round of one whole-batch step, c_i is the gradient of f_i at x = 3: 3 - b_i."""
    work = {"steps": steps, "lr": 0.1, "optimizer": optimizer}
    state = tc1(algorithm, 1, work, sizes=(1, 1, 1), H=(1.0, 1.0, 1.0), b=(-1.0, 0.0, 10.0))
    return float((state.clients["c"].flat[:, 0] - torch.tensor([4.0, 3.0, -7.0])).abs().max())


def off_the_mean_gradient(algorithm) -> float:
    """I-SC3: after three steps of 0.1 on x^2 / 2 from 3, c_i is the mean of the gradients 3, 2.7, 2.43."""
    state = tc1(algorithm, 1, {"steps": 3, "lr": 0.1}, sizes=(1,), H=(1.0,), b=(0.0,))
    return abs(state.clients["c"].flat.item() - 2.71)


def epochs_for_steps(got, memory, up, train):
    """(x - y) / (E lr) with E = 1 epoch."""
    return memory["c"] - got["c"] + replace(got["x"], flat=(got["x"].flat - up["x"].flat) / train.lr)


def off_the_weighted_optimum(algorithm) -> float:
    """I-SC5: TC1 with p = (0.9, 0.1) has its optimum at 4/13; where c is uniform, rounds end at 0.8."""
    state = tc1(replace(algorithm, wrong=lambda state: None), 80, {"steps": 5, "lr": 0.1}, sizes=(9, 1))
    return abs(state.adapter.flat.item() - 4 / 13)


def off_the_yogi_rule(algorithm) -> float:
    """I-O4: |v_t - v_(t-1)| = (1 - beta2) Delta^2; with one client on x^2 / 2, five steps of 0.1: Delta = (0.9^5 - 1) x."""
    gap, task = 0.0, Quadratic([[1.0]], [[0.0]], [1])
    before, *after = states(algorithm, task=task, num_rounds=3, work={"lr": 0.1})
    for state in after:
        delta = (0.9**5 - 1) * before.adapter.flat.item()
        moved = abs(state.memory["v"].flat.item() - before.memory["v"].flat.item())
        gap, before = max(gap, abs(moved - 0.01 * delta**2)), state
    return gap


def off_the_momentum(algorithm) -> float:
    """The step is along m, by server_lr m / (sqrt(v) + tau), also when Delta has another size than m."""
    gap, task = 0.0, Quadratic([[1.0]], [[0.0]], [1])
    before, *after = states(algorithm, task=task, num_rounds=3, work={"lr": 0.1})
    for state in after:
        m, v = (state.memory[name].flat.item() for name in ("m", "v"))
        step = state.adapter.flat.item() - before.adapter.flat.item()
        gap, before = max(gap, abs(step - 0.1 * m / (math.sqrt(v) + 1e-3))), state
    return gap


def like_fedavg(algorithm) -> float:
    """I-M2: in round 2, the share of the model's numbers that are FedAvg's, to 1e-6."""
    gap = states(algorithm)[-1].adapter.flat - states(fedavg())[-1].adapter.flat
    return float((gap.abs() < 1e-6).double().mean())


def off_the_mean_of_products(combine) -> float:
    """I-E1, I-FX2: what the server's weight is off sum_k p_k s B_k A_k, two clients of rank 1, d_in = d_out = 4."""
    layout = Layout.of([Site("w", "lora", (2, 4, 4))], scaling=2.0)
    (site,), g = layout.sites, torch.Generator().manual_seed(0)
    flat = torch.randn(2, layout.size, generator=g, dtype=torch.float64)
    pair = layout.pair(flat, site)
    pair.A[:, 1:], pair.B[:, :, 1:] = 0, 0
    sent, weight = Adapter(layout, flat), torch.tensor([3.0, 1.0])
    pooled = combine(Uploads(sent, sent, weight, torch.tensor([1, 1]), 1, 0))
    exact = torch.einsum("k,kij->ij", weight.double() / 4, sent.delta(site))
    fold = pooled.fold[site.name].B @ pooled.fold[site.name].A if pooled.fold else 0.0
    return float((pooled.adapter.delta(site) + fold - exact).abs().max())


def still_beside_a_small_rank(trainer) -> float:
    """B10: the share of B's second slice that a client of rank 2 leaves at zero, in a round with a client of rank 1."""
    task = LowRank(clients=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clients, "Trainer", trainer)
        state = states(fedavg(), task=task, ranks=(1, 2), num_rounds=1)[-1]
    B = task.layout.pair(state.adapter.flat, task.layout.sites[0]).B
    return float((B[:, 1] == 0).double().mean())


def unsquared(y, x, rows):
    """The gradient of (mu / 2) |y - x|."""
    return 0.5 * (y - x) / (y - x).norm(dim=1, keepdim=True).clamp(min=1e-12)


YOGI = fedyogi(server_lr=0.1)

MEASURED = [  # bug, the invariant that it breaks, its number (zero if it holds), the right component, the wrong one
    ("B-4 residual transposed", "I-E1", off_the_mean_of_products, fedex_lora().combine, transposed_residual),
    ("B-5 anchor aliased", "I-P5", off_the_prox_point, fedprox(mu=1.0), prox(lambda y, x, rows: y - y)),
    ("B-5 square missing", "I-P5", off_the_prox_point, fedprox(mu=1.0), prox(unsquared)),
    ("B-6 epochs for steps", "I-SC3", off_the_mean_gradient, scaffold(), scaffold_with(c_new=epochs_for_steps)),
    ("B-7 models by p, c by 1/N", "I-SC5", off_the_weighted_optimum, scaffold(), scaffold_with(server=uniform_c)),
    ("B-9 squares m", "I-O4", off_the_yogi_rule, YOGI, yogi_with(square="m")),
    ("B-9 Delta for m", "A2", off_the_momentum, YOGI, yogi_with(step="delta")),
    ("B-10 previous := aggregate", "I-M2", like_fedavg, moon(), replace(moon(), client=moon_forgets)),
    ("B-11 hooks accumulate", "B10", still_beside_a_small_rank, Trainer, Hooked),
    ("B-13 SVD of the transpose", "I-FX2", off_the_mean_of_products, flexlora().combine, svd_of_the_transpose),
]


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "invariant", "measure", "right", "wrong"), MEASURED, ids=[b[0] for b in MEASURED])
def test_an_invariant_is_far_off(bug, invariant, measure, right, wrong):
    assert measure(right) < 1e-9
    assert measure(wrong) > 1e-2


def test_b5_a_loss_that_is_overwritten_by_its_proximal_term_is_caught():
    with pytest.raises(IntegrityError, match="every gradient was exactly zero in 80 steps of clients 0, 1"):
        off_the_prox_point(fedprox(mu=1.0), Overwritten)


def test_b8_control_variates_made_of_adam_steps_are_no_gradients():
    """I-SC3: Adam's first step is lr for every client, whatever its gradient 4, 3, -7."""
    assert off_the_gradient(scaffold(), "adamw") < 1e-9
    assert off_the_gradient(scaffold_update_space(), "sgd") < 1e-6
    assert off_the_gradient(scaffold_update_space(), "adamw") == pytest.approx(6.0, abs=1e-6)
