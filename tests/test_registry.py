"""What the registry knows of components, by building them and from the text of their files, and how it describes options."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from fedfault.errors import UserError
from fedfault.registry import (
    FOLDERS,
    check_options,
    describe_options,
    load_builders,
    read_declarations,
    read_summary,
    register,
    spell_type,
)

Share = Annotated[float, Field(gt=0, le=1)]

NEWCOMER = """
from fedfault.registry import register
from fedfault.types.task import Measurements, Probe

@register("probe", on=False)
def newcomer():
    "It measures nothing."
    return Probe(lambda finished: Measurements())
"""
ITS_SWITCH = """
import sys, fedfault.metrics
fedfault.metrics.__path__.append(sys.argv[1])
from fedfault.config.schema import Experiment
assert list(Experiment().model_dump()["metrics"].items())[-1] == ("newcomer", False)
assert "torch" not in sys.modules
from fedfault.config.loading import load
assert load("quickstart", ["metrics.newcomer=true"]).experiment.metrics.newcomer
"""


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_text_of_the_files_declares_what_importing_them_registers(kind):
    declared = {name: own.summary for name, own in read_declarations(kind).items()}
    assert declared == {name: read_summary(builder) for name, builder in load_builders(kind).items()}


def test_a_probe_that_is_put_into_the_folder_has_its_switch(tmp_path):
    (tmp_path / "newcomer.py").write_text(NEWCOMER)
    subprocess.run([sys.executable, "-c", ITS_SWITCH, str(tmp_path)], check=True)


@pytest.mark.parametrize("facts", [{"on": False}, {"order": 1}])
def test_only_a_probe_has_a_switch_and_a_place(facts):
    with pytest.raises(ValueError, match="only a probe has `on` and `order`, not a detector"):
        register("detector", **facts)


def test_a_fact_that_is_no_literal_is_refused(tmp_path, monkeypatch):
    (tmp_path / "newcomer.py").write_text(NEWCOMER.replace("on=False", "on=not True"))
    monkeypatch.setattr("fedfault.metrics.__path__", [str(tmp_path)])
    with pytest.raises(ValueError, match="malformed node"):
        read_declarations("probe")


def made(*, share: Share, steps: int = 3, sides: list[Share | None] | None = None, fast: bool = False): ...


def test_options_are_described_in_words_of_yaml():
    assert describe_options(made) == [
        "share: float > 0 and <= 1",
        "steps: int = 3",
        "sides: list of float > 0 and <= 1, or null, or null = null",
        "fast: true or false = false",
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Field(gt=0)] | Literal["auto"], "int > 0, or auto"),
        (Literal["none", "8bit"] | None, "none, 8bit, or null"),
        (Any, "Any"),
    ],
)
def test_types_are_spelled_for_people(kind, words):
    assert spell_type(kind) == words


def test_an_option_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        UserError, match=r"'shares'; did you mean 'share'\? \(it takes: share: float > 0 and <= 1; steps: int"
    ):
        check_options("partition", "made", made, {"shares": 1})
