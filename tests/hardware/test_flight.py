"""Who arrives when, by hand."""

from __future__ import annotations

import json

import pytest

from fedfault.hardware.flight import Asynchrony, Flight, gather, read_flights, write_flights


def flight(client, due, version=0):
    return Flight(client, version, 0.0, due, 0.0, due)


def stay(now):
    return now


def send_next(*ids, seconds=10.0):
    """Sends out these clients one after another, the ones that are not busy."""

    def send(now, places, busy):
        return [flight(k, now + seconds, version=7) for k in ids if k not in busy][:places]

    return send


def test_the_first_to_be_done_arrive_and_others_take_their_places():
    got = gather([flight(0, 3.0), flight(1, 1.0), flight(2, 2.0)], 0.0, 2, 3, send_next(3, 4), stay)
    assert [one.client for one in got.arrived] == [1, 2]
    assert got.now == 2.0
    assert [(one.client, one.due) for one in got.away] == [(0, 3.0), (3, 11.0)]  # 4 is sent the next model


def test_a_fast_client_that_was_just_sent_out_may_arrive_before_old_ones():
    got = gather([flight(0, 9.0), flight(1, 1.0)], 0.0, 2, 2, send_next(2, seconds=0.5), stay)
    assert [(one.client, one.version) for one in got.arrived] == [(1, 0), (2, 7)]
    assert got.now == 1.5


def test_who_waits_in_the_buffer_is_not_sent_out_again():
    got = gather([], 0.0, 2, 1, send_next(5, 6), stay)
    assert [one.client for one in got.arrived] == [5, 6]


def test_of_two_that_are_due_at_once_the_smaller_id_comes_first():
    for away in ([flight(2, 1.0), flight(1, 1.0)], [flight(1, 1.0), flight(2, 1.0)]):
        assert [one.client for one in gather(away, 0.0, 1, 2, send_next(), stay).arrived] == [1]


def test_a_server_without_anybody_waits_or_gives_up():
    night = lambda now, places, busy: [flight(0, now + 1.0)] if now >= 8.0 and 0 not in busy else []  # noqa: E731
    assert gather([], 0.0, 1, 1, night, lambda now: 8.0).now == 9.0
    assert gather([], 0.0, 1, 1, night, stay).arrived == []
    assert len(gather([], 8.0, 2, 1, night, lambda now: 8.0).arrived) == 1  # the buffer is taken as it is


def test_flights_survive_a_checkpoint_to_the_bit():
    flights = [Flight(3, 2, 0.1, 1 / 3, 1e-9, 7.000000001), flight(0, 1e9)]
    assert read_flights(json.loads(json.dumps(write_flights(flights)))) == flights
    assert read_flights(write_flights([])) == []


@pytest.mark.parametrize(("stale", "counts"), [(0, 1.0), (4, 1.0), (5, 1 / 11), (6, 1 / 21)])
def test_the_hinge_leaves_young_updates_alone(stale, counts):
    assert Asynchrony(1, staleness="hinge").discount(stale) == pytest.approx(counts)
