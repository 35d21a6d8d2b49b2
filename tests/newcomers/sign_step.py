"""Only the direction of the average counts."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from fedfault.algorithms.fedavg import fedavg
from fedfault.registry import register
from fedfault.types.algorithm import Algorithm, stands


@register("algorithm")
def sign_step(*, server_lr: Annotated[float, Field(gt=0)] = 0.05) -> Algorithm:
    """FedAvg whose server takes a step of one length in every coordinate: x <- x + server_lr sign(sum_k p_k y_k - x)."""

    @stands("alternates", "private", "reweighs", "prunes", "robust", "unequal ranks")
    def server(state, got, average):
        x = state.adapter
        change = average(got["x"], got["n"]) - x
        return replace(state, adapter=x + server_lr * replace(change, flat=change.flat.sign()))

    return replace(fedavg(), server=server)
