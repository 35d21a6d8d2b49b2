"""Advice in plain words, for runs of other programs: they have neither the settings of fedfault nor its commands."""

from __future__ import annotations

from fedfault.registry import FOLDERS, read_declarations

SETTINGS = {  # what a setting is
    "training.lr": "learning rate of the clients",
    "training.local_steps": "local steps",
    "training.max_grad_norm": "norm to which gradients are clipped",
    "federation.participation_rate": "share of the clients in each round",
    "federation.clients_per_round": "number of clients in each round",
    "federation.algorithm.server_lr": "learning rate of the server",
    "model.lora.r_max": "rank of LoRA",
}
CHANGES = {"lower": "a lower", "higher": "a higher", "fewer": "fewer", "more": "more", "at half": "half the"}
ADVICE = {  # what has no such form
    "federation.on_failure=rollback": "go back to the best round where this begins",
    "federation.algorithm.option=I": "control variates by a pass over each client's examples",
    "fedfault mitigate RUN": "a model for each group of clients that are alike",
    "look at what these clients did: fedfault blame RUN": "look at what these clients train on and send",
}


def say_plainly(advice: str) -> str:
    """Say a detector's advice without the settings and the commands of fedfault; what has none is left as it is.

    >>> say_plainly("training.lr at half")
    'half the learning rate of the clients'
    >>> say_plainly("federation.aggregation=fedsa_lora")
    'FedSA-LoRA (Guo et al., ICLR 2025): the A_k are averaged, every B_k stays with its client'
    """
    if advice in ADVICE:
        return ADVICE[advice]
    setting, _, name = advice.partition("=")
    kind = setting.rpartition(".")[2]
    if name and kind in FOLDERS and name in (known := read_declarations(kind)):
        return known[name].summary.rstrip(".")
    words = " ".join(SETTINGS.get(word, word) for word in advice.split(" "))
    change = next((change for change in CHANGES if advice.endswith(f" {change}")), None)
    if change is None or advice.partition(" ")[0] not in SETTINGS:
        return words
    return f"{CHANGES[change]} {words.removesuffix(f' {change}')}"
