import os

import pytest

from fedfault.config import load
from refusals import refused

DIRICHLET = "data:\n  partition: {name: topic_skew, alpha: 0.1, convention: topic}\n"


def test_a_file_inherits_and_sections_merge(write):
    write("federation: {num_rounds: 3, total_clients: 4}\nmodel: {lora: {target_modules: [q, v]}}\n", "base.yaml")
    path = write(
        '_base_: "../base.yaml"\nfederation: {num_rounds: 5}\nmodel: {lora: {target_modules: [k]}}\n', "sub/x.yaml"
    )
    got = load(path).experiment
    assert (got.federation.num_rounds, got.federation.total_clients) == (5, 4)
    assert got.model.lora.target_modules == ["k"]


def test_of_two_bases_the_second_wins_and_what_they_share_comes_first(write):
    write("seed: 1\nfederation: {num_rounds: 1, total_clients: 1}\n", "root.yaml")
    write("_base_: root.yaml\nseed: 2\n", "a.yaml")
    write("_base_: root.yaml\nfederation: {num_rounds: 3}\n", "b.yaml")
    got = load(write("_base_: [a.yaml, b.yaml]\n")).experiment
    assert (got.seed, got.federation.num_rounds, got.federation.total_clients) == (2, 3, 1)


def test_a_circle_is_refused_and_the_chain_is_named(write):
    write("_base_: b.yaml\n", "a.yaml")
    write("# c\n_base_: a.yaml\n", "b.yaml")
    told = refused("a.yaml")
    assert told == "b.yaml:2: _base_: the files inherit from one another in a circle: a.yaml -> b.yaml -> a.yaml"


def test_a_file_cannot_be_its_own_base(write):
    assert "circle: x.yaml -> x.yaml" in refused(write("_base_: ./x.yaml\n"))


def test_a_long_chain_is_refused(write):
    for i in range(30):
        write(f"_base_: {i + 1}.yaml\n", f"{i}.yaml")
    write("seed: 1\n", "30.yaml")
    assert "more than 20 files" in refused("0.yaml")


@pytest.mark.parametrize(
    ("base", "told"),
    [
        ("absent.yaml", "x.yaml:1: _base_: there is no file 'absent.yaml' in ."),
        (".", "there is no file '.'"),
        ('"a\\nb"', "must be the path of a file"),
        ("3", "must be the path of a file"),
        ("", "must be the path of a file"),
        ("[a, 3]", "must be the path of a file"),
        ("{a: b}", "must be the path of a file"),
        ("a" * 4000, "there is no file"),
    ],
)
def test_a_base_that_is_no_file_is_refused(write, base, told):
    assert told in refused(write(f"_base_: {base}\n"))


def test_a_base_cannot_be_set_on_the_command_line(write):
    assert "_base_ can only be set in a file" in refused(write("seed: 1\n"), ["_base_=a.yaml"])


def test_an_error_in_a_base_names_the_base(write):
    write("federation:\n  num_rounds: -3\n", "base.yaml")
    told = refused(write("_base_: base.yaml\n"))
    assert told == "base.yaml:2: federation.num_rounds: got -3; must be greater than 0"


def test_overrides_win_and_the_last_of_the_same_key_counts(write):
    path = write("federation: {num_rounds: 3}\n")
    got = load(path, ["federation.num_rounds=4", "training.lr=1", "federation.num_rounds=5"]).experiment
    assert (got.federation.num_rounds, got.training.lr) == (5, 1.0)


@pytest.mark.parametrize(
    ("section", "name", "option", "value"),
    [
        ("federation.algorithm", "fedprox", "mu", 0.5),
        ("data.partition", "topic_skew", "alpha", 0.1),
        ("federation.scheduler", "lite", "r_bar", 4.0),
        ("federation.scheduler", "fixed", "rank", 2),
    ],
)
@pytest.mark.parametrize("form", ["{}={}", "{}.name={}", "{}={{name: {}}}"])
def test_naming_the_component_that_the_file_names_keeps_its_options(write, section, name, option, value, form):
    top, own = section.split(".")
    path = write(f"{top}:\n  {own}: {{name: {name}, {option}: {value}}}\n")
    for given in ([form.format(section, name)], [form.format(section, name), "seed=3"]):
        got = load(path, given)
        assert getattr(getattr(got.experiment, top), own).options[option] == value
        assert got.notes == ()


def test_another_word_for_the_component_that_the_file_names_keeps_its_options(write):
    got = load(write(DIRICHLET), ["data.partition=dirichlet"])
    assert got.resolved["data"]["partition"] == {"name": "topic_skew", "alpha": 0.1, "convention": "topic"}


def test_naming_another_component_drops_the_options_and_says_so(write):
    path = write("federation: {algorithm: {name: fedprox, mu: 0.5}}\n")
    got = load(path, ["federation.algorithm=fedavg"])
    assert got.resolved["federation"]["algorithm"] == {"name": "fedavg"}
    assert got.notes == ("x.yaml:1: federation.algorithm.mu: 0.5 is dropped: command line chooses 'fedavg'",)


def test_an_option_on_top_of_a_plain_name_makes_a_mapping(write):
    path = write("federation: {algorithm: fedprox}\n")
    got = load(path, ["federation.algorithm.mu=0.1"])
    assert got.resolved["federation"]["algorithm"] == {"name": "fedprox", "mu": 0.1}


def test_options_of_the_old_method_do_not_leak_into_the_new(write):
    got = load(write(DIRICHLET), ["data.partition.name=iid"])
    assert got.resolved["data"]["partition"] == {"name": "iid"}
    assert "x.yaml:2: data.partition.alpha: 0.1 is dropped: command line chooses 'iid'" in got.notes


def test_the_same_method_keeps_its_options(write):
    got = load(write(DIRICHLET), ["data.partition.name=topic_skew", "data.partition.convention=x"])
    assert got.resolved["data"]["partition"] == {"name": "topic_skew", "alpha": 0.1, "convention": "x"}


def test_a_new_method_may_bring_its_own_options_in_the_same_layer(write):
    got = load(write(DIRICHLET), ["data.partition=topic_isolation", "data.partition.leak=0.1"])
    assert got.resolved["data"]["partition"] == {"name": "topic_isolation", "leak": 0.1}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("federation.clients_per_round=3", "federation.participation_rate=0.5"),
        ("federation.participation_rate=0.5", "federation.clients_per_round=3"),
        ("training.local_epochs=2", "training.local_steps=9"),
        ("training.local_steps=9", "training.local_epochs=2"),
    ],
)
def test_of_keys_that_exclude_each_other_the_later_layer_stays(write, before, after):
    (section, old), value = before.split("=")[0].split("."), before.split("=")[1]
    new = after.split("=")[0].split(".")[1]
    path = write(f"{section}:\n  {old}: {value}\n")
    got = load(path, [after]).resolved[section]
    assert got[old] is None
    assert got[new] is not None
    told = refused(path, [before, after])
    assert told.startswith(f"command line: {section}: give ")
    assert told.endswith(", not both")


def test_exclusive_keys_follow_inheritance_too(write):
    write("federation: {clients_per_round: 3}\n", "base.yaml")
    got = load(write("_base_: base.yaml\nfederation: {participation_rate: 0.5}\n")).experiment.federation
    assert (got.clients_per_round, got.participation_rate) == (None, 0.5)


def test_taking_one_key_away_with_null_keeps_the_other(write):
    path = write("federation: {participation_rate: 0.5}\n")
    assert load(path, ["federation.clients_per_round=null"]).experiment.federation.participation_rate == 0.5


def test_both_in_one_file_names_the_line(write):
    told = refused(write("federation:\n  num_rounds: 1\n  clients_per_round: 2\n  participation_rate: 0.5\n"))
    assert told == "x.yaml:4: federation: give clients_per_round or participation_rate, not both"


def test_an_empty_section_changes_nothing_but_null_is_refused(write):
    write("federation: {num_rounds: 3}\n", "base.yaml")
    assert load(write("_base_: base.yaml\nfederation: {}\n")).experiment.federation.num_rounds == 3
    told = "x.yaml:1: federation: got null; must be a section, with its own keys, as federation.total_clients"
    assert refused(write("federation:\n")) == told


@pytest.mark.parametrize(("section", "key"), [("data", "path"), ("clock", "trace")])
def test_a_path_is_relative_to_the_file_that_says_it_whoever_inherits(write, section, key):
    write("text\nOne\n", "deep/mine.csv")
    write("text\nOne\n", "here.csv")
    write(f"{section}: {{{key}: mine.csv}}\n", "deep/base.yaml")
    write("_base_: ../deep/base.yaml\n", "other/x.yaml")

    def get(*given):
        return os.path.normpath(load(*given).resolved[section][key])

    assert get("deep/base.yaml") == get("other/x.yaml") == "deep/mine.csv"
    assert get("other/x.yaml", [f"{section}.{key}=here.csv"]) == "here.csv"  # the command line is where it is typed
    assert get(write(f"{section}: {{{key}: here.csv}}\n")) == "here.csv"
    # As config.yaml of a run says it
    assert get(write(f"{section}: {{{key}: here.csv}}\n", "other/y.yaml")) == "here.csv"
    assert get(write(f"{section}: {{{key}: nowhere.csv}}\n", "other/z.yaml")) == "nowhere.csv"


def test_a_base_that_is_not_beside_the_file_is_a_shipped_configuration(write):
    write("_base_: quickstart.yaml\nseed: 7\n", "mine.yaml")
    found = load("mine.yaml").experiment
    assert (found.seed, found.data.dataset.name) == (7, load("quickstart").experiment.data.dataset.name)
    write("federation: {total_clients: 3}\n", "quickstart.yaml")  # a neighbour of the file comes first
    assert load("mine.yaml").experiment.federation.total_clients == 3


def test_a_base_that_is_nowhere_is_told_with_a_suggestion(write):
    write("_base_: quickstrat.yaml\n", "mine.yaml")
    assert "no shipped configuration of that name; did you mean 'quickstart'?" in refused("mine.yaml")


PATTERNS = "model: {lora: {rank_pattern: {q_proj: 4, k_proj: 2}}}\ndata: {columns: {prompt: q, completion: a}}\n"


def test_a_mapping_that_is_no_section_replaces_where_it_is_written_out(write):
    write(PATTERNS, "base.yaml")
    path = write("_base_: base.yaml\nmodel: {lora: {rank_pattern: {v_proj: 3}}}\ndata: {columns: {messages: m}}\n")
    got = load(path).experiment
    assert got.model.lora.rank_pattern == {"v_proj": 3}
    assert got.data.columns == {"messages": "m"}
    given = ["data={columns: {messages: t}}", "model.lora.rank_pattern={}"]
    got = load("base.yaml", given).experiment
    assert got.model.lora.rank_pattern == {}
    assert got.data.columns == {"messages": "t"}
    score = "evaluation: {stop_at: {loss: 2.0}, generate: 4}\ndata: {task_type: instruction}\n"
    assert load(write(score), ["evaluation.stop_at={exact_match: 0.9}"]).experiment.evaluation.stop_at == {
        "exact_match": 0.9
    }


def test_a_dotted_key_changes_one_entry_of_a_mapping(write):
    path = write(PATTERNS)
    pattern = "model.lora.rank_pattern"
    assert load(path, [f"{pattern}.q_proj=8"]).experiment.model.lora.rank_pattern == {"q_proj": 8, "k_proj": 2}
    twice = [f"{pattern}={{v_proj: 1}}", f"{pattern}={{o_proj: 5}}", f"{pattern}.q_proj=8"]
    assert load(path, twice).experiment.model.lora.rank_pattern == {"o_proj": 5, "q_proj": 8}
