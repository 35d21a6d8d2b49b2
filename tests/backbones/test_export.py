"""The exported adapter in PEFT's own hands."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from fedfault.backbones.checks import state_width
from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.export import export_adapter
from fedfault.backbones.load import MICRO, Backbone
from fedfault.backbones.quantised import dense_weight, quantise
from fedfault.backbones.scorer import MEAN, Scorer, Texts
from fedfault.backbones.sites import is_quantised, lora_targets, partial_targets
from fedfault.types.adapter import Adapter
from tiny import CAUSAL, GROUPED, OTHERS, VOCAB, make, tiny_bert_tokenizer, tiny_gpt2, tiny_llama

pytestmark = pytest.mark.slow  # PEFT takes seconds to import


def exported(folder, build, targets, base=None):
    from transformers import AutoTokenizer

    model = build()
    opened = CohortModel(model, targets(model), r=4, alpha=10.0)
    start = opened.init(0)
    adapter = Adapter(
        opened.layout, start.flat + 0.2 * torch.randn(start.flat.shape, generator=torch.Generator().manual_seed(0))
    )
    tokenizer = AutoTokenizer.from_pretrained(MICRO)
    change = {} if base is None else base(opened.layout)
    opened.fold(change)
    export_adapter(folder, Backbone("tiny", "tiny", model, tokenizer, 0, "fp32", "x"), opened, adapter, "card", change)
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    _, each = opened.losses(adapter.flat[None], ids[None], torch.ones(1, 2, 8))
    return ids, float(each.mean())


@torch.no_grad()
def loss(model, ids) -> float:
    logits = model(input_ids=ids[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1)))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_peft_loads_the_adapter_and_finds_the_same_perplexity(tmp_path, build):
    from peft import PeftModel

    ids, expected = exported(tmp_path, build, lambda m: lora_targets(m, None))
    model = PeftModel.from_pretrained(build(), tmp_path)
    assert math.exp(loss(model, ids)) == pytest.approx(math.exp(expected), rel=1e-4)
    assert loss(build(), ids) != pytest.approx(expected, rel=1e-3)
    assert (tmp_path / "README.md").read_text() == "card"  # one rank and one alpha, which other programs read too


BESIDE_EXPERTS = {
    "DeepseekV3": {"first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
                   "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8, "head_dim": 8,
                   "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4},
    "Qwen3Next": {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2,
                  "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "head_dim": 8,
                  "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
                  "linear_value_head_dim": 8},
}  # fmt: skip


# PEFT 0.21 looks for their keys among modules alone, says that it ignores them, and does not
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match any targeted module")
@pytest.mark.parametrize("kind", BESIDE_EXPERTS)
@pytest.mark.parametrize("wanted", ["all-linear", ["down_proj"]])
def test_dense_layers_beside_stacked_experts_are_loaded_where_they_were_trained(tmp_path, kind, wanted):
    """PEFT takes a module called gate_proj for the experts' part of this name; with ranks of their own, and merged."""
    from peft import PeftModel

    options = {**GROUPED, **BESIDE_EXPERTS[kind]}
    model = make(f"{kind}Config", options)
    targets = lora_targets(model, wanted)
    own = {n: (3, 5.0) for n in targets.lora if n.endswith(("down_proj", "o_proj"))} if wanted == "all-linear" else {}
    opened = CohortModel(model, targets, r=2, alpha=4.0, own=own)
    flat = opened.init(0).flat
    flat = flat + 0.2 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
    _, each = opened.losses(flat[None], ids[None], torch.ones(1, 2, 8))
    backbone = Backbone("tiny", "tiny", model, tiny_bert_tokenizer(), 0, "fp32", "x")
    export_adapter(tmp_path, backbone, opened, Adapter(opened.layout, flat), "card")
    loaded = PeftModel.from_pretrained(make(f"{kind}Config", options), tmp_path).eval()
    assert loss(loaded, ids) == pytest.approx(float(each.mean()), abs=1e-4)
    assert loss(make(f"{kind}Config", options), ids) != pytest.approx(float(each.mean()), abs=1e-3)
    assert loss(loaded.merge_and_unload(), ids) == pytest.approx(float(each.mean()), abs=1e-4)


def folded(ranks):
    """What rounds may have added to the frozen weights: products of these ranks, one after the other over the sites."""

    def base(layout) -> dict[str, torch.Tensor]:
        g, out = torch.Generator().manual_seed(4), {}
        for site, r in zip(layout.lora, itertools.cycle(ranks), strict=False):
            _, d_in, d_out = site.shape
            out[site.name] = 0.2 * torch.randn(d_out, r, generator=g) @ torch.randn(r, d_in, generator=g)
        return out

    return base


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize(("ranks", "r"), [((6, 1), 10), ((30,), None)])
def test_what_went_to_the_frozen_weights_is_in_the_adapter_too(tmp_path, build, ranks, r):
    """On the ORIGINAL base, PEFT finds the run's perplexity; the rank is what is needed: 4 trained and 6 folded, or all."""
    from peft import PeftModel

    ids, expected = exported(tmp_path, build, lambda m: lora_targets(m, None), folded(ranks))
    model = PeftModel.from_pretrained(build(), tmp_path)
    assert math.exp(loss(model, ids)) == pytest.approx(math.exp(expected), rel=1e-4)
    assert model.peft_config["default"].r == (r or 24)
    _, without = exported(tmp_path / "without", build, lambda m: lora_targets(m, None))
    assert expected != pytest.approx(without, rel=1e-3)


def in_bits(model, kind):
    quantise(model, kind, torch.float32, torch.device("cpu"))
    return model


def rounded(model, kind):
    """The plain model with the weights that are multiplied by in its place."""
    for name, layer in in_bits(copy.deepcopy(model), kind).named_modules():
        if is_quantised(layer):
            plain, W = model.get_submodule(name), dense_weight(layer)
            plain.weight.data = W if isinstance(plain, torch.nn.Linear) else W.T.contiguous()
    return model


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
@pytest.mark.parametrize("ranks", [None, (6, 1)])
def test_an_adapter_of_a_quantised_backbone_fits_the_rounded_weights(tmp_path, build, kind, ranks):
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    base = None if ranks is None else folded(ranks)
    ids, expected = exported(tmp_path, lambda: in_bits(build(), kind), lambda m: lora_targets(m, None), base)
    model = PeftModel.from_pretrained(rounded(build(), kind), tmp_path)
    assert loss(model, ids) == pytest.approx(expected, rel=1e-5)
    assert model.peft_config["default"].fan_in_fan_out == (build is tiny_gpt2)


def test_an_adapter_of_a_four_bit_backbone_fits_transformers_own_four_bits(tmp_path):
    """The same roundings: what load_in_4bit with nf4 makes of the original folder."""
    pytest.importorskip("accelerate")
    bnb = pytest.importorskip("bitsandbytes")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    ids, expected = exported(
        tmp_path / "adapter", lambda: in_bits(tiny_llama(), "4bit"), lambda m: lora_targets(m, None)
    )
    tiny_llama().save_pretrained(tmp_path / "base")
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=nf4, device_map="cpu", dtype=torch.float32
    )
    for m in base.modules():
        if isinstance(m, bnb.nn.Linear4bit):
            m.support_avx512bf16_for_cpu = False
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert loss(model, ids) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("fedsa_lora", "none"),
        *(
            pytest.param(*pair, marks=pytest.mark.long)
            for pair in (("flora", "none"), ("fedit", "8bit"), ("flora", "4bit"))
        ),
    ],
)
def test_the_adapter_of_a_run_has_its_scores_on_the_original_model(tmp_path, monkeypatch, method, kind):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fedfault.config import load
    from fedfault.session.progress import Progress
    from fedfault.session.start import start_run
    from fedfault.setup.experiment import prepare

    monkeypatch.setattr("fedfault.report.render.render_report", lambda path: path / "report.html")
    small = [
        "federation.total_clients=3", "federation.num_rounds=2", "federation.participation_rate=1.0",
        "training.local_steps=2", "training.batch_size=2", "model.max_length=16", "data.max_samples=60",
        "evaluation.max_blocks=4", "evaluation.general=none", f"federation.aggregation={method}",
        f"model.quantization={kind}",
    ]  # fmt: skip
    folder = start_run(load("quickstart", [*small, f"logging.results_dir={tmp_path}"]), Progress(quiet=True))
    base = AutoModelForCausalLM.from_pretrained(MICRO, dtype=torch.float32)
    base = base if kind == "none" else rounded(base, kind)
    model = PeftModel.from_pretrained(base, folder.path / "adapter")
    blocks = prepare(load(folder.path / "config.yaml").experiment).federation.task.sets["topic/news"]
    with torch.no_grad():
        logits = model(input_ids=blocks.ids[:, :-1]).logits.log_softmax(-1)
    each = -logits.gather(-1, blocks.ids[:, 1:, None])[..., 0]
    nll = float((each * blocks.mask).sum() / blocks.mask.sum())
    assert nll == pytest.approx(folder.read_records()[-1].scores["topic/news"].loss, rel=1e-5)
    words = {
        "fedsa_lora": "mean over all clients",
        "flora": "the whole change of the original model",
        "fedit": "load_in_8bit=True",
    }
    card = (folder.path / "adapter/README.md").read_text()
    assert words[method] in card
    assert ("BitsAndBytesConfig" in card) == (kind != "none")


def test_a_partial_run_exports_its_parameters_under_their_own_names(tmp_path):
    from safetensors.torch import load_file

    ids, expected = exported(tmp_path, tiny_llama, lambda m: partial_targets(m, 1, ["model.norm"]))
    model = tiny_llama()
    result = model.load_state_dict(load_file(tmp_path / "trained.safetensors"), strict=False)
    assert not result.unexpected_keys
    assert loss(model, ids) == pytest.approx(expected, rel=1e-5)


def test_the_folder_does_not_change_between_exports(tmp_path):
    for name in "ab":
        exported(tmp_path / name, tiny_llama, lambda m: lora_targets(m, None))
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def all_linear(model) -> list[str]:
    """The endings of all linear layers but the head and those whose weights Mamba reads."""
    head = model.get_output_embeddings()
    found = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    return sorted(found - {"out_proj", "dt_proj"} if model.config.model_type == "mamba" else found) or [
        "c_attn",
        "c_proj",
    ]


IDS = torch.randint(8, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def losses_in_peft(model) -> torch.Tensor:
    logits = model(input_ids=IDS[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.mT, IDS[:, 1:], reduction="none")


def noisy(opened) -> Adapter:
    noise = torch.randn(opened.layout.size, generator=torch.Generator().manual_seed(0))
    return Adapter(opened.layout, opened.init(0).flat + 0.2 * noise)


@pytest.mark.parametrize("name", CAUSAL)
def test_peft_computes_the_losses_of_every_causal_architecture_merged_too(tmp_path, name):
    from peft import PeftModel

    model = make(*CAUSAL[name])
    opened = CohortModel(model, lora_targets(model, all_linear(model)), r=2, alpha=4.0)
    adapter = noisy(opened)
    export_adapter(tmp_path, Backbone("t", "t", model, tiny_bert_tokenizer(), 0, "fp32", "x"), opened, adapter, "card")
    expected = opened.losses(adapter.flat[None], IDS[None], torch.ones(1, 2, 8))[1][0]
    found = PeftModel.from_pretrained(make(*CAUSAL[name]), tmp_path).eval()
    torch.testing.assert_close(losses_in_peft(found), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses_in_peft(found.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(losses_in_peft(make(*CAUSAL[name])), expected, rtol=1e-2)


# Of which clients cannot share a pass
@pytest.mark.parametrize("name", [*CAUSAL, *(n for n in OTHERS if n != "xlnet")])
def test_peft_computes_the_states_of_every_headless_architecture_merged_too(tmp_path, name):
    from peft import PeftModel

    kind = {**CAUSAL, **OTHERS}[name]
    model = make(*kind, "AutoModel")
    scorer = Scorer(MEAN, state_width(model), 3)
    opened = CohortModel(
        model, lora_targets(model, [n for n in all_linear(model) if n != "pooler"]), r=2, alpha=4.0, scorer=scorer
    )
    adapter = noisy(opened)
    export_adapter(tmp_path, Backbone("t", "t", model, tiny_bert_tokenizer(), 0, "fp32", "x"), opened, adapter, "card")
    lengths = torch.full((1, 2), 9)
    found = PeftModel.from_pretrained(make(*kind, "AutoModel"), tmp_path).eval()
    with torch.no_grad():
        _, expected = opened.compute_scores(adapter.flat[None], Texts(IDS[None], lengths, lengths, paired=False))
        torch.testing.assert_close(found(input_ids=IDS).last_hidden_state.mean(1), expected[0], rtol=1e-3, atol=1e-4)
        merged = found.merge_and_unload()(input_ids=IDS).last_hidden_state.mean(1)
    torch.testing.assert_close(merged, expected[0], rtol=1e-3, atol=1e-4)
