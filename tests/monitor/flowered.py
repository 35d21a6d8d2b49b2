"""A Flower app as a stranger writes it: flwr's FedAvg and a tiny PEFT model. Every run is watched; prints their verdicts.

python tests/monitor/flowered.py RESULTS NAME:SEED[:broken] ...
"""

from __future__ import annotations

import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

import fedfault as ff

CLIENTS, ROUNDS, STEPS, TOKENS = 3, 7, 4, 16
client = ClientApp()


def make_model():
    """A small Llama with LoRA, the same every time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=32, initializer_range=0.3, **sizes))
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))


def draw(seed, n):
    """IID sequences (n, TOKENS) of a chain in which the next token is mostly the one before plus 3."""
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(32, (n,), generator=g)]
    for _ in range(TOKENS - 1):
        noise = torch.randint(32, (n,), generator=g)
        rows.append(torch.where(torch.rand(n, generator=g) < 0.9, (rows[-1] + 3) % 32, noise))
    return torch.stack(rows, 1)


def score(model, data):
    with torch.no_grad():
        return float(model(input_ids=data, labels=data).loss)


@client.train()
def train(message: Message, context: Context) -> Message:
    config, model = message.content["config"], make_model()
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    k, seed, round = int(context.node_config["partition-id"]), int(config["seed"]), int(config["server-round"])
    broken = bool(config["broken"]) and round > 3
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0 if broken else 1.0)
    for step in range(STEPS):
        data = draw(1000 * seed + 100 * k + 10 * round + step, 16)
        loss = model(input_ids=data, labels=data).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    arrays = ArrayRecord({n: t.contiguous() for n, t in get_peft_model_state_dict(model).items()})
    metrics = MetricRecord({"train_loss": float(loss.detach()), "num-examples": 16 * STEPS})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = make_model()
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    data = draw(7, 64)
    metrics = MetricRecord({"eval_loss": score(model, data), "num-examples": len(data)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def run(results: str, name: str, seed: int, broken: bool) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        from flwr.app import ConfigRecord

        model = make_model()
        strategy = ff.Watched(FedAvg(min_available_nodes=CLIENTS), name, results_dir=results, settings={"seed": seed})
        start = ArrayRecord({n: t.contiguous() for n, t in get_peft_model_state_dict(model).items()})
        config = ConfigRecord({"seed": seed, "broken": broken})
        strategy.start(grid, start, num_rounds=ROUNDS, train_config=config)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}}
    run_simulation(server, client, CLIENTS, backend_config=resources)


if __name__ == "__main__":
    results, *runs = sys.argv[1:]
    for one in runs:
        name, seed, *broken = one.split(":")
        run(results, name, int(seed), bool(broken))
