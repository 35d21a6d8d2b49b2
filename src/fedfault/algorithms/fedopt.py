"""FedOpt: what the clients changed, on average, is a gradient for an optimiser on the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.algebra import zeros
from fedfault.algorithms.fedavg import fedavg
from fedfault.errors import UserError
from fedfault.registry import register
from fedfault.types.adapter import Adapter
from fedfault.types.algorithm import Algorithm, Average, Message, State, stands

REFUSES = {
    "refactors": "the server's optimiser keeps its memory in those numbers",
    "folds": "what it adds belongs to the plain average, and the server's optimiser takes another step",
}
MOVES_THE_FROZEN = {"alternates": "the server's momentum would move the frozen factor too"}


def _stands(momentum: float) -> tuple[str, ...]:
    always = (
        "private",
        "reweighs",
        "prunes",
        "robust",
        "unequal ranks",
        "hides clients",
        "hides examples",
        "asynchronous",
    )
    return always if momentum else (*always, "alternates")


def _refuses(momentum: float) -> Mapping[str, str]:
    return {**REFUSES, **MOVES_THE_FROZEN} if momentum else REFUSES


@register("algorithm", cite=("hsu2019",))
def fedavgm(
    *,
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9,  # of the grid 0, 0.7, 0.9, 0.97
    server_lr: Annotated[float, Field(gt=0)] = 0.3,  # 1 in the paper, which overshoots on LoRA with rounds this small
) -> Algorithm:
    """FedAvgM (Hsu et al., 2019): FedAvg with momentum on the server.

    Delta = sum_i p_i (y_i - x);  m <- beta m + Delta;  x <- x + server_lr m. Where all rounds agree, the step grows to
    server_lr / (1 - beta) times the change of a round: 3 times with the defaults, so lower `server_lr` where it oscillates.
    beta = 0 and server_lr = 1 are FedAvg.

    beta: how much of the step before is kept: momentum
    server_lr: the step of the server along the mean change; 1 takes all of it

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fedavgm")  # Delta = m = 2.9 - 3, and 3 + 0.3 m
    [2.97]

    Reference: arXiv 1909.06335.
    """

    @stands(*_stands(beta))
    def server(state: State, got: Message, average: Average) -> State:
        x = state.adapter
        delta = average(got["x"], got["n"]) - x
        m = beta * state.memory["m"] + delta
        return replace(state, adapter=x + server_lr * m, memory={"m": m})

    return replace(fedavg(), init=lambda x: {"m": zeros(x)}, server=server, refuses=_refuses(beta))


@register("algorithm", cite=("reddi2021",))
def fedadagrad(
    *,
    server_lr: Annotated[float, Field(gt=0)] = 3e-2,  # above FedAdam's: v only grows and steps shrink
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0,  # Adagrad has no momentum
    tau: Annotated[float, Field(gt=0)] = 1e-3,  # paper, section 5
) -> Algorithm:
    """FedAdagrad (Reddi et al., ICLR 2021): Adagrad on the server.

    Delta = sum_i p_i (y_i - x);  m <- beta1 m + (1 - beta1) Delta;  v <- v + Delta^2;
    x <- x + server_lr m / (sqrt(v) + tau), with m = 0 and v = tau^2 before the first round (algorithm 2 of the paper, arXiv
    2003.00295).

    server_lr: about how far every number moves in a round, once v has settled
    beta1: how much of the mean change before is kept: momentum
    tau: added to the root below, so that small changes are not blown up

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fedadagrad")  # Delta = m = -0.1, and 3 - 0.03 * 0.1 / (0.1 + 0.001)
    [2.9703]
    """
    return _make_adaptive(lambda v, square: v + square, server_lr, beta1, tau)


@register("algorithm", cite=("reddi2021",))
def fedadam(
    *,
    server_lr: Annotated[float, Field(gt=0)] = 3e-3,  # with beta1: docs/log.md, server learning rates
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0,  # 0.9 in the paper, for thousands of rounds
    beta2: Annotated[float, Field(ge=0, le=1)] = 0.99,  # with tau: paper, section 5
    tau: Annotated[float, Field(gt=0)] = 1e-3,
    bias_correction: bool = False,
) -> Algorithm:
    """FedAdam (Reddi et al., ICLR 2021): Adam on the server.

    Delta = sum_i p_i (y_i - x);  m <- beta1 m + (1 - beta1) Delta;  v <- beta2 v + (1 - beta2) Delta^2;
    x <- x + server_lr m / (sqrt(v) + tau), with m = 0 and v = tau^2 before the first round (algorithm 2 of the paper, arXiv
    2003.00295). It is Delta that is squared, not m. The paper has no `bias_correction`: v starts at 0, and in the server's
    step t m is divided by 1 - beta1^t and v by 1 - beta2^t, as Adam does (Kingma & Ba, ICLR 2015) and other libraries do.

    Raises `UserError` for a bias correction with beta2 = 1.

    server_lr: about how far every number moves in a round, once v has settled
    beta1: how much of the mean change before is kept: momentum
    beta2: how much of the mean square before is kept
    tau: added to the root below, so that small changes are not blown up
    bias_correction: start v at 0, and divide both means by what they lack in the first rounds, as Adam does

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fedadam")  # m = -0.1, v = 0.99 tau^2 + 1e-4: 3 - 3e-4 / (0.01005 + 0.001)
    [2.9728]
    """
    correct = _make_correction(beta1, beta2) if bias_correction else None
    return _make_adaptive(lambda v, square: beta2 * v + (1 - beta2) * square, server_lr, beta1, tau, correct)


@register("algorithm", cite=("reddi2021",))
def fedyogi(
    *,
    server_lr: Annotated[float, Field(gt=0)] = 3e-3,  # with beta1: as FedAdam's
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    beta2: Annotated[float, Field(ge=0, le=1)] = 0.99,  # with tau: paper, section 5
    tau: Annotated[float, Field(gt=0)] = 1e-3,
    bias_correction: bool = False,
) -> Algorithm:
    """FedYogi (Reddi et al., ICLR 2021): Yogi on the server, whose v moves by the same amount up as down.

    As FedAdam, with v <- v - (1 - beta2) Delta^2 sign(v - Delta^2): a round with small changes does not make the server
    forget the large ones as fast as FedAdam's does (algorithm 2 of the paper, arXiv 2003.00295).

    Raises `UserError` for a bias correction with beta2 = 1.

    server_lr: about how far every number moves in a round, once v has settled
    beta1: how much of the mean change before is kept: momentum
    beta2: how much of the mean square before is kept
    tau: added to the root below, so that small changes are not blown up
    bias_correction: start v at 0, and divide both means by what they lack in the first rounds, as Adam does

    >>> from fedfault.testing.toys import run_two_clients
    >>> run_two_clients("fedyogi")  # m = -0.1, v = tau^2 + 1e-4: 3 - 3e-4 / (0.01005 + 0.001)
    [2.9729]
    """

    def second(v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - beta2) * square * torch.sign(v - square)

    return _make_adaptive(second, server_lr, beta1, tau, _make_correction(beta1, beta2) if bias_correction else None)


Correct = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (m, v, t) -> without the bias of their start


def _make_adaptive(
    second: Callable[[Tensor, Tensor], Tensor],
    server_lr: float,
    beta1: float,
    tau: float,
    correct: Correct | None = None,
) -> Algorithm:
    """Algorithm 2 with v <- second(v, Delta^2)."""

    def init(x: Adapter) -> Mapping[str, Adapter]:
        if correct is None:
            return {"m": zeros(x), "v": replace(x, flat=torch.full_like(x.flat, tau**2))}
        return {"m": zeros(x), "v": zeros(x), "steps": zeros(x)}

    @stands(*_stands(beta1))
    def server(state: State, got: Message, average: Average) -> State:
        x, v = state.adapter, state.memory["v"]
        delta = average(got["x"], got["n"]) - x
        m = beta1 * state.memory["m"] + (1 - beta1) * delta
        v = replace(v, flat=second(v.flat, delta.flat**2))
        memory, first, spread = {"m": m, "v": v}, m.flat, v.flat
        if correct is not None:
            before = state.memory.get("steps")  # checkpoints of older versions counted rounds
            steps = torch.full_like(x.flat, state.round) if before is None else before.flat
            memory["steps"] = replace(x, flat=steps + 1)  # rounds in which nothing arrives are none
            first, spread = correct(first, spread, memory["steps"].flat)
        step = replace(x, flat=server_lr * first / (spread.sqrt() + tau))
        return replace(state, adapter=x + step, memory=memory)

    return replace(fedavg(), init=init, server=server, refuses=_refuses(beta1))


def _make_correction(beta1: float, beta2: float) -> Correct:
    if beta2 == 1:
        raise UserError("bias_correction=true with beta2=1 divides by 1 - beta2^t = 0; lower beta2, or leave it out")
    return lambda m, v, t: (m / (1 - beta1**t), v / (1 - beta2**t))
