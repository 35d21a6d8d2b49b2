"""All data in one place, as a run like any other."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace

import pytest
import torch

from chatting import write_rows
from fedfault.backbones.load import MICRO, load_backbone
from fedfault.config import load
from fedfault.errors import UserError
from fedfault.rounds.engine import begin, rounds
from fedfault.runs.read import read_run
from fedfault.session.progress import Progress
from fedfault.session.start import resume_run
from fedfault.setup.combinations import check_parts
from fedfault.setup.experiment import prepare
from fedfault.setup.federation import centralise
from fedfault.setup.model import open_model
from fedfault.setup.preview import preview
from fedfault.testing.toys import LowRank, federation
from fedfault.types.task import Step
from small import SMALL, start

ONE = torch.ones(1, 1, dtype=torch.bool)


def small(folder, *words):
    return load("quickstart", [*SMALL, "federation.num_rounds=2", f"logging.results_dir={folder}", *words])


def test_the_split_of_a_run_with_attacks_is_measured_anew(monkeypatch):
    """Attacks may change texts: what was measured of the same split without them is not taken from the cache."""
    keys, whole = [], prepare(small("unused").experiment)
    monkeypatch.setattr("fedfault.setup.experiment.load_or_measure", lambda *given: keys.append(given[4]) or {})
    for attacks in ("[]", "[{name: backdoor, by: 1}]", "[{name: backdoor, by: 2}]"):
        replace(whole, config=small("unused", f"attacks={attacks}").experiment).heterogeneity()
    assert len({repr(key) for key in keys}) == 3


@contextlib.contextmanager
def default(dtype=torch.float32, device=None):
    """Within the block, what torch makes is of another kind or elsewhere."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize(
    ("around", "told"),
    [
        (torch.no_grad(), "gradients are switched off here"),
        (torch.inference_mode(), "gradients are switched off here"),
        (
            default(torch.float64),
            r"numbers of torch\.float64 by default; call torch\.set_default_dtype\(torch\.float32\)",
        ),
        (default(device="meta"), r"numbers on meta by default; call torch\.set_default_device\(None\)"),
    ],
    ids=["no_grad", "inference_mode", "dtype", "device"],
)
def test_a_program_that_has_switched_torch_to_something_else_is_told(around, told):
    exp = small("unused").experiment
    with around, pytest.raises(UserError, match=told):
        prepare(exp)


@pytest.mark.slow
def test_central_training_has_all_rows_and_the_steps_of_all_cohorts():
    apart = prepare(small("unused").experiment)
    p = prepare(small("unused", "federation.centralised=true").experiment, like=apart)
    fed, records = p.federation, [r for _, r in rounds(apart.federation, begin(apart.federation))]
    assert fed.task.examples(0) == sum(len(b) for b in p.split.train)
    assert fed.task.tokens(0) == sum(b.num_tokens for b in p.split.train)
    *_, (_, last) = rounds(fed, begin(fed))
    assert [(c.client, c.steps) for c in last.clients] == [
        (0, -(-sum(c.steps for r in records for c in r.clients) // 2))
    ]
    assert set(last.scores) == set(records[-1].scores)


def test_steps_that_do_not_divide_by_the_rounds_are_rounded_up():
    fed = federation(LowRank(), cohort_size=6, num_rounds=4, work={"steps": None, "epochs": 1, "batch_size": 4})
    steps = [-(-fed.task.examples(k) // 4) for k in range(6)]
    central = centralise(fed, [fed.task.examples(k) for k in range(6)])
    assert (central.work.steps, central.work.epochs) == (sum(steps), None)
    one = centralise(federation(LowRank(), cohort_size=1, num_rounds=4, work={"steps": 3}), [5] * 6)
    assert (one.work.steps, one.total_clients, one.cohort_size) == (3, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["causal_lm", "classification"])
def test_the_rows_of_central_training_are_those_of_the_clients_in_order(task):
    apart = prepare(small("unused", f"data.task_type={task}").experiment)
    central = prepare(small("unused", f"data.task_type={task}", "federation.centralised=true").experiment, like=apart)
    x = apart.model.init(0).flat[None]
    own = apart.federation.task.grad(x, Step(torch.tensor([1]), torch.tensor([[2]]), ONE))
    place = torch.tensor([[len(apart.split.train[0]) + 2]])
    pooled = central.federation.task.grad(x, Step(torch.tensor([0]), place, ONE))
    assert all(torch.equal(a, b) for a, b in zip(own, pooled, strict=True))


@pytest.mark.slow
@pytest.mark.long
def test_a_central_run_is_resumed_and_reported_like_any_other(tmp_path):
    whole = start(tmp_path, "federation.centralised=true", "experiment_name=central", draw=False)
    before = whole.read_records()
    for t in (2, 3):
        for suffix in (".json", ".safetensors"):
            (whole.checkpoints / f"round-{t:05d}{suffix}").unlink()
    again = resume_run(whole.path, Progress(quiet=True))
    assert [r.scores for r in again.read_records()] == [r.scores for r in before]
    page = (whole.path / "report.html").read_text()
    assert "All training data were in one place" in page
    assert not [said for said in ("Traffic", "The cells below", "clients in each") if said in page]
    assert not (whole.path / "plots/participation.png").exists()
    assert read_run(whole.path).topics_trained(again.read_records()[-1]) == [None]


@pytest.mark.parametrize("aggregation", ["{name: fltrust, trusted: 2}", "{name: fltrust, trusted: 1}"])
def test_an_aggregation_that_needs_several_clients_is_refused_where_one_has_all_data(aggregation):
    """It trained nothing, to the last round, without a word."""
    with pytest.raises(UserError, match="client 0 has all data; use fedit"):
        check_parts(small("unused", "federation.centralised=true", f"federation.aggregation={aggregation}").experiment)


@pytest.mark.parametrize("part", ["algorithm=ditto", "algorithm=ifca", "aggregation=fedsa_lora"])
def test_models_of_clients_own_are_refused_where_one_has_all_data(part):
    """They ended in a traceback when the other clients' models were scored."""
    with pytest.raises(UserError, match=r"gives clients models of their own, and with federation\.centralised=true"):
        check_parts(small("unused", "federation.centralised=true", f"federation.{part}").experiment)


@pytest.mark.slow
def test_the_preview_of_central_training_says_so():
    said = preview(small("unused", "federation.centralised=true"))
    assert "fedavg, 2 rounds, all data in one place, 4 steps of 2 blocks" in said
    assert "traffic     none" in said


@pytest.mark.parametrize(
    "setting",
    ["tiers={a: {count: 3}}", "deadline.seconds=9", "federation.scheduler={name: fixed, ranks: [1, 2, 4]}"],
)
def test_hardware_of_clients_is_refused_where_there_are_none(setting):
    with pytest.raises(UserError, match=r"federation\.centralised=true has one client .* leave out tiers, deadline"):
        prepare(small("unused", "federation.centralised=true", setting).experiment)


def of_texts(folder, lines, *words):
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    own = [f"data.path={file}", "data.dataset=text", "data.text_columns=[text]", "evaluation.general=none"]
    few = ["federation.total_clients=2", "data.partition=iid", "model.max_length=16"]
    return load("quickstart", [*own, *few, *words]).experiment


LINES = [f"Here is line {i}, which is about the number {i * i} and nothing else." for i in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "words", "told"), [(True, [], 0), (False, [], 1), (False, ["training.activation_cache_mb=0"], 0)]
)
def test_a_model_that_is_trained_without_the_activation_cache_is_told(tmp_path, monkeypatch, right, words, told):
    monkeypatch.setattr("fedfault.backbones.prefix.Prefix.is_right", lambda *given: right)
    said = []
    prepare(of_texts(tmp_path, LINES, "model.trainable=partial", *words), say=said.append)
    assert sum("no activation cache" in line for line in said) == told


@pytest.mark.slow
def test_a_document_that_spells_out_the_separator_is_told(tmp_path):
    said = []
    prepare(of_texts(tmp_path, LINES), say=said.append)
    assert not any("spell out" in line for line in said)
    prepare(of_texts(tmp_path, [f"{LINES[0]}<|endoftext|>and more", *LINES[1:]]), say=said.append)
    assert [line for line in said if "spell out" in line] == [
        "documents that spell out the token which stands between documents, and so count as several: 1"
    ]


@pytest.mark.slow
def test_a_token_without_an_embedding_is_refused_before_training(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(MICRO).save_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(MICRO)
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path / "m")
    name = f"model.name={tmp_path / 'm'}"
    assert prepare(of_texts(tmp_path, LINES, name)).backbone.name
    with pytest.raises(UserError, match=r"token 4096 \('zebra'\), but the model has 4096 embeddings"):
        prepare(of_texts(tmp_path, [f"{line} A zebra." for line in LINES], name))


@pytest.mark.slow
def test_a_table_of_embeddings_that_clients_train_has_its_tokens_checked_too(tmp_path):
    """It is opened up for clients before their texts are."""
    changes = ["model.trainable=partial", "model.partial.last_blocks=0", "model.partial.modules=[embed_tokens]"]
    p = prepare(of_texts(tmp_path, LINES, *changes))
    assert [site.shape for site in p.model.layout.sites] == [(4096, 128)]


def test_a_pair_that_an_alarm_would_lead_to_is_refused_before_anything_is_loaded():
    said: list[str] = []
    exp = load("quickstart", ["federation.on_failure=cluster", "federation.aggregation=flora"]).experiment
    with pytest.raises(UserError, match=r"clustered cannot be combined with federation\.aggregation=flora"):
        prepare(exp, said.append)
    assert said == []


@pytest.mark.slow
def test_every_tier_prefers_against_the_base_that_it_trains_on(tmp_path, monkeypatch):
    """Before training every pair costs log 2, also where a tier's copy of the backbone is quantised."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"which is {i}?", "chosen": f"it is {i}", "rejected": "who knows"} for i in range(24)]
    file = write_rows(tmp_path / "pairs.jsonl", rows)
    exp = small(
        tmp_path, "data.dataset=text", f"data.path={file}", "data.task_type=preference", "data.partition=iid",
        "model.max_length=64", "model.precision=fp32", "evaluation.general=none",
        "tiers={fine: {count: 2}, coarse: {count: 1, quantization: 4bit}}",
    ).experiment  # fmt: skip
    task = prepare(exp).task
    steps = [Step(torch.tensor([k]), torch.zeros(1, 1, dtype=torch.int64), ONE) for k in range(3)]
    losses = [float(task.grad(task.init(0).flat[None], step)[0]) for step in steps]
    assert losses == pytest.approx([math.log(2)] * 3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("scaling", "expected"), [("alpha/r", 12 / 9), ("alpha/sqrt(r)", 12 / 3)])
def test_the_update_is_scaled_by_the_rank_or_by_its_root(scaling, expected):
    """As PEFT has it without and with use_rslora."""
    exp = load(None, ["model.lora.r_max=9", "model.lora.alpha=12", f"model.lora.scaling={scaling}"]).experiment
    assert open_model(exp, load_backbone("micro")).layout.scaling == pytest.approx(expected)


@pytest.mark.slow
def test_modules_have_ranks_and_scalings_of_their_own():
    """The root of the rank is that of the module."""
    words = ["model.lora.r_max=9", "model.lora.alpha=12", "model.lora.scaling=alpha/sqrt(r)"]
    patterns = ["model.lora.rank_pattern={q_proj: 4}", "model.lora.alpha_pattern={'0.self_attn.v_proj': 6}"]
    layout = open_model(load(None, words + patterns).experiment, load_backbone("micro")).layout
    found = {s.name.removeprefix("model.layers."): (s.shape[0], layout.scale(s)) for s in layout.lora}
    assert found["1.self_attn.q_proj"] == (4, pytest.approx(12 / 2))
    assert found["0.self_attn.v_proj"] == (9, pytest.approx(6 / 3))
    assert found["1.self_attn.v_proj"] == (9, pytest.approx(12 / 3))


@pytest.mark.parametrize(("start", "aggregation"), [("pissa", "flora"), ("gaussian", "flora"), ("olora", "hetlora")])
def test_aggregations_that_do_not_keep_the_start_are_refused_with_it(start, aggregation):
    words = [f"model.lora.init={start}", f"federation.aggregation={aggregation}"]
    with pytest.raises(
        UserError, match=rf"{aggregation} cannot be combined with model\.lora\.init={start}: .*; use init"
    ):
        check_parts(load("quickstart", words).experiment)


def test_a_start_from_the_base_is_refused_with_a_quantised_base():
    with pytest.raises(UserError, match=r"lora\.init=pissa leaves the rest of every weight .*quantization=4bit"):
        load("quickstart", ["model.lora.init=pissa", "model.quantization=4bit"])


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("federation.algorithm=feddyn", "feddyn cannot stand that: its means are plain"),
        ("federation.algorithm=scaffold", "scaffold cannot stand that: c is an exact sum over all clients"),
        ("federation.algorithm=scaffold_update_space", "c is an exact sum over all clients"),
        ("federation.algorithm={name: fedavg, unbiased: true}", "unbiased=true corrects for the same bias"),
        ("federation.aggregation=hetlora", "hetlora has weights of its own"),
        ("federation.aggregation=krum", "krum counts clients alike, whatever their weights"),
        ("federation.aggregation=coordinate_median", "coordinate_median counts clients alike"),
    ],
)
def test_draws_by_size_are_refused_where_weights_cannot_make_up_for_them(word, why):
    with pytest.raises(UserError, match=rf"federation\.selection=size draws .*{why}.*; use selection=uniform"):
        check_parts(load("quickstart", ["federation.selection=size", word]).experiment)


def test_draws_by_size_go_with_a_robust_rule_that_takes_the_weights():
    check_parts(load("quickstart", ["federation.selection=size", "federation.aggregation=norm_clipping"]).experiment)


FEW = "federation.clients_per_round=3"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["federation.selection=loss"], "nothing to select, as all 10 clients take part in every round"),
        (["federation.selection=loss", FEW, "federation.centralised=true"], "nothing to select, as one client has all"),
        (["federation.selection=size", FEW, "federation.centralised=true"], "nothing to select, as one client has all"),
        (["federation.selection=oort", FEW], "by the seconds of a client's round, and no time is simulated"),
        (
            ["federation.selection=loss", FEW, "federation.algorithm={name: fedavg, unbiased: true}"],
            "divides by the chance",
        ),
    ],
)
def test_a_selection_without_the_number_that_it_selects_by_is_refused(words, why):
    with pytest.raises(UserError, match=rf"federation\.selection={words[0].split('=')[1]} .*{why}"):
        check_parts(
            load(
                "quickstart", ["federation.clients_per_round=null", "federation.participation_rate=null", *words]
            ).experiment
        )


def test_oort_without_seconds_needs_none():
    check_parts(load("quickstart", [FEW, "federation.selection={name: oort, alpha: 0}"]).experiment)


def test_a_configuration_of_an_older_run_that_says_sampling_is_read():
    assert load("quickstart", ["federation.sampling=size"]).experiment.federation.selection.name == "size"
