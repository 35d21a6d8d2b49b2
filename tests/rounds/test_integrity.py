"""Every check fires on a planted fault, with the client, the site and the numbers, and is silent on a healthy run."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from allowed import allowed
from fedfault.algebra import mean
from fedfault.algorithms.fedavg import fedavg
from fedfault.algorithms.fedprox import fedprox
from fedfault.algorithms.scaffold import scaffold
from fedfault.errors import UserError
from fedfault.registry import load_builders
from fedfault.rounds import clients, passes
from fedfault.rounds.engine import begin, rounds
from fedfault.rounds.integrity import EntryCheck, IntegrityError
from fedfault.rounds.trainer import Trainer
from fedfault.testing.toys import LowRank, Quadratic, federation
from fedfault.types.adapter import Adapter, Layout, Pair
from fedfault.types.algorithm import Aggregation, ExtraTerms, Pooled, Trained

PAIRS = [(a, b) for a in load_builders("algorithm") for b in load_builders("aggregation") if allowed(a, b)]


def run(algorithm="fedavg", aggregation="fedit", task=None, **changes):
    fed = federation(task or LowRank(), algorithm, aggregation, **{"num_rounds": 2, **changes})
    return list(rounds(fed, begin(fed)))


def caught(*words: str, **what) -> None:
    """The run stops, and the message has these words in this order."""
    with pytest.raises(IntegrityError, match="(?s)" + ".*".join(words)):
        run(**what)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "aggregation"), PAIRS)
def test_healthy_runs_raise_no_alarm(algorithm, aggregation):
    ranks = (1, 2, 2, 1, 2, 1) if allowed(algorithm, aggregation, [1, 2]) else ()
    work = {"steps": 2, "optimizer": "adamw", "lr": 0.01, "max_grad_norm": 1.0}
    pairs = run(algorithm, aggregation, cohort_size=5, ranks=ranks, clients_per_pass=3, work=work)
    assert [record.events for _, record in pairs] == [()] * 3


def test_a_violation_is_the_users_to_see():
    assert issubclass(IntegrityError, UserError)  # exit status 2


# what each client starts from


def trains_from(start):
    """FedAvg whose clients start from start(received, memory)."""

    def client(got, memory, train):
        done = train(start(got, memory))
        return {"x": done.adapter, "n": done.weight}, memory

    return client


def test_a_client_that_starts_elsewhere_is_named():
    def off(got, memory):
        flat = got["x"].flat.expand(6, -1).clone()
        flat[4, -1] += 0.25  # the last number of the bias
        return replace(got["x"], flat=flat)

    caught(
        "client 4 does not start from what the server sent",
        r"'x': 1 of 23 numbers differ, by up to 0\.25, most at site bias",
        algorithm=replace(fedavg(), client=trains_from(off)),
    )


def test_clients_that_enter_in_several_passes_are_each_held_to_their_own_row():
    task = Quadratic([[1.0]] * 9, [[0.0]] * 9, [1] * 9)
    rows = torch.arange(4.0)[:, None]
    for passes_of, order in ((2, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (2, [2, 0, 3, 1])):
        clients = [7, 3, 5, 1]
        for wrong in (None, 3):
            entry = EntryCheck(task)
            entry.expect({"x": Adapter(task.layout, rows)}, clients)
            given = rows.clone()
            if wrong is not None:
                given[wrong] = 9.0
            parts = [order[i : i + passes_of] for i in range(0, 4, passes_of)]
            with (
                contextlib.nullcontext() if wrong is None else pytest.raises(IntegrityError, match="client 1 does not")
            ):
                for part in parts:
                    entry.look([clients[i] for i in part], given[part])


def test_what_the_server_sent_beside_the_model_is_no_start():
    wrong = replace(scaffold(), client=trains_from(lambda got, memory: got["c"]))
    caught("client 0 does not start", "'x': 8 of 23 numbers differ", "most at site w", algorithm=wrong)


def test_clients_that_never_load_what_they_get_are_caught_at_the_door(monkeypatch):
    """Loaded by a forgiving loader that matches no key: each goes on from its own model."""

    class Deaf(Trainer):
        own = None

        def __call__(self, start, *extra, **options):
            done = super().__call__(
                replace(start, flat=start.flat if Deaf.own is None else Deaf.own), *extra, **options
            )
            Deaf.own = done.adapter.flat
            return done

    monkeypatch.setattr(clients, "Trainer", Deaf)
    caught("client 0 does not start from what the server sent", r"'x': 23 of 23 numbers differ, by up to \d")


def test_a_head_that_one_client_leaves_to_the_next_is_caught_at_the_door(monkeypatch):
    class Sequential(passes.Pass):
        bias = None

        def run(self):
            if Sequential.bias is not None:
                self.x = torch.cat([self.x[:, :-5], Sequential.bias], 1)
            y = super().run()
            Sequential.bias = y[:, -5:].clone()
            return y

    monkeypatch.setattr(passes, "Pass", Sequential)
    caught("client 1 does not start", "'x': 5 of 23 numbers differ", "most at site bias", clients_per_pass=1)


def test_a_client_whose_parameters_never_enter_the_model_is_named(monkeypatch):
    class Lazy(Trainer):
        def __call__(self, start, *extra, **options):
            K = len(self.clients)
            zero, steps = torch.zeros(K), torch.tensor([0, 3, 0, 0, 0, 0])
            own = replace(start, flat=start.flat.expand(K, -1).clone())
            return Trained(own, self.weight, steps, zero, zero, zero)

    monkeypatch.setattr(clients, "Trainer", Lazy)
    caught("client 1 reports 3 steps, but its parameters never entered the model")


class Silent(LowRank):
    """A loss whose gradient gets lost on its way for all clients but some."""

    heard: tuple[int, ...] = ()

    def grad(self, params, step):
        loss, gradient, tokens = super().grad(params, step)
        lost = torch.tensor([k not in self.heard for k in step.clients.tolist()])
        return loss, gradient.masked_fill(lost[:, None], 0.0), tokens


def test_clients_whose_gradients_are_all_zero_learn_nothing():
    caught(
        "every gradient was exactly zero in 30 steps of clients 0, 1, 2, 3, 4, 5",
        "quantised layers were not repacked",
        task=Silent(),
    )


def test_a_learning_rate_that_explodes_is_called_that():
    fed = federation(Silent(), "fedavg", "fedit", num_rounds=2)
    start = begin(fed)
    far = begin(fed, replace(start.adapter, flat=start.adapter.flat + 1e6))
    said = r"training has exploded: trained numbers have grown to 1\.0e\+06.*lower training\.lr"
    with pytest.raises(IntegrityError, match=said):
        list(rounds(fed, far))


def test_one_client_that_learns_is_enough():
    """Others may have nothing left to learn."""
    task = Silent()
    task.heard = (3,)
    assert len(run(task=task)) == 3


# what moves while they train


@pytest.mark.parametrize("mode", ["grad", "decoupled"])
def test_an_anchor_that_is_the_live_parameters_is_caught(monkeypatch, mode):
    class Aliased(passes.Pass):
        def __init__(self, job, rows, *who):
            pulls = (job.extra.gradient, job.extra.step)
            live = [pull and (lambda y, x, rows, pull=pull: pull(y, y, rows)) for pull in pulls]
            super().__init__(replace(job, extra=ExtraTerms(*live)), rows, *who)

    monkeypatch.setattr(passes, "Pass", Aliased)
    prox = fedprox(mu=1.0, mode=mode)
    caught("the anchor of client 0 moved while it trained", r"\d+ of 23 numbers differ", "at site", algorithm=prox)


def after_training(change):
    """FedAvg whose clients do something to what they got or send."""

    def client(got, memory, train):
        done = train(got["x"])
        up, memory = {"x": done.adapter, "n": done.weight}, dict(memory)
        return change(got, up, memory) or up, memory

    return replace(fedavg(), client=client)


def test_a_client_that_writes_into_what_the_server_sent_is_caught():
    def writes(got, up, memory):
        got["x"].flat[3] -= 0.5

    caught("changed 'x' itself", r"1 of 23 numbers differ, by up to 0\.5", "site w", algorithm=after_training(writes))


@pytest.mark.parametrize(
    ("memory_of", "words"),
    [
        (lambda flat: flat[:1].expand(6, -1), "clients 0 and 1 share trained parameters: .* lie 0 apart"),
        (lambda flat: torch.zeros(28).unfold(0, 23, 1), "rows of 23 numbers lie 1 apart in memory"),
        (lambda flat: flat[:5], r"shape \(5, 23\), not \(6, 23\)"),
    ],
)
def test_clients_have_their_own_parameters(monkeypatch, memory_of, words):
    class Sharing(Trainer):
        def __call__(self, start, *extra, **options):
            done = super().__call__(start, *extra, **options)
            return replace(done, adapter=replace(start, flat=memory_of(done.adapter.flat)))

    monkeypatch.setattr(clients, "Trainer", Sharing)
    caught(words)


def test_clients_do_not_train_in_the_memory_that_they_start_from(monkeypatch):
    class InPlace(Trainer):
        def __call__(self, start, *extra, **options):
            done = super().__call__(start, *extra, **options)
            return replace(done, adapter=replace(start, flat=start.flat.copy_(done.adapter.flat)))

    monkeypatch.setattr(clients, "Trainer", InPlace)
    caught("clients 0, 1, 2, 3, 4, 5 trained in the memory of what they started from", ranks=(1, 2, 2, 2, 2, 2))


# what comes back


def test_a_misspelt_site_is_not_averaged_away():
    def renames(got, up, memory):
        w, bias = up["x"].layout.sites
        return {**up, "x": replace(up["x"], layout=Layout((replace(w, name="weight"), bias), 2.0))}

    caught(
        "'x' as sent does not fit", "1 of 2 sites match, missing w, unknown weight", algorithm=after_training(renames)
    )


def test_a_message_has_a_row_for_every_client():
    def pools(got, up, memory):
        return {**up, "x": replace(up["x"], flat=up["x"].flat.mean(0, keepdim=True))}

    caught(r"'x' as sent has shape \(1, 23\), not \(6, 23\)", algorithm=after_training(pools))


def test_misspelt_memory_is_not_lost():
    def renames(got, up, memory):
        memory["c_i"] = up["x"]

    caught(r"clients keep {'c_i': \(6, 23\)}, but what they had was nothing", algorithm=after_training(renames))


class Thawed(Trainer):
    """Trains what it was told to freeze."""

    def __init__(self, *given, trainable, **more):
        super().__init__(*given, **more, trainable=None)


def test_a_factor_that_was_frozen_in_name_only_is_caught(monkeypatch):
    """Frozen before the adapter was there: nothing was frozen."""
    monkeypatch.setattr(clients, "Trainer", Thawed)
    caught("client 0 changed frozen numbers: 8 of 23 numbers differ", "at site w", aggregation="ffa_lora")


def test_slices_beyond_a_rank_are_frozen(monkeypatch):
    """A correction that knows nothing of ranks moves slices that the client does not have."""

    def client(got, memory, train):
        done = train(got["x"], ExtraTerms(gradient=lambda y, x, rows: torch.full_like(y, -2.0)))
        return {"x": done.adapter, "n": done.weight}, memory

    pushes = replace(fedavg(), client=client)
    one_step = {"algorithm": pushes, "ranks": (2, 2, 1, 2, 2, 2), "work": {"steps": 1, "lr": 0.1}, "num_rounds": 1}
    run(**one_step)
    monkeypatch.setattr(clients, "Trainer", Thawed)
    caught("client 2 changed frozen numbers: 9 of 23", r"by up to 0\.2, most at site w", **one_step)


def test_the_server_leaves_a_frozen_factor_alone():
    def server(state, got, average):
        return replace(state, adapter=average(got["x"], got["n"]) * 1.5)

    wrong = replace(fedavg(), server=server)
    caught("the server changed frozen numbers: 8 of 23", "site w", algorithm=wrong, aggregation="ffa_lora")


def test_frozen_weights_that_change_in_training_are_named():
    class Leaky(LowRank):
        def grad(self, *given):
            self.W[0, 0] += 1e-3
            return super().grad(*given)

    caught(
        "1 of 1 frozen weights changed while clients 0, 1, 2, 3, 4, 5 trained, first w",
        r"checksum -?\d+ before, -?\d+ after",
        task=Leaky(),
    )


# what the server makes of it


def test_an_aggregation_that_loses_all_but_one_client_is_not_a_mean():
    """The accumulator is misspelt: what is left is p_0 times client 0."""
    lost = Aggregation(lambda got: Pooled(Adapter(got.sent.layout, got.sent.flat[0] * 0.1)), is_mean=True)
    caught("ranks are equal, but the aggregation is not the weighted mean", "23 of 23 numbers differ", aggregation=lost)


def test_equal_ranks_below_the_largest_are_held_to_the_mean_in_the_slices_that_they_have():
    ranks = (1,) * 6

    def beyond(got):
        pooled = mean(got.sent, got.weight)
        return Pooled(replace(pooled, flat=pooled.flat + 1.0 * ~owned))

    owned = torch.ones(23, dtype=torch.bool)
    pair = LowRank().layout.pair(owned, LowRank().layout.sites[0])
    pair.A[1:], pair.B[:, 1:] = False, False
    run(aggregation=Aggregation(beyond, is_mean=True), ranks=ranks, num_rounds=1)
    lost = Aggregation(lambda got: Pooled(replace(got.before, flat=got.before.flat)), is_mean=True)
    caught("not the weighted mean: 14 of 23 numbers differ", aggregation=lost, ranks=ranks)


def test_unequal_ranks_are_not_held_to_the_mean():
    lost = Aggregation(lambda got: Pooled(got.before), is_mean=True)
    assert len(run(aggregation=lost, ranks=(1, 2, 2, 2, 2, 2))) == 3


def test_only_an_aggregation_that_says_so_adds_to_the_frozen_weights():
    fold = {"w": Pair(torch.ones(1, 4), torch.ones(5, 1))}
    secret = Aggregation(lambda got: Pooled(got.before, fold))
    caught("an aggregation without trait 'folds' adds to frozen weight w", aggregation=secret)


def test_control_variates_that_do_not_add_up_are_caught():
    """The server divides by the clients of the round instead of by all."""

    def server(state, got, average):
        c = mean(got["dc"], torch.ones(len(got["n"])))
        return replace(state, adapter=average(got["x"], got["n"]), memory={"c": state.memory["c"] + c})

    caught(
        r"c is off the weighted mean of all clients' c by a norm of \d",
        "after round 1",
        algorithm=replace(scaffold(), server=server),
        cohort_size=3,
    )


# updates that are not finite


def explodes(**changes):
    """Client 1 is so steep that it overflows; client 0 is well-behaved."""
    return run(task=Quadratic([[1.0, 1.0], [1.0, 1e250]], [[0.0] * 2, [1.0] * 2], [1, 1]), **changes)


def test_a_client_that_is_not_finite_is_left_out_and_named():
    state, record = explodes()[-1]
    assert record.events == ("parameters not finite after local training, left out of the average: client 1",)
    assert state.adapter.flat.tolist() == pytest.approx([3 * 0.9**10] * 2)
    assert [c.weight for c in record.clients] == [1, 0]


def test_the_run_can_stop_instead_and_says_how_many_numbers_of_which_site():
    with pytest.raises(IntegrityError, match=r"client 1; lower training\.lr.*1 of 2 numbers of 'x', from site x on"):
        explodes(bad_updates="stop")


def test_what_a_client_would_keep_is_quarantined_too():
    """Its model is fine, but what it wants to remember is not."""

    def client(got, memory, train):
        done = train(got["x"])
        kept = done.adapter.flat.clone()
        kept[2, 5] = torch.inf
        return {"x": done.adapter, "n": done.weight}, {"c": replace(done.adapter, flat=kept)}

    remembers = replace(fedavg(), client=client, init_client=lambda x: {"c": x})
    state, record = run(remembers)[-1]
    assert record.events[0].endswith("left out of the average: client 2")
    assert bool(state.clients["c"].flat.isfinite().all())
    caught("client 2; lower", "1 of 23 numbers of 'c', from site w on", algorithm=remembers, bad_updates="stop")


def test_a_diverged_server_is_not_taken_for_a_client_that_did_not_load_it():
    """Everything is NaN, starts included, and the message is about that."""
    spoilt = Aggregation(lambda got: Pooled(replace(got.before, flat=got.before.flat * torch.nan)))
    assert "not finite" in run(aggregation=spoilt)[-1][1].events[0]
