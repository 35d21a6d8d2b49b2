"""What the registry knows of components, by building them and from the text of their files, and how it describes options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedfault.errors import UserError
from fedfault.registry import (
    FOLDERS,
    load_builders,
    read_declarations,
    read_summary,
    register,
)

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


def test_the_text_of_a_file_is_read_once(monkeypatch):
    first = read_declarations("detector")
    monkeypatch.setattr("ast.parse", lambda text: pytest.fail("read again"))
    assert read_declarations("detector") == first


@pytest.mark.slow
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


def test_the_cell_of_a_notebook_may_be_run_again_and_replaces_what_it_had_defined(monkeypatch):
    from fedfault import registry

    monkeypatch.setitem(registry._REGISTERED, "__main__", {})
    cell = "@register('partition')\ndef mine(*, alpha: float = {}):\n    'A split.'\n"
    for alpha in (1.0, 2.0):
        exec(cell.format(alpha), {"register": register, "__name__": "__main__"})
    assert registry._REGISTERED["__main__"]["partition", "mine"].builder.__kwdefaults__ == {"alpha": 2.0}
    with pytest.raises(UserError, match="two partition components are called 'mine'"):
        exec(
            "@register('partition', 'mine')\ndef other():\n    'Another.'\n",
            {"register": register, "__name__": "__main__"},
        )
    twice = cell.format(1.0) + cell.format(2.0)
    with pytest.raises(UserError, match="two partition components are called 'mine'"):
        exec(twice, {"register": register, "__name__": "a_file"})
    registry._REGISTERED.pop("a_file")
