"""Which parts of a backbone are trained: LoRA targets by architecture, whole blocks, named modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fedfault.backbones.calls import find_misfits
from fedfault.errors import UserError, suggest

LORA_TARGETS = {  # config.model_type -> module names, where they are others than QUERIES_AND_VALUES
    "deberta": ("in_proj",),
    "deberta-v2": ("value_proj",),  # PEFT has query_proj too, which is called on positions that all rows share
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "rwkv": ("key", "value", "receptance", "output"),
}
QUERIES_AND_VALUES = (  # what families of models call them; PEFT's defaults are these, for the models that it knows
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
)
ALL_LINEAR = "all-linear"  # PEFT's word

# PEFT refuses these too: fused kernels read the weights of out_proj and conv1d instead of calling them
MAMBAS, READ_BY_MAMBAS = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), ("out_proj", "conv1d")


@dataclass(frozen=True)
class Targets:
    """The trainable sites of a model, in the order of its modules."""

    lora: tuple[str, ...] = ()  # modules with a LoRA pair
    left_out: tuple[str, ...] = ()  # linear layers that nobody named and that take no pair
    full_modules: tuple[str, ...] = ()  # modules trained in full
    full_parameters: tuple[str, ...] = ()  # their parameters
    head_site: str | None = None  # the parameter that is the head's weight, if trained
    head_bias: str | None = None  # and its bias, if it has one and is trained by its own name
    first_block: int = 0  # activations below this block never change


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, whose weight is (d_in, d_out); by name, to not import transformers."""
    return type(module).__name__ == "Conv1D"


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an nn.Linear or a Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is stored in whole numbers."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of an nn.Linear or a Conv1D, whose weights are transposed to each other."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    d_in, d_out = module.get_parameter("weight").shape
    return int(d_in), int(d_out)


def find_parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Find the module that contains the one called `name`; also returns the last part of the name."""
    parent, _, leaf = name.rpartition(".")
    return model.get_submodule(parent), leaf


def find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Find the blocks of a model, with their name: the ModuleList with the most parameters that is nested in no other.

    The longest need not be it: a block may itself have a list, of experts or of norms of heads. Raises `UserError` where
    there is none.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outer = [(n, m) for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise UserError(f"{type(model).__name__} has no list of blocks; use a plain decoder or encoder")
    return max(outer, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def find_beside(model: Any, prefix: str) -> list[str]:
    """The names of the lists of which each has a part of every block: XLM's attentions, norms and feed-forward layers.

    They are as long as the blocks called `prefix` and lie beside them; most models have but that one.
    """
    parent, blocks = prefix.rpartition(".")[0], model.get_submodule(prefix)
    return [
        f"{parent}.{n}" if parent else n
        for n, m in model.get_submodule(parent).named_children()
        if isinstance(m, nn.ModuleList) and len(m) == len(blocks)
    ]


def lora_targets(model: Any, wanted: str | Sequence[str] | None) -> Targets:
    """Targets of `trainable: lora`, said as PEFT has it; None means the defaults.

    wanted: names or their ends; a string is a regular expression that matches whole names, or `all-linear`: every linear
    layer but the head. Of all-linear and of the defaults, layers that take no pair are left out.

    Raises `UserError` when something matches nothing, matches what is no linear layer, or is the head.
    """
    kind, left_out = model.config.model_type, set[str]()
    if wanted is not None and not wanted:
        raise UserError("model.lora.target_modules is empty; name at least one module or leave it out")
    if wanted is None or wanted == ALL_LINEAR:
        every, ends = _linear_names(model), None if wanted else _default_ends(model)
        found = {n for n in every if ends is None or n.rpartition(".")[2] in ends}
        unfit = {*find_misfits(model, every)} | {n for n in every if _is_read(kind, n)}
        found, left_out = found - unfit, found & unfit
        if not found:
            others = ", ".join(sorted(_endings({*every} - unfit)))
            raise UserError(
                f"{kind} has no row for every text on {', '.join(sorted(_endings(left_out)))}, or reads their weights "
                "instead of calling them, so that they take no LoRA pair; "
                + (f"choose from {others} with model.lora.target_modules" if others else "choose another backbone")
            )
    elif isinstance(wanted, str):
        found = _match_names(model, wanted)
    else:
        found = {hit for want in wanted for hit in _find_by_end(model, want)}
    for hit in sorted(found):
        if _is_read(kind, hit):
            raise UserError(f"{hit} takes no LoRA pair: {kind} reads its weight instead of calling it; choose others")
        module = model.get_submodule(hit)
        if not is_linear(module) or module is model.get_output_embeddings():
            raise UserError(
                f"{hit} is a {type(module).__name__} that takes no LoRA pair here; choose from "
                f"{', '.join(sorted(_linear_endings(model)))}, or train it in full with model.trainable=partial"
            )
    ordered, without = (tuple(n for n, _ in model.named_modules() if n in those) for those in (found, left_out))
    return Targets(lora=ordered, left_out=without, first_block=_first_block(model, ordered))


def describe_left_out(model: Any, targets: Targets) -> list[str]:
    """A line on the linear layers that were left out, if any."""
    if not targets.left_out:
        return []
    ends = ", ".join(sorted({".".join(n.split(".")[-2:]) for n in targets.left_out}))
    return [
        f"no LoRA pair on {len(targets.left_out)} linear layers ({ends}): {model.config.model_type} reads their weights "
        "instead of calling them, does not call them on a row for every text, or has more than a product of them"
    ]


def _default_ends(model: Any) -> tuple[str, ...]:
    """The ends of the names of the layers that are adapted where nothing else is said."""
    kind, known = model.config.model_type, _linear_endings(model)
    choices = [LORA_TARGETS[kind]] if kind in LORA_TARGETS else QUERIES_AND_VALUES
    for ends in choices:
        if known.issuperset(ends):
            return ends
    raise UserError(
        f"no default LoRA targets for architecture {kind!r}; set model.lora.target_modules to {ALL_LINEAR}, or to some of "
        f"its linear layers: {', '.join(sorted(known))}"
    )


def _is_read(kind: str, name: str) -> bool:
    """Whether a model of this type reads a layer's weight instead of calling it."""
    return kind in MAMBAS and name.rpartition(".")[2] in READ_BY_MAMBAS


def _match_names(model: Any, pattern: str) -> set[str]:
    """The modules whose whole names a regular expression matches."""
    try:
        found = {n for n, _ in model.named_modules() if re.fullmatch(pattern, n)}
    except re.error as e:
        raise UserError(f"model.lora.target_modules={pattern!r} is not a regular expression: {e}") from e
    if not found:
        example = next(iter(_linear_names(model)), "")
        raise UserError(
            f"model.lora.target_modules={pattern!r} matches the whole name of no module, as {example!r} is one; for a "
            f"name or its end give a list, [{pattern}]"
        )
    return found


def _find_by_end(model: Any, want: str) -> list[str]:
    """The modules of this name, or whose names end with it."""
    hits = [n for n, _ in model.named_modules() if n == want or n.endswith("." + want)]
    if hits:
        return hits
    known = _linear_endings(model)
    if want == ALL_LINEAR:
        raise UserError(f"all-linear stands alone, not in a list: model.lora.target_modules={ALL_LINEAR}")
    plain = re.fullmatch(r"[\w.]+", want)
    hint = suggest(want, known) if plain else "; in a list are names or their ends: a pattern stands alone"
    raise UserError(
        f"no module called {want!r} in {model.config.model_type}{hint} (linear layers: {', '.join(sorted(known))})"
    )


def match_patterns(targets: Targets, pattern: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Find what a rank_pattern or alpha_pattern says of each LoRA site, as PEFT does: site -> value, where it says any.

    Its keys are regular expressions of whole names or of their ends, behind a dot; the first that matches counts. Raises
    `UserError` for one that is no expression, or matches no site.
    """
    found: dict[str, Any] = {}
    for name in targets.lora:
        for expression, value in pattern.items():
            try:
                if re.fullmatch(rf"(.*\.)?({expression})", name):
                    found.setdefault(name, value)
            except re.error as e:
                raise UserError(f"model.lora.{key}: {expression!r} is not a regular expression: {e}") from e
    for expression in pattern:
        if not any(re.fullmatch(rf"(.*\.)?({expression})", name) for name in targets.lora):
            endings = {name.rpartition(".")[2] for name in targets.lora}
            raise UserError(
                f"model.lora.{key}: {expression!r} matches the name, or the end of the name, of no module that is trained"
                f"{suggest(expression, endings)} (for example {targets.lora[0]})"
            )
    return found


def check_rank(model: Any, targets: Targets, r: int) -> None:
    """Raise `UserError` for a LoRA rank above min(d_in, d_out) of every trained matrix, beyond which nothing is gained."""
    most = max((min(linear_shape(model.get_submodule(name))) for name in targets.lora), default=r)
    if r > most:
        raise UserError(
            f"model.lora.r_max={r}: the matrices that are trained have ranks up to {most}; lower it, or train them in full "
            "with model.trainable=partial"
        )


def partial_targets(model: Any, last_blocks: int, modules: Iterable[str]) -> Targets:
    """Targets of `trainable: partial`: every parameter of the last blocks and of the named modules.

    Naming a head or an embedding that share their weight trains the shared weight in both places.
    Raises `UserError` for a name that matches nothing, too many blocks, or a layer of a kind that cannot be opened up.
    """
    prefix, blocks = find_blocks(model)
    if last_blocks > len(blocks):
        raise UserError(f"model.partial.last_blocks={last_blocks}, but the model has {len(blocks)} blocks")
    roots = [f"{p}.{i}" for p in find_beside(model, prefix) for i in range(len(blocks) - last_blocks, len(blocks))]
    every = [n for n, _ in model.named_modules() if n]
    for want in modules:
        hits = [n for n in every if n == want or n.endswith("." + want)]
        if not hits:
            endings = {n.rpartition(".")[2] for n in every}
            raise UserError(f"no module called {want!r} in the model{suggest(want, [*every, *endings])}")
        roots += hits
    if not roots:
        raise UserError(
            "model.trainable=partial trains nothing: set model.partial.last_blocks or model.partial.modules"
        )
    leaves = [
        n
        for n, m in model.named_modules()
        if any(n == r or n.startswith(r + ".") for r in roots) and next(m.parameters(recurse=False), None) is not None
    ]
    return _full_targets(model, leaves)


def _full_targets(model: Any, leaves: list[str]) -> Targets:
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(m): n for n, m in model.named_modules()}
    head_name = None if head is None else names[id(head)]
    tied = head is not None and head.weight is table.weight
    with_table = names[id(table)] in leaves
    has_bias = head_name in leaves and getattr(head, "bias", None) is not None
    head_site, head_bias = None, f"{head_name}.bias" if has_bias else None
    if head_name in leaves or (tied and with_table):
        owner = table if tied else head
        head_site = f"{names[id(owner)]}.weight"
        leaves = [n for n in leaves if n not in (head_name, names[id(table)])] + [names[id(owner)]]
        leaves += [names[id(table)]] if not tied and with_table else []
    for n in leaves:
        module = model.get_submodule(n)
        if is_quantised(module):
            raise UserError(
                f"cannot train {n} in full: quantised weights are whole numbers; set model.quantization=none, or "
                "model.trainable=lora, which leaves them as they are"
            )
        norm = getattr(module, "weight", None) is not None and module.weight.ndim == 1 and _is_norm(module)
        if not norm and not is_linear(module) and module is not table:
            raise UserError(f"cannot train {n} ({type(module).__name__}) per client; leave its block out or use LoRA")
    parameters = [f"{n}.{p}" for n in leaves for p, _ in model.get_submodule(n).named_parameters()]
    if head_bias is not None and head_bias not in parameters:  # the head of a table that stands for its weight
        parameters.append(head_bias)
    return Targets(
        full_modules=tuple(leaves),
        full_parameters=tuple(parameters),
        head_site=head_site,
        head_bias=head_bias,
        first_block=_first_block(model, leaves),
    )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or hasattr(module, "variance_epsilon") or hasattr(module, "eps")


def _first_block(model: Any, names: Iterable[str]) -> int:
    """The lowest block that a trained module touches; the last block when all come after it, 0 when one comes before.

    0 too where blocks lie in lists side by side: no one of them is skipped alone.
    """
    prefix, blocks = find_blocks(model)
    if len(find_beside(model, prefix)) > 1:
        return 0
    order = [n for n, _ in model.named_modules()]
    lowest = len(blocks) - 1
    for name in names:
        if name.startswith(prefix + "."):
            lowest = min(lowest, int(name[len(prefix) + 1 :].split(".")[0]))
        elif order.index(name) < order.index(prefix):
            return 0
    return lowest


def _linear_names(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    return [n for n, m in model.named_modules() if is_linear(m) and m is not head]


def _linear_endings(model: Any) -> set[str]:
    return _endings(_linear_names(model))


def _endings(names: Iterable[str]) -> set[str]:
    return {n.rpartition(".")[2] for n in names}
