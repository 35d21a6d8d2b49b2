"""`ClientCallback` in a loop over clients that a Trainer of transformers trains, and hook by hook."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fedfault as ff
from fedfault.monitor.trainer import ClientCallback
from fedfault.runs.read import read_run


def train(watch, model, step, losses=(1.0, 2.0)):
    """What a Trainer tells its callbacks while it moves the weights by `step`."""
    state = SimpleNamespace(log_history=[{"loss": loss} for loss in losses], global_step=len(losses))
    watch.on_train_begin(None, state, None, model=model)
    with torch.no_grad():
        model.weight += step
    watch.on_train_end(None, state, None, model=model)


def test_what_clients_and_server_change_is_what_is_recorded(tmp_path):
    model = nn.Linear(1, 2, bias=False)
    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    watch.log(0, loss=3.0)
    start = model.weight.detach().clone()
    for client, step in ((4, 3.0), (2, 1.0)):
        model.weight.data = start.clone()
        watch.client = client
        train(watch, model, torch.tensor([[step], [0.0]]))
    model.weight.data = start + torch.tensor([[2.0], [0.0]])
    watch.log(1, model, loss=2.0)
    record = read_run(tmp_path / "mine").records[1]
    told = [(c.client, c.update_norm, c.loss, c.steps) for c in record.clients]
    assert told == [(4, pytest.approx(3), 1.5, 2), (2, pytest.approx(1), 1.5, 2)]
    assert record.probes["server_norm"] == pytest.approx(2) == record.probes["update_norm"]


@pytest.mark.parametrize("weights", [[6, 3, 1], {2: 3, 5: 1, 7: 6, 9: 8}])
def test_shares_belong_to_the_clients_in_the_order_of_training_or_by_client(tmp_path, weights):
    model = nn.Linear(1, 1, bias=False)
    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    for watch.client in (7, 2, 5):
        train(watch, model, float(watch.client))
    for wrong, told in (
        ({"weights": {7: 1.0, 2: 3.0}}, r"weights has no number for client 5, and trained have \[7, 2, 5\]"),
        ({"clients": [2, 5, 7]}, r"clients=\[2, 5, 7\], but trained have \[7, 2, 5\] in this order"),
        ({"clients": 7}, r"clients=\[7\], but trained have"),
    ):
        with pytest.raises(ff.UserError, match=told):
            watch.log(1, **wrong)
    watch.log(1, clients=np.array([7, 2, 5]), weights=weights)
    found = {c.client: (c.weight, c.update_norm) for c in read_run(tmp_path / "mine").records[1].clients}
    assert found == {k: (share, pytest.approx(k)) for k, share in ((7, 0.6), (2, 0.3), (5, 0.1))}


def test_a_model_of_other_parameters_is_refused(tmp_path):
    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    train(watch, nn.Linear(1, 2, bias=False), torch.ones(2, 1))
    with pytest.raises(ff.UserError, match=r"the model of client 1 has 3 trainable parameters, and .* has 2"):
        train(watch, nn.Linear(1, 3, bias=False), torch.ones(3, 1))
    with pytest.raises(ff.UserError, match=r"that `log` was given has 4 trainable parameters, and .* has 2: give the"):
        watch.log(1, nn.Linear(1, 4, bias=False))
    watch.log(1, nn.Linear(1, 2, bias=False))


def test_a_client_that_trains_twice_in_a_round_and_a_frozen_model_are_refused(tmp_path):
    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    model = nn.Linear(1, 1)
    train(watch, model, 1.0)
    watch.client = 0
    with pytest.raises(ff.UserError, match="client 0 trains twice in a round"):
        train(watch, model, 1.0)
    watch.client = 1
    with pytest.raises(ff.UserError, match="no parameter of the model requires gradients"):
        train(watch, nn.Linear(1, 1).requires_grad_(False), 1.0)


def test_a_round_that_is_refused_can_be_logged_again(tmp_path):
    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    train(watch, nn.Linear(1, 1, bias=False), 1.0, losses=())
    with pytest.raises(ff.UserError, match="loss should be numbers"):
        watch.log(1, loss="low")
    watch.log(1, loss=2.0)
    (client,) = read_run(tmp_path / "mine").records[1].clients
    assert client.update_norm == pytest.approx(1)
    assert math.isnan(client.loss)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("broken", [False, True])
def test_a_loop_of_trainers_over_three_clients_is_watched(tmp_path, broken):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=32, initializer_range=0.3, **sizes))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    g = np.random.default_rng(0)
    texts = [(g.integers(32, size=(48, 1)) + 3 * np.arange(16)) % 32 for _ in range(4)]
    data = [[{"input_ids": row, "labels": row} for row in torch.tensor(text).unbind()] for text in texts]
    held_out = torch.tensor(texts[3])

    def score():
        with torch.no_grad():
            return float(model(input_ids=held_out, labels=held_out).loss)

    def train_client(k, rate):
        more = {"max_grad_norm": 0.0, "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        args = TrainingArguments(str(tmp_path / "t"), learning_rate=rate, max_steps=4, optim="sgd", seed=k, **more)
        Trainer(model, args, train_dataset=data[k], callbacks=[watch]).train()

    watch = ClientCallback(ff.Monitor("mine", results_dir=tmp_path, say=lambda text: None))
    watch.log(0, loss=score())
    server = {n: t.clone() for n, t in get_peft_model_state_dict(model).items()}
    found = []
    for round in range(1, 7):
        sent = []
        for k in range(3):
            set_peft_model_state_dict(model, server)
            watch.client = k
            train_client(k, 400.0 if broken and round > 3 else 0.5)
            sent.append({n: t.clone() for n, t in get_peft_model_state_dict(model).items()})
        server = {n: torch.stack([one[n] for one in sent]).mean(0) for n in server}
        set_peft_model_state_dict(model, server)
        found += watch.log(round, model, loss=score())
    verdict = watch.monitor.finish()
    records = read_run(tmp_path / "mine").records
    assert records[1].probes["server_norm"] == pytest.approx(records[1].probes["update_norm"])
    assert [c.client for c in records[1].clients] == [0, 1, 2]
    assert all(c.steps == 4 and 0 < c.loss < 10 for c in records[1].clients)
    alarms = {f.detector for f in found if f.level == "alarm"}
    assert ("divergence" in alarms) if broken else not found
    assert (verdict["state"] in ("failed", "degraded")) == broken
