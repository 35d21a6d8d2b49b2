"""Are rows of conversations packed, or grouped by length? Seconds of a training step either way, on the same rows.

    OMP_NUM_THREADS=1 python benchmarks/packing.py [--model smollm2-135m] [--rounds 5]

grouped   what a run does: each client's rows sorted by length, a few columns at a time, padded to the longest of them
packed    each client's rows one behind the other in one row, whose positions restart and whose attention mask is
          block-diagonal, padded to the longest client's

Lengths are log-normal with the medians and spreads of three kinds of data (prompts of P3 with short answers, Alpaca,
conversations of several turns); the last third of each row counts, as a response. The two are measured in turn, and the
best of each is printed, with the share of padding that each computes and by how much the two gradients differ: in float32
by rounding; in bfloat16 by several percent, perhaps because attention without a mask is another kernel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.head import sparse_head_loss
from fedfault.backbones.load import load_backbone
from fedfault.backbones.sites import lora_targets
from fedfault.tasks.grouping import group_columns
from fedfault.tasks.language import LanguageTask
from fedfault.text.responses import Responses
from fedfault.types.task import Step

SHAPES = {"P3": (75, 0.6, 256), "Alpaca": (95, 0.7, 512), "chats": (420, 0.5, 1024)}  # median, spread, longest
CLIENTS, ROWS = 4, 4


def draw_rows(shape: str, seed: int) -> Responses:
    """Draw the rows of a client, ids at random."""
    median, spread, longest = SHAPES[shape]
    g = torch.Generator().manual_seed(seed)
    lengths = (median * torch.exp(spread * torch.randn(ROWS, generator=g))).long().clamp(8, longest)
    ids = torch.randint(10, 1000, (ROWS, int(lengths.max())), generator=g)
    place = torch.arange(1, ids.shape[1])
    mask = (place >= (2 * lengths // 3)[:, None]) & (place < lengths[:, None])
    return Responses(ids, lengths, mask)


def differentiate_grouped(task: LanguageTask, flat: Tensor, step: Step) -> Tensor:
    """The gradient (K, P) of each client's mean loss, in groups of about equal length."""
    return task.grad(flat, step)[1]


def differentiate_packed(model: CohortModel, flat: Tensor, rows: list[Responses]) -> Tensor:
    """The gradient (K, P) of each client's mean loss, its rows packed into one."""
    sizes = [int(own.lengths.sum()) - len(own) for own in rows]  # of tokens that the model reads
    K, L = len(rows), max(sizes)
    x, y, place, owner = (torch.zeros(K, L, dtype=torch.int64) for _ in range(4))
    weight = torch.zeros(K, L)
    for k, own in enumerate(rows):
        at = 0
        for i, n in enumerate((own.lengths - 1).tolist()):
            here = slice(at, at := at + n)
            x[k, here], y[k, here], place[k, here] = own.ids[i, :n], own.ids[i, 1 : n + 1], torch.arange(n)
            owner[k, here], weight[k, here] = i + 1, own.mask[i, :n] / own.num_tokens
    seen = (owner[:, :, None] == owner[:, None, :]) & torch.ones(L, L, dtype=torch.bool).tril()
    flat = flat.detach().requires_grad_()
    with model.slots.bind(flat):
        states = model.model.base_model(
            input_ids=x, position_ids=place, attention_mask=seen[:, None], use_cache=False
        ).last_hidden_state
        total, _ = sparse_head_loss(
            states, model.head.weight, model.head.bias, y, weight, weight.flatten().nonzero()[:, 0]
        )
    return torch.autograd.grad(total, flat)[0]


def share_of_padding(rows: list[Responses], most: int) -> tuple[float, float]:
    """The shares of computed tokens that are padding, grouped and packed."""
    lengths = torch.stack([own.lengths - 1 for own in rows])
    groups = [int(lengths.gather(1, c).max()) * c.numel() for c in group_columns(lengths, most)]
    packed = len(rows) * int(lengths.sum(1).max())
    return 1 - int(lengths.sum()) / sum(groups), 1 - int(lengths.sum()) / packed


def measure_best(runs: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The least seconds of each of `rounds` turns, and what each computed."""
    best, made = dict.fromkeys(runs, float("inf")), {name: run() for name, run in runs.items()}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()  # of the processor: other work beside it counts less
            run()
            best[name] = min(best[name], time.process_time() - began)
    return best, made


def main() -> None:
    """Measure, and print a line for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    backbone = load_backbone(args.model, precision=args.precision, device="cpu")
    model = CohortModel(backbone.model, lora_targets(backbone.model, None), r=8, alpha=16.0)
    start = model.init(0).flat
    flat = (start + 0.01 * torch.randn(start.shape, generator=torch.Generator().manual_seed(0))).expand(CLIENTS, -1)
    for shape in SHAPES:
        rows = [draw_rows(shape, k) for k in range(CLIENTS)]
        task = LanguageTask(model, rows, {}, {})
        step = Step(torch.arange(CLIENTS), torch.arange(ROWS).expand(CLIENTS, -1), torch.ones(CLIENTS, ROWS) > 0)
        best, made = measure_best(
            {
                "grouped": partial(differentiate_grouped, task, flat, step),
                "packed": partial(differentiate_packed, model, flat, rows),
            },
            args.rounds,
        )
        padding = share_of_padding(rows, task.tokens_per_pass())
        apart = float((made["grouped"] - made["packed"]).norm() / made["grouped"].norm())
        each = "  ".join(f"{name} {best[name]:.2f} s, {p:.0%} padding" for name, p in zip(best, padding, strict=True))
        print(f"{shape:8} {each}  {best['packed'] / best['grouped']:.2f} times as long  {apart:.1e} apart", flush=True)


if __name__ == "__main__":
    main()
