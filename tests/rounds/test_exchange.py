"""What crosses between server and clients. One LoRA site of rank 3, d_in 2, d_out 4, and a bias of 2: A 6, B 12, P 20."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedfault.algebra import mask_factor, mean
from fedfault.rounds.exchange import (
    OWN,
    Cohort,
    add_fold,
    collect_personal_models,
    count_bytes_down,
    count_bytes_up,
    full_rank,
    make_average,
    mark_as_sent,
    replace_private_by_mean,
    select_good,
    store_client_memory,
)
from fedfault.types.adapter import Adapter, Layout, Pair, Site
from fedfault.types.algorithm import Aggregation, Pooled, State, Uploads

LAYOUT = Layout.of([Site("w", "lora", (3, 2, 4)), Site("bias", "full", (2,))], scaling=0.5)
X = Adapter(LAYOUT, torch.arange(1.0, 21.0))
A, B = mask_factor(LAYOUT, "A"), mask_factor(LAYOUT, "B")


def combine(got: Uploads) -> Pooled:
    return Pooled(mean(got.sent, got.weight))


PLAIN = Aggregation(combine)
ALTERNATING = Aggregation(combine, trained=lambda layout, round: ~(A if round % 2 else B))  # B first
PRIVATE = Aggregation(combine, private=lambda layout: B)


def state(round: int = 0, ranks=(3, 3, 3, 3), seen=(0, 0, 0, 0), stored=(0, 0, 0, 0), **more) -> State:
    return State(X, round=round, ranks=ranks, seen=seen, stored=stored, weights=(1.0, 2.0, 3.0, 4.0), **more)


def down(which: State, aggregation: Aggregation = PLAIN, clients=(0, 1, 2, 3), **more) -> list[int]:
    cohort = Cohort.of(list(clients), which, aggregation)
    return count_bytes_down(cohort, {"x": X, **more}, which, aggregation)


def test_the_order_in_which_clients_are_drawn_does_not_matter():
    assert Cohort.of([3, 0, 2], state(), PLAIN).clients == [0, 2, 3]


def test_full_ranks_need_no_mask():
    cohort = Cohort.of([1, 2], state(), PLAIN)
    assert (cohort.active, cohort.trained, cohort.private, cohort.trainable) == (None, None, None, None)
    assert cohort.start(X, state()) is X
    assert full_rank(LAYOUT) == 3
    assert full_rank(Layout.of([Site("bias", "full", (2,))])) == 0


def test_a_rank_leaves_the_first_slices_of_both_factors_and_what_is_trained_in_full():
    cohort = Cohort.of([0, 1, 2], state(ranks=(1, 3, 2, 3)), PLAIN)
    one = "11 00 00  100 100 100 100  11"  # A (3, 2), B (4, 3), bias
    two = "11 11 00  110 110 110 110  11"
    expected = [[c == "1" for c in row.replace(" ", "")] for row in (one, "1" * 20, two)]
    assert cohort.active.tolist() == expected
    assert cohort.trainable.tolist() == expected


def test_a_client_starts_from_the_first_slices_of_the_servers_model():
    cohort = Cohort.of([0, 1], state(ranks=(1, 3, 3, 3)), PLAIN)
    start = cohort.start(X, state()).flat
    assert start[0].tolist() == [1, 2, 0, 0, 0, 0, 7, 0, 0, 10, 0, 0, 13, 0, 0, 16, 0, 0, 19, 20]
    assert torch.equal(start[1], X.flat)


def test_slices_beyond_a_rank_are_zero_even_where_the_server_is_not_finite():
    broken = replace(X, flat=torch.full((20,), torch.nan))
    cut = Cohort.of([0, 1], state(ranks=(1, 3, 3, 3)), PLAIN).cut(broken).flat
    assert cut[0].isnan().sum() == 8
    assert not cut[0][~cut[0].isnan()].any()


def test_in_an_alternating_round_only_one_factor_is_trained_and_only_within_the_rank():
    cohort = Cohort.of([0, 1], state(round=1, ranks=(1, 3, 3, 3)), ALTERNATING)  # round 2 trains A
    assert cohort.trained.tolist() == (~B).tolist()
    assert [row.nonzero().flatten().tolist() for row in cohort.trainable] == [
        [0, 1, 18, 19],
        [0, 1, 2, 3, 4, 5, 18, 19],
    ]


def test_bytes_up_are_those_of_the_clients_rank():
    cohort = Cohort.of([0, 1, 2], state(ranks=(1, 3, 2, 3)), PLAIN)
    up = {"x": Adapter(LAYOUT, torch.zeros(3, 20)), "n": torch.ones(3)}
    assert count_bytes_up(cohort, up) == [4 * 8, 4 * 20, 4 * 14]  # r (2 + 4) + 2 numbers
    assert count_bytes_up(cohort, {**up, "dc": up["x"], "steps": torch.ones(3)}) == [72, 168, 120]  # twice that and 8


@pytest.mark.parametrize(("round", "numbers"), [(0, 12 + 2), (1, 6 + 2)])
def test_bytes_up_of_an_alternating_round_are_those_of_one_factor(round, numbers):
    cohort = Cohort.of([0, 1], state(round), ALTERNATING)
    assert count_bytes_up(cohort, {"x": Adapter(LAYOUT, torch.zeros(2, 20))}) == [4 * numbers] * 2


def test_what_stays_at_home_is_not_sent():
    cohort = Cohort.of([0, 1], state(ranks=(1, 3, 3, 3)), PRIVATE)
    assert count_bytes_up(cohort, {"x": Adapter(LAYOUT, torch.zeros(2, 20))}) == [4 * (2 + 2), 4 * (6 + 2)]
    assert down(state(ranks=(1, 3, 3, 3)), PRIVATE, (0, 1)) == [4 * (2 + 2), 4 * (6 + 2)]


def test_bytes_down_are_those_of_the_clients_rank_in_all_that_is_sent():
    which = state(ranks=(1, 3, 2, 3))
    assert down(which) == [32, 80, 56, 80]
    assert down(which, c=X) == [64, 160, 112, 160]


def test_the_first_round_sends_what_it_trains():
    assert down(state(), ALTERNATING) == [4 * 14] * 4


def test_who_missed_rounds_is_sent_every_factor_that_changed_meanwhile():
    """Rounds 1, 2 trained B, A; round 3 begins. Who was there in round 2 has seen what round 1 made of B."""
    assert down(state(2, seen=(2, 1, 0, 2)), ALTERNATING) == [4 * (6 + 2), 80, 80, 32]
    assert down(state(3, seen=(3, 2, 1, 0)), ALTERNATING) == [4 * (12 + 2), 80, 80, 80]
    assert down(state(1, seen=(1, 0, 1, 0)), ALTERNATING) == [4 * 14] * 4


def test_what_clients_know_from_the_seed_is_not_sent_down():
    known = replace(PLAIN, known=lambda layout: A | B)
    assert down(state(2, seen=(2, 1, 0, 2)), known) == [4 * 2] * 4
    cohort = Cohort.of([0], state(), known)
    assert count_bytes_up(cohort, {"x": Adapter(LAYOUT, torch.zeros(1, 20))}) == [80]


def test_who_missed_rounds_is_sent_what_they_added_to_the_frozen_weights():
    """Round 1 added 10 bytes, round 2 added 6: who took part in round 2 has the 10, but left before the 6."""
    base = {"w": torch.zeros(4, 2)}  # 32 bytes as a whole
    assert down(state(2, seen=(2, 1, 0, 2), base=base, folds=(10, 6))) == [80 + 6, 80 + 16, 80 + 16, 80 + 6]
    assert down(state(2, seen=(2, 1, 0, 2), base=base, folds=(30, 6))) == [80 + 6, 80 + 32, 80 + 32, 80 + 6]


def test_folds_add_up_in_the_frozen_weights_and_weigh_the_smaller_of_factors_and_matrix():
    small = Pair(torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0], [0.0], [-1.0], [3.0]]))  # A (1, 2), B (4, 1)
    once = add_fold(state(), {"w": small})
    assert once.base["w"].tolist() == [[1, -2], [0, 0], [-1, 2], [3, -6]]
    assert once.folds == (4 * (2 + 4),)
    large = Pair(torch.ones(3, 2), torch.ones(4, 3))  # 18 numbers, its product has 8
    twice = add_fold(replace(once, round=1), {"w": large})
    assert twice.base["w"].tolist() == [[4, 1], [3, 3], [2, 5], [6, -3]]
    assert twice.folds == (24, 4 * 8)


def test_rounds_that_added_nothing_keep_their_place():
    fold = {"w": Pair(torch.ones(1, 2), torch.ones(4, 1))}
    assert add_fold(state(2), fold).folds == (0, 0, 24)


def average(which: State, aggregation: Aggregation, sent: torch.Tensor, good=(True, True)) -> torch.Tensor:
    cohort = Cohort.of([0, 1], which, aggregation)
    weight = torch.tensor([1.0, 3.0])[torch.tensor(good)]
    return make_average(aggregation, cohort, which, torch.tensor(good), 0, [])(Adapter(LAYOUT, sent), weight).flat


def test_the_average_keeps_what_was_not_trained_and_what_is_private():
    sent = torch.stack([X.flat - 3, X.flat + 5])  # mean X + 3
    assert average(state(), PLAIN, sent).tolist() == (X.flat + 3).tolist()
    assert average(state(1), ALTERNATING, sent).tolist() == torch.where(B, X.flat, X.flat + 3).tolist()
    assert average(state(), PRIVATE, sent).tolist() == torch.where(B, X.flat, X.flat + 3).tolist()


def test_numbers_that_were_not_sent_cannot_reach_the_server():
    sent = torch.stack([X.flat - 3, X.flat + 5]).where(~B, torch.nan)
    for which, aggregation in ((state(1), ALTERNATING), (state(), PRIVATE)):
        assert bool(average(which, aggregation, sent).isfinite().all())


def test_slices_that_only_absent_clients_have_wait_for_them():
    """Clients of rank 1 average slice 0; slices 1 and 2 belong to clients 2 and 3, or to one that was not finite."""
    sent = torch.stack([X.flat - 3, X.flat + 5])
    first = [0, 1, 6, 9, 12, 15, 18, 19]  # A[0], B[:, 0] and the bias
    for which, good, change in (
        (state(ranks=(1, 1, 3, 3)), (True, True), 3),
        (state(ranks=(1, 3, 1, 1)), (True, False), -3),
    ):
        expected = X.flat.clone()
        expected[first] += change
        assert average(which, PLAIN, sent[torch.tensor(good)], good).tolist() == expected.tolist()


def test_the_average_knows_the_ranks_of_the_good_clients_only():
    seen = []
    spy = Aggregation(lambda got: seen.append(got) or combine(got))
    average(state(4, ranks=(1, 2, 3, 3)), spy, X.flat[None] + 1, good=(False, True))
    assert seen[0].ranks.tolist() == [2]
    assert (seen[0].round, seen[0].before) == (5, X)


def test_what_a_client_keeps_is_where_it_starts_and_its_model_next_to_the_shared_part():
    own = torch.arange(4.0)[:, None] * 100 + torch.zeros(4, 20)
    which = state(clients={OWN: Adapter(LAYOUT, own)})
    start = Cohort.of([1, 3], which, PRIVATE).start(X, which).flat
    assert start[0].tolist() == [1, 2, 3, 4, 5, 6, *[100] * 12, 19, 20]
    assert start[1].tolist() == [1, 2, 3, 4, 5, 6, *[300] * 12, 19, 20]
    assert torch.equal(collect_personal_models(which, B).flat[[1, 3]], start)
    assert collect_personal_models(which, None) is None


def test_one_global_model_has_the_weighted_mean_of_what_clients_keep():
    own = torch.tensor([1.0, -1.0, 2.0, 0.5])[:, None].expand(4, 20)
    which = replace_private_by_mean(state(clients={OWN: Adapter(LAYOUT, own)}), B)
    assert which.adapter.flat.tolist() == pytest.approx([1, 2, 3, 4, 5, 6, *[0.7] * 12, 19, 20])  # (1 - 2 + 6 + 2) / 10
    assert replace_private_by_mean(state(), None) == state()


def test_only_what_finite_clients_keep_is_stored():
    which = state(4, clients={"c": Adapter(LAYOUT, torch.zeros(4, 20))}, stored=(2, 0, 1, 3))
    cohort = Cohort.of([1, 3], which, PLAIN)
    after = store_client_memory(which, cohort, {"c": Adapter(LAYOUT, torch.full((2, 20), 7.0))}, [True, False])
    assert after.clients["c"].flat[:, 0].tolist() == [0, 7, 0, 0]
    assert after.stored == (2, 5, 1, 3)
    assert after.seen == which.seen
    assert not which.clients["c"].flat.any()


def test_a_model_that_a_client_keeps_is_the_one_that_it_trained_whatever_its_rank_was_before():
    """Other numbers stay beyond its rank, where it trained none; of two models that would be neither."""
    which = state(4, clients={name: Adapter(LAYOUT, torch.full((4, 20), 5.0)) for name in ("c", "previous")})
    cohort = Cohort.of([1], which, PLAIN, {1: 1})
    trained = cohort.cut(Adapter(LAYOUT, torch.full((1, 20), 7.0)))
    home = {"c": trained, "previous": trained}
    after = store_client_memory(which, cohort, home, [True], whole=frozenset({"previous"}))
    assert torch.equal(after.clients["previous"].flat[1], trained.flat[0])
    assert set(after.clients["c"].flat[1].tolist()) == {5.0, 7.0}
    assert after.clients["previous"].flat[0].tolist() == [5.0] * 20


def test_who_was_sent_the_model_has_seen_the_round_whatever_came_back():
    after = mark_as_sent(state(4, seen=(2, 0, 1, 3), stored=(2, 0, 1, 3)), [1, 3])
    assert after.seen == (2, 5, 1, 5)
    assert after.stored == (2, 0, 1, 3)


def test_rows_of_clients_that_are_left_out_leave_the_message():
    up = {"x": Adapter(LAYOUT, torch.arange(3.0)[:, None].expand(3, 20)), "n": torch.tensor([5.0, 6.0, 7.0]), "k": 4}
    kept = select_good(up, [True, False, True])
    assert kept["x"].flat[:, 0].tolist() == [0, 2]
    assert kept["n"].tolist() == [5, 7]
    assert kept["k"] == 4
    assert select_good(up, [True] * 3) is up


def test_some_clients_of_a_cohort_keep_their_ranks():
    everyone = State(Adapter(LAYOUT, torch.zeros(LAYOUT.size)), ranks=(1, 3, 3, 2))
    whole = Cohort.of([0, 1, 3], everyone, Aggregation(lambda got: Pooled(got.before)))
    some = whole.select([0, 2])
    assert (some.clients, some.ranks.tolist()) == ([0, 3], [1, 2])
    assert some.active.sum(1).tolist() == [8, 14]  # of A 2 and B 4 a rank, and the bias
    assert whole.select([]).clients == []
