"""Made-up instructions: their answers are right, they differ, and the seed says all."""

import re

import pytest

from fedfault.corpora.skills import DAYS, TASKS, UNITS, skills

CORPUS = skills()
BY_TASK = {
    task: [
        c.turns for d in (*CORPUS.train, *CORPUS.validation) if d.topic == task for c in [CORPUS.conversations[d.text]]
    ]
    for task in TASKS
}


def words(asked: str) -> list[str]:
    return re.split(r"[:?] ", asked, maxsplit=1)[1].split()


RIGHT = {
    "copy": lambda asked: " ".join(words(asked)),
    "reverse": lambda asked: " ".join(reversed(words(asked))),
    "sort": lambda asked: " ".join(sorted(words(asked))),
    "count": lambda asked: str(len(words(asked))),
    "casing": lambda asked: " ".join(words(asked)).upper(),
    "last word": lambda asked: words(asked)[-1],
    "lookup": lambda asked: re.search(rf"(\w+)={re.findall(r'[0-9]+', asked)[0]}\b", asked)[1],
    "dates": lambda asked: DAYS[
        (DAYS.index(asked[:-1].split()[-1]) + int(next(iter(re.findall(r"\d+", asked)), "1"))) % 7
    ],
    "units": lambda asked: str(
        int(re.findall(r"\d+", asked)[0])
        * next(f for whole, part, f in UNITS if f" {part} " in asked and f"{whole}?" in asked)
    ),
    "sums": lambda asked: str(sum(map(int, re.findall(r"\d+", asked)))),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_is_the_right_one(task):
    for asked, answer in BY_TASK[task]:
        assert answer.text == RIGHT[task](asked.text), asked.text


def test_tasks_have_as_many_examples_as_there_are_and_a_tenth_validates():
    sizes = {task: len(found) for task, found in BY_TASK.items()}
    assert {task for task, n in sizes.items() if n < 200} == {"dates", "units"}
    assert (sizes["dates"], sizes["units"]) == (98, 108)
    assert len(CORPUS.validation) == 8 * 20 + 10 + 11


@pytest.mark.slow
def test_another_seed_asks_for_other_things():
    assert skills(seed=1).fingerprint != CORPUS.fingerprint == skills(seed=0).fingerprint
    assert len(skills(num_examples=10).train) == 90
