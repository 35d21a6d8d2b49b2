"""How often do the detectors find a broken loop that is not ours, from the adapters and losses that it leaves?

    python benchmarks/monitor.py --seeds 20            # the table of docs/monitor.md; keeps its runs in results/monitor

A plain loop over clients with PEFT and torch, as people write it, with a two-layer Llama of 8,000 numbers: it saves every
client's adapter by `save_pretrained`, the server's too, and a csv of losses. It is made right in six ways and wrong
in eight, with other data, batches and first adapters for each seed; `fedfault diagnose --adapters --csv` judges the folders.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedfault.monitor.files import diagnose_files
from fedfault.runs.read import read_run

TOKENS, WORDS = 16, 32


class Loop(NamedTuple):
    """A way to write the loop."""

    about: str
    expected: tuple[str, ...] = ()  # detectors that should raise an alarm; none: it is right
    keeps: str = ""  # factor that stays with its client, lora_A or lora_B
    leaks: bool = False  # what stays with its client is not loaded again, so that a client has that of the one before
    averages: bool = True
    loads: bool = True  # the server's adapter before a client trains
    trains: str = ""  # only this factor; RoLoRA: both in turn
    strays: bool = False  # client 1 trains what the others do not
    rescales: bool = False  # the server averages products and forgets to divide by alpha / r when it factors them
    drops: bool = False  # what the server averages is not kept
    late: float = 1.0  # the learning rate from round 4 on over that before, which is 1
    differ: bool = False  # clients have data of their own
    steps: int = 4  # of a client in a round


LOOPS = {
    "fedavg": Loop("FedAvg of both factors, IID clients"),
    "topics": Loop("the same, every client another language", differ=True),
    "topics-long": Loop("the same with 32 local steps in the place of 4", differ=True, steps=32),
    "ffa": Loop("FFA-LoRA: A is frozen", trains="lora_B"),
    "fedsa": Loop("FedSA-LoRA: B stays with its client", keeps="lora_B", differ=True),
    "rolora": Loop("RoLoRA: B and A in turn", trains="both"),
    "isolated": Loop("clients are never averaged", ("not_averaged",), averages=False),
    "isolated-topics": Loop("the same, every client another language", ("not_averaged",), averages=False, differ=True),
    "leak": Loop("FedSA-LoRA whose B goes from client to client", ("leaked_factor",), keeps="lora_B", leaks=True),
    "unloaded": Loop("nothing is loaded between clients", ("leaked_factor",), loads=False),
    "stray": Loop("FFA-LoRA in which client 1 trains A too", ("moved_frozen",), trains="lora_B", strays=True),
    "rescaled": Loop("products are averaged, and scaled again", ("wrong_scale",), rescales=True),
    "dropped": Loop("the server keeps its old adapter", ("no_federation",), drops=True),
    "lr": Loop("learning rate times 60 from round 4 on", ("divergence", "oscillation"), late=60.0),
}
HIDDEN = ("wrong_scale", "no_federation")  # what only the server's adapter shows


def make_model(seed: int, rank: int = 4, alpha: int = 8) -> Any:
    """A small Llama with LoRA; the base is the same for every seed."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, initializer_range=0.3, **sizes))
    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "down_proj"]
    return get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))


def draw(generator: torch.Generator, n: int, step: int) -> torch.Tensor:
    """Sequences (n, TOKENS) in which the next token is mostly the one before plus `step`."""
    rows = [torch.randint(WORDS, (n,), generator=generator)]
    for _ in range(TOKENS - 1):
        noise = torch.randint(WORDS, (n,), generator=generator)
        rows.append(torch.where(torch.rand(n, generator=generator) < 0.9, (rows[-1] + step) % WORDS, noise))
    return torch.stack(rows, 1)


def run_loop(folder: Path, loop: Loop, seed: int, *, clients: int = 4, rounds: int = 8, server: bool = True) -> None:
    """Train, and leave FOLDER/round_T/client_K, with `server` also FOLDER/round_T/server, and FOLDER/losses.csv."""
    from peft import set_peft_model_state_dict

    model = make_model(seed)
    glob = _copy(model)
    own = [{n: t.clone() for n, t in glob.items()} for _ in range(clients)]
    tests = [draw(torch.Generator().manual_seed(10_000 + k), 64, 3 + 4 * k * loop.differ) for k in range(clients)]
    rows = [(0, *row) for row in _score(model, tests)]
    model.save_pretrained(folder / "round_0" / "server")
    for t in range(1, rounds + 1):
        sent = []
        for k in range(clients):
            if loop.loads:
                set_peft_model_state_dict(model, _choose_start(loop, glob, own[k]))
            _train(model, loop, t, k, torch.Generator().manual_seed(hash((seed, t, k)) % 2**31))
            model.save_pretrained(folder / f"round_{t}" / f"client_{k}")
            sent.append(_copy(model))
            own[k] = sent[-1]
        if loop.averages:
            mean = {n: torch.stack([one[n] for one in sent]).mean(0) for n in glob}
            glob = glob if loop.drops else _rescale(sent, mean) if loop.rescales else mean
        if loop.loads:
            set_peft_model_state_dict(model, glob)
        if loop.averages:
            set_peft_model_state_dict(model, glob)
            model.save_pretrained(folder / f"round_{t}" / "server")
            if not loop.loads:
                set_peft_model_state_dict(model, sent[-1])
        rows += [(t, *row) for row in _score(model, tests)]
    with (folder / "losses.csv").open("w", newline="") as f:
        csv.writer(f).writerows([("round", "client", "loss"), *rows])


def _copy(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return {n: t.detach().clone() for n, t in get_peft_model_state_dict(model).items()}


def _choose_start(loop: Loop, glob: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is loaded into the model before a client trains."""
    if not loop.averages:
        return own
    if not loop.keeps:
        return glob
    shared = {n: t for n, t in glob.items() if loop.keeps not in n}
    return shared if loop.leaks else shared | {n: t for n, t in own.items() if loop.keeps in n}


def _train(model: Any, loop: Loop, t: int, k: int, generator: torch.Generator) -> None:
    only = ("lora_B", "lora_A")[(t + 1) % 2] if loop.trains == "both" else loop.trains
    only = "" if loop.strays and k == 1 and t > 2 else only
    parameters = [p for n, p in model.named_parameters() if "lora_" in n and only in n]
    optimizer = torch.optim.SGD(parameters, lr=loop.late if t > 3 else 1.0)
    for _ in range(loop.steps):
        data = draw(generator, 16, 3 + 4 * k * loop.differ)
        loss = model(input_ids=data, labels=data).loss
        model.zero_grad()
        loss.backward()
        optimizer.step()


def _rescale(sent: Sequence[dict[str, torch.Tensor]], mean: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """FlexLoRA with the mistake: the mean of alpha / r B A is factored by SVD and not divided by alpha / r."""
    found = dict(mean)
    for name in (n for n in mean if "lora_A" in n):
        other = name.replace("lora_A", "lora_B")
        U, S, V = torch.linalg.svd(torch.stack([2.0 * one[other] @ one[name] for one in sent]).mean(0))
        r = len(mean[name])
        found[name], found[other] = S[:r, None].sqrt() * V[:r], U[:, :r] * S[:r].sqrt()
    return found


def _score(model: Any, tests: Sequence[torch.Tensor]) -> list[tuple[Any, float]]:
    with torch.no_grad():
        return [(k, float(model(input_ids=data, labels=data).loss)) for k, data in enumerate(tests)]


def judge(folder: Path, out: Path, *, server: bool = True) -> dict[str, int]:
    """The first alarm of each detector on the folder of a run, with the server's adapters or as if there were none."""
    diagnose_files(folder, folder / "losses.csv", server=None if server else "none/{round}", out=out, overwrite=True)
    alarms = [f for f in read_run(out).findings if f.level == "alarm"]
    return {f.detector: f.round for f in reversed(alarms)}


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="+", default=list(LOOPS), choices=list(LOOPS), metavar="LOOP")
    parser.add_argument("--results", type=Path, default=Path("results/monitor"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| loop | what it does | server's adapter | runs | any alarm | the right one | alarms of |")
    print("|---|---|---|---:|---:|---:|---|")
    for name in args.only:
        folders = [args.results / f"{name}-{seed}" for seed in range(args.seeds)]
        for seed, folder in enumerate(folders):
            if not (folder / "losses.csv").is_file():
                run_loop(folder, LOOPS[name], seed, clients=args.clients, rounds=args.rounds)
        for server in (True, False):
            if server or not set(LOOPS[name].expected) & set(HIDDEN):
                alarms = [judge(folder, args.results / "judged", server=server) for folder in folders]
                print(format_row(name, server, alarms), flush=True)


def format_row(name: str, server: bool, alarms: Sequence[dict[str, int]]) -> str:
    """A line of the table."""
    loop, n = LOOPS[name], len(alarms)
    right = sum(bool(set(loop.expected) & set(found)) for found in alarms)
    counts = Counter(d for found in alarms for d in found)
    cells = [name, loop.about, "there" if server else "–", str(n), f"{sum(map(bool, alarms))}/{n}"]
    cells += [f"{right}/{n}" if loop.expected else "–", ", ".join(f"{d} {c}" for d, c in counts.most_common()) or "–"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
