"""The table of clients: its columns, their order, and rows of clients that did nothing."""

from dataclasses import replace

from fedfault.records import ClientRecord, RoundRecord, Score, Turn
from fedfault.runs.clients import COLUMNS, tabulate_clients
from handmade import make

TRAINED = ClientRecord(0, 1.0, 5, 50, 0.5, 0.1, 0.2, 10, 20, rank=8, probes={"cosine": 0.3})


def test_columns_stand_in_one_order_and_are_left_out_where_there_is_nothing():
    run = make(rounds=1, clients=2)
    rows = tabulate_clients(replace(run, records=(RoundRecord(1, clients=(TRAINED,)),)))
    assert list(rows[0]) == [
        "round", "client", "topic", "rank", "weight", "steps", "tokens", "training_loss", "grad_norm", "update_norm",
        "bytes_up", "bytes_down", "probe_cosine",
    ]  # fmt: skip
    assert [name for name in COLUMNS if name in rows[0]] == [*rows[0]][:-1]


def test_a_client_has_its_topic_its_name_and_what_the_model_scores_on_what_it_kept_back():
    run = make(rounds=1, clients=2)
    record = RoundRecord(1, clients=(TRAINED,), scores={"client/0": Score(3.25, 10)})
    (row,) = tabulate_clients(replace(run, records=(record,), split={**run.split, "names": ["Ann", "Bob"]}))
    assert (row["name"], row["topic"], row["held_out_loss"], row["training_loss"]) == ("Ann", "news", 3.25, 0.5)


def test_a_client_from_whom_nothing_arrived_has_its_turn_and_nothing_else():
    turns = (Turn(0, "fast", 8, "done", compute=1.0), Turn(1, "slow", 4, "dropped", compute=3.0, needed=6.0))
    done, dropped = tabulate_clients(replace(make(), records=(RoundRecord(2, clients=(TRAINED,), turns=turns),)))
    assert (done["tier"], done["fate"], done["steps"]) == ("fast", "done", 5)
    assert (dropped["rank"], dropped["needed_seconds"], dropped["steps"], dropped["weight"]) == (4, 6.0, None, None)


def test_no_two_columns_differ_in_a_prefix_or_a_unit_alone():
    plain = [name.replace("_seconds", "").replace("grad_", "gradient_") for name in COLUMNS]
    assert len(set(plain)) == len(COLUMNS)
