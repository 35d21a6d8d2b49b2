from fedfault.config import load
from fedfault.config.explain import list_sections
from fedfault.config.shorthand import CHOOSERS, KEYS, name_components
from refusals import refused

STUDY = """\
model:
  name: distilgpt2          # distilgpt2, gpt2, tinyllama, qwen-0.5b
  lora_r: 8                 # LoRA rank
  lora_alpha: 16            # LoRA alpha
  max_length: 128           # Sequence length

data:
  dataset: ag_news          # ag_news, wikitext
  partition_strategy: topic_skew
  num_clients: 10
  alpha: 0.1                # Dirichlet concentration

federated:
  algorithm: fedavg         # fedavg, fedprox, scaffold
  num_rounds: 50
  participation_rate: 1.0
  local_epochs: 1
  learning_rate: 5e-5
  mu: 0.01                  # FedProx only
"""

LITE = """\
_base_: "../base.yaml"
experiment_name: "lite_noniid_hard"
data:
  partition:
    method: "dirichlet"
    alpha: 0.1
federation:
  scheduler:
    type: "lite"
deadline:
  seconds: 90
"""


def test_the_study_in_short_keys_loads_completely(write):
    got = load(write(STUDY))
    e = got.experiment
    assert (e.model.name, e.model.lora.r_max, e.model.lora.alpha, e.model.max_length) == ("distilgpt2", 8, 16.0, 128)
    assert (e.data.dataset.name, e.data.partition.name, e.data.partition.options["alpha"]) == (
        "ag_news",
        "topic_skew",
        0.1,
    )
    assert (e.federation.total_clients, e.federation.num_rounds, e.federation.participation_rate) == (10, 50, 1.0)
    assert (e.federation.algorithm.name, e.federation.algorithm.options) == ("fedavg", {})
    assert (e.training.local_epochs, e.training.lr) == (1, 5e-5)
    assert "x.yaml:19: mu: 0.01 is not used: algorithm 'fedavg' takes no mu" in got.notes
    assert got.notes[0].startswith("x.yaml: short keys: model.lora_r is model.lora.r_max, ")


def test_a_loose_mu_serves_the_algorithm_that_takes_one(write):
    path = write(STUDY.replace("mu: 0.01", "mu: 0.3"))
    got = load(path, ["federation.algorithm=fedprox"])
    assert got.experiment.federation.algorithm.options == {"mu": 0.3}
    assert not any("not used" in note for note in got.notes)


def test_a_loose_alpha_beside_iid_is_dropped_with_a_note(write):
    got = load(write(STUDY), ["data.partition_strategy=iid"])
    assert got.resolved["data"]["partition"] == {"name": "iid"}
    assert "x.yaml:11: alpha: 0.1 is not used: partition 'iid' takes no alpha" in got.notes


def test_a_canonical_option_that_the_component_lacks_is_an_error(write):
    path = write("seed: 1\n")
    told = refused(path, ["federation.algorithm.mu=0.1"])
    assert told.startswith("command line: federation.algorithm: algorithm 'fedavg' has no option 'mu'")


def test_a_run_of_the_rank_scheduling_harness_loads_as_it_is_printed(write):
    write("experiment_name: base\n", "configs/base.yaml")
    got = load(write(LITE, "configs/experiments/lite_noniid_deadline.yaml")).experiment
    assert (got.federation.scheduler.name, got.deadline.limit) == ("lite", 90.0)
    assert got.federation.scheduler.options == {**got.federation.scheduler.options, "r_bar": 8.0, "ema_alpha": 0.3}


def test_method_and_type_are_the_name_of_a_component_without_a_note(write):
    path = write("federation: {aggregation: {method: fedit}, scheduler: {type: lite, r_bar: 6}}\n")
    got = load(path, ["data.partition.method=topic_skew", "data.partition.alpha=1"])
    assert got.resolved["data"]["partition"] == {"name": "topic_skew", "alpha": 1.0, "convention": "topic"}
    assert got.resolved["federation"]["scheduler"]["name"] == "lite"
    assert got.notes == ()
    assert "contradict" in refused(path, ["data.partition.method=topic_skew", "data.partition.name=iid"])


def test_only_the_name_of_a_component_is_renamed_in_plain_settings():
    old = {
        "seed": 0,
        "data": {"partition": {"method": "token_skew", "type": "stopwords"}},
        "federation": {"scheduler": 3},
    }
    new = {**old, "data": {"partition": {"name": "token_skew", "type": "stopwords"}}}
    assert name_components(old) == name_components(new) == new


def test_dirichlet_is_topic_skew_with_a_note(write):
    path = write("data: {partition: {method: dirichlet, alpha: 0.2}}\n")
    for arguments in ([], ["data.partition=dirichlet"], ["data.partition_strategy=dirichlet"]):
        got = load(path, arguments)
        assert got.experiment.data.partition.name == "topic_skew"
        assert any("data.partition.name: 'dirichlet' is 'topic_skew'" in note for note in got.notes)


def test_either_form_overrides_the_other(write):
    short, long = write("model: {lora_r: 2}\n", "s.yaml"), write("model: {lora: {r_max: 2}}\n", "l.yaml")
    for path in (short, long):
        for override in ("model.lora_r=4", "model.lora.r_max=4"):
            assert load(path, [override]).experiment.model.lora.r_max == 4


def test_both_forms_in_one_layer_must_agree(write):
    path = write("model:\n  lora_r: 4\n  lora: {r_max: 4}\n")
    assert load(path).experiment.model.lora.r_max == 4
    told = refused(write("model:\n  lora_r: 4\n  lora:\n    r_max: 8\n"))
    assert told == (
        "x.yaml:4: model.lora.r_max and model.lora_r (x.yaml:2) contradict each other: "
        "both set model.lora.r_max; keep one of them"
    )
    assert "contradict" in refused(path, ["federated.learning_rate=1", "training.lr=2"])
    assert "contradict" in refused(path, ["model.lora=3", "model.lora.r_max=2"])


def test_short_keys_that_exclude_each_other_behave_like_the_long_ones(write):
    path = write("federated: {participation_rate: 0.5}\n")
    got = load(path, ["federation.clients_per_round=2"]).experiment.federation
    assert (got.clients_per_round, got.participation_rate) == (2, None)


def test_every_row_of_the_table_leads_to_a_key_of_the_schema():
    for short, key in KEYS.items():
        *section, name = key.split(".")
        known = list_sections()[tuple(section)].model_fields
        assert name in known or tuple(section) in CHOOSERS, key
        assert short not in KEYS.values()
