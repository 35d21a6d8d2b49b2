"""What a loaded model is tried for before anything is learned on it: a fault here would pass for a bad method later.

Every function that begins with `check` raises `UserError`, which says what came and what to do.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Embedding, functional

from fedfault.errors import UserError, read_first_line
from fedfault.saying import Say, say_nothing

SHORT = 8  # tokens on which every place is tried
NOISE = 1e-5  # of the largest state: ten times what float32 rounds differently in another row of a batch
# what a model raises that needs other inputs than tokens, or whose head cannot be told from its body
BROKEN = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError)
WINDOWS = ("sliding_window", "attention_window", "attention_chunk_size", "local_attention", "window_size")
REPAIR = "save the model again with save_pretrained, or give the folder that it came from"


def check_filled(
    name: str,
    model: Any,
    found: Mapping[str, Any],
    say: Say = say_nothing,
    made_up: str = "",
) -> None:
    """Raise `UserError` unless the stored weights fill the model: what is left over would be drawn at random.

    found: the loading info of transformers; made_up: how names begin of weights that the caller does not use. Weights that
    the model has no place for are an error if they belong to its body, such as a block too many or an adapter, and are
    told where they belong to something else, such as the head of a classifier.
    """
    if wrong := sorted(found["mismatched_keys"]):
        key, stored, expected = wrong[0]
        raise UserError(
            f"model.name={name}: {_count(wrong, 'has', 'have')} another shape than config.json says, first {key}: "
            f"{tuple(stored)} instead of {tuple(expected)}; {REPAIR}"
        )
    missing = sorted(key for key in found["missing_keys"] if not (made_up and key.startswith(made_up)))
    extra = sorted(found["unexpected_keys"])
    if missing:
        also = f" ({_count(extra, 'has', 'have')} no place in the model, first {extra[0]})" if extra else ""
        headless = not any(_is_in_body(key, model) for key in missing)
        way = "for an encoder, or a decoder without its head, data.task_type=classification; else " if headless else ""
        raise UserError(
            f"model.name={name}: {_count(missing, 'is', 'are')} missing, first {missing[0]}, and would be drawn at random"
            f"{also}; {way}{REPAIR}"
        )
    # The decoder of BART or Whisper, alone, has learned to read what its encoder says
    halves = (f"{model.base_model_prefix}.encoder.", "encoder.")
    if lost := [key for key in extra if _is_in_body(key, model) or ".lora_" in key or key.startswith(halves)]:
        raise UserError(
            f"model.name={name}: {_count(lost, 'has', 'have')} no place in {type(model).__name__} as its config.json "
            f"describes it, first {lost[0]}, and would be left out; {REPAIR}"
        )
    if extra:
        say(f"of {name}, {_count(extra, 'is', 'are')} not used, first {extra[0]}")


def _count(weights: Sequence[object], one: str, many: str) -> str:
    return f"1 weight {one}" if len(weights) == 1 else f"{len(weights)} weights {many}"


def _is_in_body(key: str, model: Any) -> bool:
    """Whether a weight's name begins as those of the model without its head do."""
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    parts = {child for child, _ in model.base_model.named_children()}
    return key.removeprefix(prefix).partition(".")[0] in parts


def check_numbers(name: str, model: Any) -> None:
    """Raise `UserError` for weights that are no numbers, or whole numbers, which would be read as the model's own."""
    if whole := [n for n, p in model.named_parameters() if not p.is_floating_point()]:
        raise UserError(
            f"model.name={name}: its weights are quantised already ({len(whole)} of them, first {whole[0]}); give the "
            "original model, and model.quantization=4bit or 8bit"
        )
    if bad := [n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all())]:
        raise UserError(
            f"model.name={name}: {_count(bad, 'holds', 'hold')} numbers that are not finite, first {bad[0]}; the training "
            "that wrote them diverged: give an earlier checkpoint"
        )


def attention_window(config: Any) -> int | None:
    """How many tokens a model attends to in some of its layers; None if its attention reaches over all."""
    for name in WINDOWS:
        found = getattr(config, name, None)
        sizes = found if isinstance(found, list | tuple) else [found]
        if sizes and all(isinstance(size, int) and size > 0 for size in sizes):
            return int(max(sizes))
    return None


def ordinary_tokens(model: Any, length: int) -> Tensor:
    """Choose ids (length,) of tokens that are no special ones, which are at either end of a vocabulary.

    Raises `UserError` for a model without a table of token embeddings.
    """
    try:
        size = len(model.get_input_embeddings().weight)
    except BROKEN as e:
        raise UserError(f"{type(model).__name__} has no table of token embeddings: it is no model of text") from e
    return size // 2 + torch.arange(length) % (size - size // 2 - 1)


@torch.no_grad()
def compute_states(model: Any, ids: Tensor) -> Tensor:
    """Compute the last hidden states (n, T, d) of ids (n, T). Raises `UserError` for a model that needs more than tokens."""
    try:
        states: Tensor = model.base_model(input_ids=ids.to(model.device)).last_hidden_state
    except BROKEN as e:
        raise UserError(
            f"{type(model).__name__} gives no states of tokens alone ({read_first_line(e)}); choose another backbone"
        ) from e
    return states


def state_width(model: Any) -> int:
    """The width of the last hidden states, which is not `hidden_size` where they are projected, as in OPT-350M."""
    return compute_states(model, ordinary_tokens(model, 1)[None]).shape[-1]


@torch.no_grad()
def is_causal(model: Any, length: int = SHORT) -> bool:
    """Whether no state depends on a later token, tried on `length` tokens.

    Every row of the batch but the first has other tokens from some place on, and the states before it must stay. On few
    tokens all places are tried: a window reaches the next token at least, and a chunk of tokens begins somewhere.
    """
    ids, place = ordinary_tokens(model, length), torch.arange(length)
    starts = range(1, length) if length <= SHORT else (length // 2, length // 2 + 1, length - 1)
    rows = torch.stack([ids, *(ids + (place >= t) for t in starts)])
    states = compute_states(model, rows).float()
    if not bool(torch.isfinite(states).all()):
        raise UserError(f"{type(model).__name__} computes states that are not finite from ordinary tokens")
    most = NOISE * float(states.abs().max())
    return all(bool(((states[i, :t] - states[0, :t]).abs() <= most).all()) for i, t in enumerate(starts, 1))


def check_causal(name: str, model: Any, length: int | None) -> None:
    """Raise `UserError` if the model sees the token that it is to predict.

    length: the tokens in a row that it will be given; more than its attention reaches are tried as well.
    """
    window = attention_window(model.config)
    beyond = length is not None and window is not None and SHORT < window + 2 <= length
    if is_causal(model) and (not beyond or is_causal(model, window + 2)):  # type: ignore[operator]
        return
    raise UserError(
        f"model.name={name}: {type(model).__name__} is not causal: an earlier state changes with a later token, so that it "
        "would see what it is to predict; data.task_type=classification can use it"
    )


@torch.no_grad()
def check_head(name: str, model: Any) -> None:
    """Raise `UserError` if logits are not x W^T + b of the last hidden state x: the loss is computed from these."""
    ids = torch.arange(1, 5, device=model.device)[None]
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(
            f"model.name={name}: {type(model).__name__} has no output head; it is not a causal language model"
        )
    x = model.base_model(input_ids=ids).last_hidden_state
    ours, theirs = functional.linear(x, head.weight, getattr(head, "bias", None)), model(input_ids=ids).logits
    if ours.shape != theirs.shape or not torch.allclose(ours.float(), theirs.float(), rtol=1e-3, atol=1e-3):
        raise UserError(
            f"model.name={name}: {type(model).__name__} rescales its logits after the head, which is not supported; "
            "choose another backbone, or for an encoder data.task_type=classification"
        )


def count_positions(model: Any) -> int | None:
    """Count the tokens in a row that a model has positions for; None if there is no limit.

    RoBERTa and its kin count positions from the one after that of padding, so that a table of 514 serves 512 tokens.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    limits = [most] if most is not None and most > 0 else []  # XLNet says -1 for no limit
    for name, table in model.named_modules():
        if isinstance(table, Embedding) and "position" in name and table.padding_idx is not None:
            limits.append(table.num_embeddings - table.padding_idx - 1)
    return min(limits, default=None)


def check_length(name: str, model: Any, length: int) -> None:
    """Raise `UserError` if the model has no positions for so many tokens."""
    most = count_positions(model)
    if most is not None and length > most:
        raise UserError(f"model.max_length={length}, but {name} takes at most {most} tokens; lower model.max_length")


def takes_token_types(model: Any) -> bool:
    """Whether a model without its head tells the two sentences of a pair apart by types of tokens."""
    types = getattr(model.config, "type_vocab_size", 2)
    return types > 1 and "token_type_ids" in inspect.signature(model.forward).parameters


def choose_separator(name: str, model: Any, tokenizer: Any) -> int:
    """Choose the token that stands between documents: the tokenizer's end of text, else its beginning, else the config's.

    The config's must be no text in the tokenizer's eyes: all its occurrences count no bytes.
    """
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    end = getattr(model.config, "eos_token_id", None)
    token = end[0] if isinstance(end, list) else end
    if token is not None and not tokenizer.decode([token], skip_special_tokens=True):
        return int(token)
    what = (
        ""
        if token is None
        else f", and the eos_token_id={token} of its config.json is the text {tokenizer.decode([token])!r}"
    )
    raise UserError(
        f"model.name={name}: its tokenizer has no token for the end of a text{what}; set eos_token in the folder's "
        "tokenizer_config.json"
    )


def check_tokens(name: str, model: Any, tokenizer: Any, rows: Iterable[Tensor]) -> None:
    """Raise `UserError` if a token of the rows has no embedding; the model may be opened up for clients already."""
    size = model.get_input_embeddings().num_embeddings
    largest = max((int(ids.max()) for ids in rows if ids.numel()), default=0)
    if largest >= size:
        raise UserError(
            f"model.name={name}: its tokenizer gives token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), but "
            f"the model has {size} embeddings (0 to {size - 1}); give the tokenizer that belongs to the model, or resize "
            "the model with resize_token_embeddings and save it again"
        )
