"""Whenever a kill comes, the same command goes on: SIGKILL at random moments. `KILLS=50` makes them 200."""

from __future__ import annotations

import os
import random

import pytest

from trials import COMMANDS, Trial

KILLS = int(os.environ.get("KILLS", "8"))  # in each of four parts
pytestmark = pytest.mark.usefixtures("quick_report")


@pytest.fixture(scope="module")
def trials(ready, tmp_path_factory) -> list[Trial]:
    return [Trial(command, ready, tmp_path_factory.mktemp("trials") / name) for name, command in COMMANDS.items()]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_kills_at_random_moments_lose_at_most_the_round_at_work(trials, part):
    draws, killed, late = random.Random(part), 0, 0
    lost: list[int] = []
    while killed < KILLS:
        quick, slow = trials[:-2], trials[-2:]  # a mitigation takes half a minute: one trial in eleven is slow
        trial = quick[len(lost) % len(quick)] if len(lost) % 11 else slow[(part + len(lost)) % 2]
        trial.begin_again()
        for _ in range(2):  # the one that goes on is killed, too
            if not trial.is_done():
                hit = trial.kill(draws.uniform(0, trial.seconds))
                killed, late = killed + hit, late + (not hit)
        lost.append(trial.check_what_is_left())
    print(
        f"\n{killed} kills in {len(lost)} folders ({late} came too late): all went on, {max(lost)} recorded rounds lost"
    )
