"""FedPer: some parts of the model never leave a client."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedfault.aggregations.blockwise import blockwise
from fedfault.errors import UserError, join_names
from fedfault.registry import register
from fedfault.types.adapter import Layout
from fedfault.types.algorithm import Aggregation


@register("aggregation", cite=("arivazhagan2019fedper", "collins2021fedrep"))
def fedper(*, private: Annotated[list[str], Field(min_length=1)] | None = None, in_turn: bool = False) -> Aggregation:
    """FedPer (Arivazhagan et al., 2019): the head, or the parts that are named, stay with each client; the rest is averaged.

    `private` has names of trained modules, parts of a name between dots (`layers.3`, `v_proj`), or regular expressions of
    whole names; without it all that is trained in full, such as a classifier's head. There is no global model: each
    client is scored with its own parts, and the scores of one model are those of the shared parts with the mean of all
    clients' own. FedIT's mean on the rest; a slice of rank is averaged over the clients that have it. With `in_turn` a round
    is FedRep's (Collins et al., ICML 2021): in the first half of its steps a client trains what is private under what it was
    sent, and in the second half what is shared under that, each with an optimiser of its own.

    private: names of modules that stay with their client, parts of them or regular expressions; null: what is trained
      in full
    in_turn: train the private parts in the first half of a round's steps and the others in the second, as in FedRep

    >>> from fedfault.types.adapter import Layout, Site
    >>> layout = Layout.of([Site("layers.0.q", "lora", (1, 1, 1)), Site("score.weight", "full", (3,))])
    >>> fedper().private(layout).tolist()
    [False, False, True, True, True]
    >>> fedper(private=["layers.0"]).private(layout).tolist()
    [True, True, False, False, False]

    Reference: arXiv 1912.00818; FedRep: arXiv 2102.07078, algorithm 1.
    """

    def choose(layout: Layout) -> Tensor:
        kept = [s for s in layout.sites if (s.kind == "full" if private is None else _is_named(s.name, private))]
        mask = torch.zeros(layout.size, dtype=torch.bool)
        for site in kept:
            mask[site.offset : site.offset + site.size] = True
        if not kept or bool(mask.all()):
            what = "private: null, which stands for what is trained in full, such as a classifier's head,"
            what = what if private is None else f"private: [{', '.join(private)}]"
            left = "names nothing that is trained here" if not kept else "leaves nothing to be averaged"
            raise UserError(
                f"federation.aggregation=fedper: {what} {left}; name some of what is trained, or parts of the names, as in "
                f"'federation.aggregation={{name: fedper, private: [{layout.sites[0].name}]}}': "
                f"{join_names((s.name for s in layout.sites), 12)}"
            )
        return mask

    return replace(blockwise(), private=choose, in_turn=in_turn, traits=frozenset({"private"}))


def _is_named(name: str, wanted: list[str]) -> bool:
    return any(f".{w}." in f".{name}." or re.fullmatch(w, name) for w in wanted)
