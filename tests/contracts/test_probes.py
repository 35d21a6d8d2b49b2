"""What registered probes promise beyond the rules of `fedfault.testing`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedfault.config.sections.evaluation import Metrics
from fedfault.registry import build, load_builders
from fedfault.rounds.engine import begin, rounds
from fedfault.testing.toys import LowRank, federation

pytestmark = pytest.mark.parametrize("name", load_builders("probe"))
# Nothing where there is no hidden state
READS_TEXT = ("attention", "generation", "representation", "membership", "exposure")


def small(name):
    probes = {name: build("probe", name)}
    return federation(LowRank(), num_rounds=3, cohort_size=4, work={"steps": 2}, probes=probes)


def run(fed):
    return [record for _, record in rounds(fed, begin(fed))]


def test_what_reads_text_gives_nothing_where_there_is_none(name):
    measured = [bool(r.probes) or any(c.probes for c in r.clients) for r in run(small(name))]
    assert measured == ([False] * 4 if name in READS_TEXT else [False, True, True, True])


def test_its_switch_is_in_the_configuration_and_no_other_is(name):
    assert name in Metrics.model_fields, f"write @register(...) in front of {name}, on a function of the module"
    assert set(Metrics.model_fields) == set(load_builders("probe"))


def test_the_length_of_a_server_s_step_is_zero_where_it_stands_still(name):
    fed = small(name)

    def server(state, got, average):
        average(got["x"], got["n"])
        return state

    records = run(replace(fed, algorithm=replace(fed.algorithm, server=server)))
    assert ("server_norm" in records[1].probes and records[1].probes["server_norm"] == 0) == (name == "updates")
