"""Where clients started and what moved, on adapters that are vectors made by hand or by chance."""

from __future__ import annotations

import numpy as np
import pytest

from fedfault.detectors.exchange import leaked_factor
from fedfault.monitor.exchange import Sent, find_moved, find_usual, measure_apart, measure_chain
from fedfault.testing.histories import history


def send(rows, rounds, clients, kinds=None):
    X = np.array(rows, dtype=float)
    return Sent(X @ X.T, tuple(rounds), tuple(clients), tuple(kinds or ["r"] * len(X)))


def simulate(loop, seed=0, clients=4, rounds=8, size=200, habit=0.0, drift=1.0):
    """Vectors that clients send: every client adds a common step, one that its data ask for, and noise."""
    g = np.random.default_rng(seed)
    shared, habits = drift * g.normal(size=size), habit * g.normal(size=(clients, size))
    server, own, rows = np.zeros(size), np.zeros((clients, size)), []
    for _ in range(rounds):
        last = server
        for k in range(clients):
            start = {"averaged": server, "isolated": own[k], "leaking": last}[loop]
            last = own[k] = start + shared + habits[k] + g.normal(size=size)
            rows.append(last.copy())
        server = own.mean(axis=0)
    where = [(t, k) for t in range(1, rounds + 1) for k in range(clients)]
    return send(rows, *zip(*where, strict=True))


def test_by_hand_what_two_clients_keep():
    """They were 2 apart and are 1 apart: e = -1, 1 and then -1/2, 1/2, of which <e', e> / |e|^2 is a half."""
    found = measure_apart(send([[-1.0], [1.0], [4.5], [5.5]], [1, 1, 2, 2], [0, 1, 0, 1]))
    assert found.kept == pytest.approx(0.5)
    assert found.growth == pytest.approx(0.25)


@pytest.mark.parametrize("habit", [0.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_clients_that_start_together_are_told_from_those_that_go_on_alone(habit, seed):
    together, alone = (measure_apart(simulate(loop, seed, habit=habit)) for loop in ("averaged", "isolated"))
    assert alone.kept > 0.9
    assert alone.growth > 1.5
    assert together.growth < 1.2
    assert together.kept == pytest.approx(habit**2 / (1 + habit**2), abs=0.1)  # of the variance, what comes again


def test_a_client_that_comes_back_later_is_compared_with_what_it_sent_last():
    found = measure_apart(send([[-1.0], [1.0], [9.0], [-1.0], [1.0]], [1, 1, 2, 3, 3], [0, 1, 2, 0, 1]))
    assert found.kept == pytest.approx(1.0)


def test_without_two_clients_that_come_twice_nothing_is_known():
    assert measure_apart(send([[1.0], [2.0], [3.0]], [1, 1, 2], [0, 1, 2])) is None
    assert measure_apart(send([[1.0], [1.0], [2.0], [2.0]], [1, 1, 2, 2], [0, 1, 0, 1])) is None  # they were equal


def test_ranks_are_compared_among_their_like():
    kinds = ["r=4", "r=4", "r=8"] * 2
    found = measure_apart(send([[-1.0], [1.0], [99.0], [-1.0], [1.0], [7.0]], [1] * 3 + [2] * 3, [0, 1, 2] * 2, kinds))
    assert found.kept == pytest.approx(1.0)
    assert measure_chain(send([[0.0], [1.0], [2.0]], [1] * 3, [0, 1, 2], ["a", "a", "b"])) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_chain_of_clients_is_found_and_an_order_by_their_data_is_none(seed):
    leaking = measure_chain(simulate("leaking", seed))
    assert leaking.share > 0.25
    assert leaking.p < 0.01
    for loop in ("averaged", "isolated"):
        for habit in (0.0, 3.0):
            found = measure_chain(simulate(loop, seed, habit=habit))
            assert abs(found.share) < 0.25
    whole = measure_chain(simulate("leaking", seed, clients=12, rounds=8))
    assert whole.share > 0.5


def test_the_state_of_one_optimiser_for_all_looks_like_a_leak_and_is_said_to_be_one_of_the_two():
    """All clients start from the server's adapter, and what one adds is in part what the one before it has added."""
    g = np.random.default_rng(0)
    server, momentum, rows = np.zeros(200), np.zeros(200), []
    for _ in range(8):
        for _ in range(4):
            momentum = 0.8 * momentum + g.normal(size=200)
            rows.append(server + momentum)
        server = np.mean(rows[-4:], axis=0)
    found = measure_chain(send(rows, *zip(*[(t, k) for t in range(8) for k in range(4)], strict=True)))
    probes = {"chained": [None, found.share], "chained_p": [None, found.p]}
    (reading,) = leaked_factor().read(history(probes=probes), {})
    assert reading.statistic > leaked_factor().default_threshold
    assert "from its adapter, a factor of it, or its optimiser" in leaked_factor().explain(reading)
    assert "optimiser" in leaked_factor().advice[0]


def test_a_client_whose_updates_are_long_makes_no_chain_at_the_end_of_the_order():
    g = np.random.default_rng(0)
    rows = g.normal(size=(8, 5, 200)) * np.array([1, 1, 1, 1, 30])[None, :, None]
    where = [(t, k) for t in range(8) for k in range(5)]
    found = measure_chain(send(rows.reshape(40, -1), *zip(*where, strict=True)))
    assert found.share < 0.25 or found.p > 0.01


def test_a_copy_beside_its_original_is_no_chain():
    """A copy stands where the one before it ended: of five clients in six rounds that looked like a leak."""
    g = np.random.default_rng(0)
    rows = g.normal(size=(6, 5, 200))
    rows[:, 3] = rows[:, 2]
    where = [(t, k) for t in range(6) for k in range(5)]
    sent = send(rows.reshape(30, -1), *zip(*where, strict=True))
    marks = [f"{t}/{2 if k == 3 else k}" for t, k in where]
    assert measure_chain(sent).p < 0.01
    once = sent.once(marks)
    assert once.clients == (0, 1, 2, 4) * 6
    assert measure_chain(once).share < 0.25
    assert sent.until(2).once(marks[:15]).rounds == once.until(2).rounds


@pytest.mark.long
def test_random_orders_are_as_chained_in_as_many_runs_as_p_says():
    found = [measure_chain(simulate("averaged", seed, size=6)).p for seed in range(60)]
    assert 0.3 < np.mean(np.array(found) < 0.5) < 0.7


def test_who_moves_a_part_that_most_leave_alone_is_found():
    marks = {"lora_A": ["a", "a", "x", "a"], "lora_B": ["1", "2", "3", "4"]}
    assert find_moved(marks, "lora_A") == [2]
    assert find_moved(marks, "lora_B") == []  # all move it
    assert find_moved({"lora_A": ["a", "a", "x"], "lora_B": ["1", "1", "3"]}, "lora_A") == []  # two did not train
    assert (find_usual(marks, "lora_A"), find_usual(marks, "lora_B")) == ("a", None)
