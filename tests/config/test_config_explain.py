"""What is wrong is said of the place where it was written, and what was meant is said once."""

import pytest

from fedfault.config.explain import ELSEWHERE, explain_flag, list_sections
from refusals import refused

SKEWED = "data:\n  partition: {name: topic_skew, alpha: 0.1}\n"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("data.partition.alfa=1", "data.partition: partition 'topic_skew' has no option 'alfa'; did you mean 'alpha'?"),
        ("data.partition.x.y=3", "data.partition: partition 'topic_skew' has no option 'x'"),
        ("data.partition=topic_skw", "data.partition: no partition called 'topic_skw'; did you mean 'topic_skew'?"),
        ("data.partition.name=topic_skw", "data.partition: no partition called 'topic_skw'"),
        (
            "data.partition.alpha=much",
            "data.partition: partition 'topic_skew': alpha='much': Input should be a valid number",
        ),
        ("data.partitoin=iid", "no key 'partitoin' in section data; did you mean 'partition'?"),
        ("federation.clients_per_round=20", "federation: clients_per_round 20 is more than total_clients 4"),
    ],
)
def test_what_the_command_line_says_wrongly_is_not_blamed_on_the_file(write, setting, told):
    path = write(SKEWED + "federation:\n  clients_per_round: 2\n  total_clients: 4\n")
    assert refused(path, [setting]).startswith(f"command line: {told}")


def test_what_the_file_says_wrongly_is_not_blamed_on_the_command_line(write):
    path = write("data:\n  partition:\n    name: topic_skew\n    alfa: 0.1\n")
    for setting in ("data.partition=topic_skew", "data.partition.alpha=2", "data.partition.convention=x"):
        assert refused(path, [setting]).startswith(
            "x.yaml:4: data.partition: partition 'topic_skew' has no option 'alfa'"
        )


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr", "this one as training.lr=VALUE"),
        ("--learning-rate", "this one as training.lr=VALUE"),
        ("--training.lr", "this one as training.lr=VALUE"),
        ("--num-rounds", "this one as federation.num_rounds=VALUE"),
        ("--partition", "this one as data.partition=VALUE"),
        ("--seed", "this one as seed=VALUE"),
        ("--rounds", "this one as federation.num_rounds=VALUE"),
        ("--epochs", "this one as training.local_epochs=VALUE"),
        ("--batch-size", "this one as training.batch_size=VALUE"),
        ("--clients", "this one as federation.total_clients=VALUE"),
        ("--model", "those of model like model.name=VALUE"),
        ("--alpha", "this one as data.partition.alpha=VALUE"),
        ("--max-steps", "this one as training.local_steps=VALUE"),
        ("--num-supernodes", "this one as federation.total_clients=VALUE"),
        ("--help-me", "did you mean '--help'?"),
        ("--overwite", "did you mean '--overwrite'?"),
        ("--xyz", "settings are written key=value, like training.lr=1e-3"),
    ],
)
def test_a_flag_that_does_not_exist_is_told_what_it_means(flag, meant):
    told = explain_flag(flag, ["--overwrite", "--quiet", "-q"])
    assert told.startswith(f"no option {flag!r}; ")
    assert meant in told
    assert told.endswith("(options: --overwrite, --quiet, -q, --help)")
    assert told.count("did you mean") <= 1


@pytest.mark.parametrize("flag", ["--force", "--out", "--workers", "--version", "--gpu", "--debug", "--resume", "-v"])
def test_a_flag_that_is_like_nothing_gets_no_lead(flag):
    assert explain_flag(flag, ["--quiet"]) == (
        f"no option {flag!r}; settings are written key=value, like training.lr=1e-3 (options: --quiet, --help)"
    )


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("metrics.track_fairness=true", "no key 'track_fairness' in section metrics (known: updates,"),
        ("data.dirichlet_alpha=0.1", "no key 'dirichlet_alpha' in section data; did you mean 'alpha'? (known:"),
        ("federation.clients=3", "no key 'clients' in section federation; did you mean 'total_clients'?"),
        ("run_name=x", "no key 'run_name' at the top level; did you mean 'experiment_name'?"),
        ("training.learning_rate=1", "no key 'learning_rate' in section training; did you mean 'training.lr'?"),
        ("alpha=0.1", "no key 'alpha' at the top level; did you mean 'data.partition.alpha'?"),
        ("model.alpha=16", "no key 'alpha' in section model; did you mean 'model.lora.alpha'?"),
        ("dirichlet_alpha=0.1", "at the top level; did you mean 'data.partition.alpha'?"),
        ("model.lora.rank=4", "no key 'rank' in section model.lora; did you mean 'model.lora.r_max'?"),
        ("max_steps=4", "no key 'max_steps' at the top level; did you mean 'training.local_steps'?"),
        ("training.gradient_accumulation_steps=4", "did you mean 'training.gradient_accumulation'?"),
        ("model_name_or_path=gpt2", "did you mean 'model.name'?"),
        ("training.lr_scheduler_type=cosine", "did you mean 'training.lr_schedule'?"),
        ("strategy=fedavg", "did you mean 'federation.algorithm'?"),
        ("federation.fraction_fit=0.1", "did you mean 'federation.participation_rate'?"),
    ],
)
def test_what_is_suggested_for_a_key_is_near_it(setting, told):
    assert told in refused("quickstart", [setting])


def test_what_other_libraries_call_a_setting_is_one():
    for name, key in ELSEWHERE.items():
        *section, last = key.split(".")
        assert last in list_sections()[tuple(section)].model_fields, name
        assert f"did you mean {key!r}?" in refused("quickstart", [f"{name}=1"])


def test_a_key_of_two_sections_is_first_looked_for_below_the_one_that_it_stands_in():
    assert "did you mean 'personalise.lr'?" not in refused("quickstart", ["federation.lr=1"])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "data=mine.csv",
            "data: got 'mine.csv'; must be a section, with its own keys, as data.dataset; a file of data is",
        ),
        ("data=3", "data: got 3; must be a section, with its own keys, as data.dataset"),
        ("model=gpt2", "model: got 'gpt2'; must be a section, with its own keys, as model.name"),
        ("tiers=[1]", "tiers: got 1; must be a section, with its own keys"),
    ],
)
def test_a_value_in_the_place_of_a_section_is_told_a_key_of_it(setting, told):
    assert refused("quickstart", [setting]).startswith(f"command line: {told}")
