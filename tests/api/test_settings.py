"""Settings from Python: how they are spelled, and that errors speak of them and not of a command line."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

import fedfault as ff
from fedfault.api.settings import load_config, speak_python, spell_call, spell_words, write_study
from fedfault.config.loading import load
from fedfault.errors import UserError
from fedfault.studies.file import load_study


def test_nested_dotted_and_keyword_settings_are_the_same_words():
    words = ["training.lr=0.001", "data.partition.name=iid"]
    assert spell_words({"training": {"lr": 1e-3}, "data.partition.name": "iid"}, {}) == words
    assert spell_words(None, {"training__lr": 1e-3, "data__partition__name": "iid"}) == words


def test_a_mapping_that_is_no_section_is_one_word_and_its_keys_may_have_dots():
    ranks = {"layers.0.q_proj": 4}
    words = ["model.lora.rank_pattern={layers.0.q_proj: 4}"]
    assert spell_words({"model": {"lora": {"rank_pattern": ranks}}}, {}) == words
    assert spell_words({"model.lora": {"rank_pattern": ranks}}, {}) == words
    assert load("quickstart", words).experiment.model.lora.rank_pattern == ranks


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (np.float64(0.5), "a=0.5"), (np.int64(3), "a=3"), (None, "a=null"), (True, "a=true"), ("true", "a='true'"),
        (("q", "v"), "a=[q, v]"), (Path("x/y"), "a=x/y"), ("two words", "a=two words"), ([], "a=[]"),
    ],
)  # fmt: skip
def test_every_value_reads_back_as_what_it_was(value, word):
    assert spell_words({"a": value}, {}) == [word]


def test_a_mapping_is_a_configuration_and_a_file_with_changes_is_one():
    own = load_config({"_base_": "quickstart", "training": {"lr": 1e-2}}, ["seed=3"], ())
    assert own.resolved == load("quickstart", ["training.lr=1e-2", "seed=3"]).resolved
    assert load_config({}, [], ()).resolved == load_config({"seed": 0}, [], ()).resolved  # the defaults, no quickstart


def test_what_python_has_more_of_is_written_as_what_yaml_has():
    class Algorithm(str, Enum):
        AVG = "fedavg"

    class Name(str):
        pass

    assert spell_words({"a": Algorithm.AVG, "b": Name("x"), "c": range(3), "d": PurePosixPath("x/y")}, {}) == [
        "a=fedavg",
        "b=x",
        "c=[0, 1, 2]",
        "d=x/y",
    ]


@pytest.mark.parametrize(
    "value", [{"a", "b"}, Decimal("0.001"), object(), dict, print, b"x"], ids=lambda value: type(value).__name__
)
def test_a_value_that_no_setting_can_be_is_refused_with_its_setting(value):
    """It ended in a traceback of the YAML library; a set was said to be tags that the user had never written."""
    for given in (value, [value], {"by": value}):
        with pytest.raises(UserError, match=r"settings: attacks(\.by)?=.* is a \w+; give a number, text"):
            spell_words({}, {"attacks": [given]})
    with pytest.raises(UserError, match=r"settings: training\.lr="), write_study({"training": {"lr": value}}):
        pass


def test_errors_speak_of_settings():
    with pytest.raises(UserError, match=r"^settings: no key 'lrr' in section training; did you mean 'lr'"):
        load_config("quickstart", ["training.lrr=1"], ())
    with pytest.raises(UserError, match=r"^settings: plugins: there is no file nope\.py"):
        load_config("quickstart", [], ["nope.py"])


def test_errors_name_the_way_out_of_python():
    told = "a: do `fedfault resume 'a b' federation.num_rounds=3`, `fedfault fork R --round 2 seed=...` or `fedfault run`;\n"
    told += (
        "or replace it with --overwrite. --out x.html: no folder; give another --results-dir, see `fedfault watch a`"
    )
    with pytest.raises(UserError) as raised, speak_python():
        raise UserError(told)
    assert str(raised.value) == (
        "a: do `ff.resume('a b', federation__num_rounds=3)`, `ff.fork('R', round=2, seed=...)` or `ff.run`;\n"
        "or replace it with overwrite=True. out=x.html: no folder; give another results_dir=, see `fedfault watch a`"
    )
    assert spell_call("fedfault compare a b") == "ff.compare(['a', 'b'])"
    assert spell_call("fedfault run c 'tiers={a: 1}'") == "ff.run('c', tiers={'a': 1})"


def write_damaged(run: Path) -> None:
    """A run folder of which hardly anything is left."""
    run.mkdir()
    for name in ("manifest.json", "config.yaml"):
        (run / name).write_text("{}")


def test_a_folder_of_runs_that_is_sorted_by_nothing_says_by_what(tmp_path):
    write_damaged(tmp_path / "a")
    with pytest.raises(UserError, match=r"^sort=None: a list is sorted by name, "):
        ff.runs(tmp_path, sort=None)
    with pytest.raises(UserError, match=r"^no kind or component called 3 "):
        ff.list(3)


def test_runs_that_are_not_in_a_list_are_told_how(tmp_path):
    write_damaged(tmp_path / "b")
    with pytest.raises(UserError, match=r"^the runs are a list, ff\.compare\(\['a', '.*b'\]\)"):
        ff.compare("a", tmp_path / "b")
    with pytest.raises(UserError, match=r"two runs at least: `ff\.compare\(\['results/a', 'results/b'\]\)`$"):
        ff.compare("a")


def test_a_study_that_is_a_mapping_needs_a_name():
    with pytest.raises(UserError, match=r"^the study has no experiment_name"):
        ff.study({})


def test_a_single_plug_in_or_run_is_one_and_not_its_letters(tmp_path):
    for call in (ff.run, ff.check, ff.calibrate, ff.study):
        with pytest.raises(UserError, match=r"there is no file nope\.py"):
            call("quick" if call is ff.study else "quickstart", plugins="nope.py")
    with pytest.raises(UserError, match=r"there is no file nope\.py"):
        ff.list(plugins="nope.py")
    for one in (str(tmp_path), tmp_path):
        with pytest.raises(UserError, match="a comparison takes two runs at least"):
            ff.compare(one)


def test_a_study_can_be_a_mapping_with_nested_or_dotted_settings():
    own = {"_base_": "quickstart", "training.lr": 1e-2, "arms": {"a": {}, "b": {"federation.algorithm": "fedprox"}}}
    with write_study(own) as path:
        found = load_study(path, ["seeds=2"])
    assert [cell.name for cell in found.study.cells] == ["a", "b"]
    assert {loaded.experiment.training.lr for loaded in found.configs.values()} == {1e-2}
    with (
        pytest.raises(UserError, match=r"^the study: no key 'trainings' at the top level"),
        write_study({"trainings": 1}) as path,
    ):
        load_study(path)
