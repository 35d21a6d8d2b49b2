from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfault.config import load, reference
from fedfault.config.files import dump
from fedfault.config.shipped import find_configuration, list_configurations
from fedfault.errors import UserError
from refusals import refused

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("federation: {num_rounds: -3}", "x.yaml:1: federation.num_rounds: got -3; must be greater than 0"),
        ("federation: {num_rounds: 2.0}", "federation.num_rounds: got 2.0; must be an integer"),
        ("federation: {num_rounds: true}", "federation.num_rounds: got true; must be an integer"),
        ("federation: {num_rounds: '3'}", "federation.num_rounds: got '3'; must be an integer"),
        ("training: {lr: .inf}", "training.lr: got inf; must be a finite number"),
        ("training: {lr: null}", "training.lr: got null; must be a number"),
        ("training: {clients_per_pass: x}", "training.clients_per_pass: got 'x'; must be an integer or 'auto'"),
        ("model: {quantization: nf4}", "model.quantization: got 'nf4'; must be 'none', '8bit' or '4bit'"),
        ("model: {trainable: all}", "model.trainable: got 'all'; must be 'lora' or 'partial'"),
        ("model: {lora: {target_modules: [a, 1]}}", "model.lora.target_modules: got 1; must be a string"),
        ("model: {name: {a: {b: 1}}}", "x.yaml:1: model.name: got {'a': {'b': 1}}; must be a string"),
        ("model: gpt2", "x.yaml:1: model: got 'gpt2'; must be a section, with its own keys, as model.name"),
        ("federation: {algorithm: 3}", "federation.algorithm: got 3; must be a section"),
        ("federation: {algorithm: {name: 3}}", "federation.algorithm.name: got 3; must be a string"),
        ("federation: {algorithm: fedporx}", "algorithm: no algorithm called 'fedporx'; did you mean 'fedprox'?"),
        (
            "federation: {algorithm: {name: fedprox, muu: 1}}",
            "algorithm 'fedprox' has no option 'muu'; did you mean 'mu'?",
        ),
        (
            "federation: {algorithm: {name: fedprox, mu: x}}",
            "x.yaml:1: federation.algorithm: algorithm 'fedprox': mu='x'",
        ),
        ("data: {partition: topic_skw}", "x.yaml:1: data.partition: no partition called 'topic_skw'; did you mean"),
        ("data: {dataset: agnews}", "x.yaml:1: data.dataset: no corpus called 'agnews'; did you mean 'ag_news'?"),
        ("data: {text_columns: body}", "data.text_columns: got 'body'; must be a list, as [body]"),
        ("experiment_name: ../x", "experiment_name: got '../x'; must match"),
        ("experiment_name: " + "x" * 200, "experiment_name: got 'xxx"),
        (
            "federation: {num_round: 3}",
            "x.yaml:1: no key 'num_round' in section federation; did you mean 'num_rounds'? (k",
        ),
        ("num_rounds: 3", "x.yaml:1: no key 'num_rounds' at the top level; did you mean 'federation.num_rounds'?"),
        ("training: {num_rounds: 3}", "no key 'num_rounds' in section training; did you mean 'federation.num_rounds'?"),
        ("lora_r: 3", "no key 'lora_r' at the top level; did you mean 'model.lora.r_max'?"),
        ("model: {lora_dropout: 0.1}", "no key 'lora_dropout' in section model; did you mean 'model.lora.dropout'?"),
        ("model: {lora: {r: 4}}", "no key 'r' in section model.lora; did you mean 'r_max'?"),
        ("federated: {lr: 1}", "no key 'lr' in section federated; did you mean 'training.lr'?"),
        (
            "federated: {num_clients: 3}",
            "no key 'num_clients' in section federated; did you mean 'federation.total_clients'?",
        ),
        ("federaton: {num_rounds: 3}", "no key 'federaton' at the top level; did you mean 'federation'?"),
        (
            "federation: {scheduler: {tpe: x}}",
            "x.yaml:1: federation.scheduler: scheduler 'fixed' has no option 'tpe'",
        ),
        ("federated: {num_round: 3}", "x.yaml:1: no key 'num_round' in section federated; did you mean 'num_rounds'?"),
        ("federated: 3", "x.yaml:1: no key 'federated' at the top level"),
        ("federation.num_rounds: 3", "dotted keys are for the command line"),
        ("<<: {seed: 1}", "no key '<<' at the top level"),
        ("x" * 1000 + ": 1", "no key 'xxx"),
    ],
)
def test_a_bad_setting_says_where_what_and_what_is_allowed(write, text, told):
    assert told in refused(write(text + "\n"))


def test_tiers_are_a_list_or_a_mapping_that_other_files_can_change(write):
    write("tiers:\n  fast: {count: 3}\n  slow: {count: 7, compute_factor: 0.1}\n", "base.yaml")
    got = load(write("_base_: base.yaml\n"), ["tiers.fast.count=5", "tiers.slow.count=5"]).experiment.tiers
    assert [(t.name, t.count, t.compute_factor) for t in got] == [("fast", 5, 1.0), ("slow", 5, 0.1)]
    listed = write("tiers:\n  - {name: fast, count: 5}\n  - {name: slow, count: 5, compute_factor: 0.1}\n")
    assert load(listed).experiment.tiers == got


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tiers: [{name: a, count: -1}]", "x.yaml:1: tiers.count: got -1; must be greater than or equal to 0"),
        ("tiers: {a: {count: 1, speed: 2}}", "x.yaml:1: no key 'speed' in section tiers; did you mean 'seed'? (k"),
        ("tiers: {a: 3}", "x.yaml:1: tiers: got 3; must be a section"),
        ("deadline: {seconds: 0}", "x.yaml:1: deadline.seconds: got 0; must be greater than 0"),
        ("deadline: {straggler_policy: kill}", "must be 'drop', 'wait' or 'use_partial'"),
        ("clock: sundial", "x.yaml:1: clock.mode: got 'sundial'; must be 'modelled' or 'measured'"),
        ("model: {lora: {r_min: 9, r_max: 8}}", "model.lora: r_min 9 is above r_max 8; ranks need 1 <= r_min <= r_max"),
        ("federation: {scheduler: light}", "no scheduler called 'light'; did you mean 'lite'?"),
        ("federation: {scheduler: {type: lite, rbar: 4}}", "has no option 'rbar'; did you mean 'r_bar'?"),
    ],
)
def test_a_bad_tier_deadline_clock_or_scheduler_is_refused(write, text, told):
    assert told in refused(write(text + "\n"))


def test_a_clock_by_its_mode_alone(write):
    assert load(write("clock: measured\n")).experiment.clock.mode == "measured"
    assert load(write("clock: {trace: x.csv}\n"), ["clock=measured"]).experiment.clock.trace is None


@pytest.mark.parametrize(("section", "key"), [("evaluation", "general"), ("detectors", "calibration")])
def test_a_file_that_is_named_lies_beside_the_one_that_names_it(write, section, key):
    beside = write("texts", "named.txt")
    found = load(write(f"{section}: {{{key}: named.txt}}\n")).experiment
    assert getattr(getattr(found, section), key) == str(beside)


def test_everything_that_is_wrong_is_listed(write):
    told = refused(
        write("seed: -1\nmodle: {}\nfederation:\n  algorithm: nothing\n"), ["training.lr=fast", "data.dataset=none"]
    )
    assert [line.split(": ")[0] for line in sorted(told.splitlines())] == [
        "command line",
        "command line",
        "x.yaml:1",
        "x.yaml:2",
        "x.yaml:4",
    ]


def test_an_error_across_layers_names_the_later_one(write):
    told = refused(write("federation: {total_clients: 4}\n"), ["federation.clients_per_round=5"])
    assert told == "command line: federation: clients_per_round 5 is more than total_clients 4"


def test_a_whole_number_may_stand_for_a_float_in_component_options(write):
    got = load(write("federation: {algorithm: {name: fedprox, mu: 1}}\n")).resolved["federation"]["algorithm"]
    assert got == {"name": "fedprox", "mu": 1.0}
    assert type(got["mu"]) is float


def test_no_file_is_the_quickstart():
    e = load(None).experiment
    assert (e.experiment_name, e.model.name, e.data.dataset.name) == ("quickstart", "micro", "registers")
    assert (e.data.partition.name, e.federation.algorithm.name) == ("topic_isolation", "fedavg")
    assert (e.federation.total_clients, e.federation.participation_rate, e.federation.num_rounds) == (10, 0.3, 12)
    assert (e.model.lora.r_max, e.model.lora.alpha, e.model.max_length) == (8, 16.0, 64)
    assert (e.training.local_steps, e.training.batch_size) == (15, 8)
    assert (e.training.optimizer, e.training.lr) == ("adamw", 0.003)


def test_the_default_is_the_study_on_distilgpt2():
    e = load("default").experiment
    assert (e.model.name, e.model.lora.r_max, e.model.lora.alpha, e.model.max_length) == ("distilgpt2", 8, 16.0, 128)
    assert (e.data.dataset.name, e.data.partition.name, e.data.partition.options["alpha"]) == (
        "ag_news",
        "topic_skew",
        0.1,
    )
    assert (e.federation.total_clients, e.federation.cohort_size, e.federation.num_rounds) == (10, 10, 50)
    assert (e.federation.algorithm.name, e.training.local_epochs, e.training.lr) == ("fedavg", 1, 5e-5)


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "./configs/quickstart"])
def test_a_shipped_configuration_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_configuration(name).is_file()


def test_an_existing_file_wins_over_a_shipped_one_and_a_folder_does_not(write):
    write("seed: 7\n", "quickstart")
    assert load("quickstart").experiment.seed == 7
    write("seed: 7\n", "default/x.yaml")
    assert load("default").experiment.experiment_name == "default"


@pytest.mark.parametrize("name", ["quickstrat", "../quickstart", "", "a\0b", "x" * 5000, "/etc", "\udc80", "**"])
def test_a_name_that_is_nothing_lists_what_is_shipped(name):
    told = refused(name)
    assert told.endswith(f"(shipped: {', '.join(list_configurations())})")
    assert ("did you mean 'quickstart'?" in told) == ("quickst" in name)


@pytest.mark.parametrize("name", list_configurations())
def test_every_shipped_configuration_loads_and_its_resolved_form_loads_the_same(monkeypatch, tmp_path, name):
    monkeypatch.undo()  # the registry as it is
    got = load(name)
    assert not [note for note in got.notes if "not used" in note or "short keys" in note]
    file = tmp_path / "x.yaml"
    file.write_text(dump(got.resolved))
    again = load(file)
    assert again.experiment == got.experiment
    assert again.resolved == got.resolved
    assert again.notes == ()


words = st.text(min_size=1, max_size=6).filter(lambda text: "\0" not in text)
choices = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "model": st.fixed_dictionaries({"name": words}),
        "data": st.fixed_dictionaries({"text_columns": st.lists(words, max_size=2), "topic_column": words}),
        "training": st.fixed_dictionaries(
            {"lr": st.floats(1e-12, 1e12), "clients_per_pass": st.sampled_from(["auto", 3])}
        ),
        "federation": st.fixed_dictionaries(
            {
                "algorithm": st.one_of(
                    st.just("fedavg"), st.fixed_dictionaries({"name": st.just("fedprox"), "mu": st.floats(0, 1)})
                )
            }
        ),
    },
).filter(bool)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices)
def test_the_resolved_form_of_any_experiment_loads_as_an_equal_one(write, chosen):
    got = load(write(dump(chosen)))
    assert load(write(dump(got.resolved), "y.yaml")).experiment == got.experiment


def test_the_reference_page_is_the_one_in_docs():
    told = "run: python -m fedfault.config.reference > docs/configuration.md"
    assert DOCS.read_text(encoding="utf-8") == reference.build_page(), told


def test_every_key_has_a_meaning_in_the_reference_page():
    assert "|  |\n| `" not in reference.build_page().partition("## Layers")[0]


def test_the_switches_of_an_old_run_are_written_again_as_they_were(write):
    """Records have the numbers of the probes in this order; what came later stands behind them."""
    switches = {"updates": True, "gradients": False, "ranks": True, "aggregation": True, "representation": False}
    switches |= {"attention": True, "memory": True, "generation": False}
    path = write("metrics:\n" + "".join(f"  {name}: {str(on).lower()}\n" for name, on in switches.items()))
    assert list(load(path).resolved["metrics"].items())[: len(switches)] == list(switches.items())


OWN = [["data.path=mine.csv"], ["data.dataset=ag_news"], ["data.dataset.name=ag_news"], ["data={dataset: ag_news}"]]


@pytest.mark.parametrize("given", OWN)
def test_other_data_without_a_configuration_start_from_the_defaults_and_it_is_said(given):
    got = load(None, [*given, "seed=3"])
    e = got.experiment
    assert (e.federation.participation_rate, e.data.partition.name, e.training.lr) == (None, "iid", 5e-4)
    assert (e.training.local_steps, e.experiment_name, e.seed) == (None, "run", 3)
    assert got.notes[0].startswith("no configuration is named and the data are not the packaged ones")
    named = load("quickstart", given).experiment
    assert (named.federation.participation_rate, named.training.lr) == (0.3, 3e-3)


@pytest.mark.parametrize("given", [[], ["data.dataset=registers"], ["data.path=null"], ["data.max_samples=50"]])
def test_the_packaged_data_without_a_configuration_are_the_quickstart(given):
    got = load(None, given)
    assert (got.experiment.experiment_name, got.experiment.training.lr) == ("quickstart", 3e-3)
    assert got.notes == ()


def test_one_name_alone_is_a_list_of_targets(write):
    lora = load(write("model: {lora: {target_modules: q_proj}}\n")).experiment.model.lora
    assert lora.target_modules == ["q_proj"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["training.lr_schedule=cosine"], "lr_schedule=cosine needs min_lr"),
        (["training.min_lr=1e-6"], "min_lr=1e-06 is the end of a schedule"),
        (
            ["training.lr_schedule=linear", "training.lr=1e-5", "training.min_lr=1e-4"],
            "min_lr=0.0001 is above lr=1e-05",
        ),
        (["training.optimizer=sgd", "training.weight_decay=0.1"], "weight_decay and betas are AdamW's"),
        (
            ["model.trainable=partial", "model.lora.r_max=2"],
            "lora.r_max=2 is not used with trainable=partial; leave it",
        ),
        (["model.trainable=partial", "model.lora.init=gaussian"], r"(its default is uniform), or set trainable=lora"),
        (["model.partial.last_blocks=0"], "partial.last_blocks=0 is not used with trainable=lora"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(given, said):
    with pytest.raises(UserError) as e:
        load("quickstart", given)
    assert said in str(e.value)


@pytest.mark.parametrize("words", [["data.path=mine.jsonl"], ["data.path=mine.jsonl", "data.task_type=instruction"]])
@pytest.mark.parametrize("name", [None, "quickstart"])
def test_a_path_without_a_corpus_is_of_the_user_s_own_texts(name, words):
    """With a note; the packaged corpus, which is the default, takes no path."""
    loaded = load(name, words)
    assert loaded.experiment.data.dataset.name == "text"
    assert "command line: data.path without data.dataset: data.dataset is text" in loaded.notes


def test_a_corpus_that_is_named_stays_beside_a_path():
    assert load(None, ["data.path=x", "data.dataset=ag_news"]).experiment.data.dataset.name == "ag_news"
    assert load(None, ["data.dataset=registers", "data.path=x"]).experiment.data.dataset.name == "registers"
    assert load(None, ["data.path=null"]).experiment.data.dataset.name == "registers"


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ("[[yes]]", "needs two answers in each group"),
        ("[[a, b], [b, c]]", "has 'b' more than once"),
        ("[[a, b]]", "evaluation.choices is about answers, and none are made: set evaluation.generate=N"),
    ],
)
def test_choices_are_of_questions_that_are_asked(choices, why):
    with pytest.raises(UserError, match=why):
        load(None, ["data.task_type=instruction", f"evaluation.choices={choices}"])


@pytest.mark.parametrize("task", ["instruction", "preference"])
def test_conversations_have_room_by_default(task):
    """Published recipes' 512 tokens, and whatever is said."""
    loaded = load(None, [f"data.task_type={task}", "data.path=x.jsonl"])
    assert loaded.experiment.model.max_length == loaded.resolved["model"]["max_length"] == 512
    assert f"command line: data.task_type={task} without model.max_length: 512 tokens of a conversation" in loaded.notes
    said = load(None, [f"data.task_type={task}", "data.path=x.jsonl", "model.max_length=90"])
    assert said.experiment.model.max_length == 90
    general = [one.experiment.evaluation.general_blocks for one in (loaded, said)]
    assert general == [16, 91]  # of about 8,192 tokens, as 128 blocks of 64 have
    few = load(None, [f"data.task_type={task}", "data.path=x.jsonl", "evaluation.general_blocks=7"])
    assert few.experiment.evaluation.general_blocks == 7
    assert load(None, ["data.path=x.jsonl"]).experiment.model.max_length == 64


def test_a_file_of_data_is_told_from_a_configuration_and_from_a_corpus(tmp_path):
    file = tmp_path / "my.csv"
    file.write_text("text,label\nhello,a\n")
    with pytest.raises(
        UserError, match=r"my.csv' is no configuration; a file of data is read by data.dataset=text data.path="
    ):
        load(file, [])
    with pytest.raises(UserError, match=r"a file of data is read by data.dataset=text data.path=my.jsonl"):
        load("quickstart", ["data.dataset=my.jsonl"])


@pytest.mark.parametrize("name", ["hf://datasets/stanfordnlp/imdb", "stanfordnlp/imdb"])
def test_a_data_set_of_the_hub_in_the_place_of_a_corpus_is_told_how_it_is_read(name):
    with pytest.raises(UserError, match=r"is read by data.dataset=text data.path=hf://datasets/stanfordnlp/imdb"):
        load("quickstart", [f"data.dataset={name}"])
    with pytest.raises(UserError, match=r"is read by data.dataset=text data.path=hf://datasets/ORG/imdb"):
        load("quickstart", ["data.dataset=imdb"])


def test_the_folder_of_a_run_in_the_place_of_a_configuration_is_told_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "quickstart").mkdir(parents=True)
    (tmp_path / "results" / "quickstart" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError) as caught:
        load("results/quickstart", [])
    assert str(caught.value) == (
        "'results/quickstart' is a folder, not a configuration file: the settings of that run are in "
        "results/quickstart/config.yaml, and `fedfault resume results/quickstart` goes on with it"
    )


@pytest.mark.parametrize(
    "word",
    [
        "training.lr=1e300",
        "personalise={steps: 1, lr: 1e300}",
        "training.weight_decay=1e300",
        "training.lr_ratio=1e39",
        "model.lora.alpha=1e300",
        "model.lora.alpha_pattern={q: 1e39}",
    ],
)
def test_what_single_precision_cannot_hold_is_refused_with_its_key(word):
    with pytest.raises(UserError, match=rf"{word.partition('=')[0]}.* is too large for single precision"):
        load("quickstart", [word])
