import pytest

from fedfault.backbones.sites import find_blocks, lora_targets, match_patterns, partial_targets
from fedfault.errors import UserError
from tiny import CAUSAL, GROUPED, SHAPE, make, tiny_gpt2, tiny_llama

PATTERNS = [
    "all-linear",
    ["q_proj", "self_attn.v_proj"],
    r".*\.0\..*(q|down)_proj",
    r"model\.layers\.1\.mlp\..*proj",
]


@pytest.mark.parametrize("wanted", PATTERNS)
def test_targets_are_those_of_peft(wanted):
    from peft import LoraConfig, get_peft_model

    modules = get_peft_model(tiny_llama(), LoraConfig(target_modules=wanted)).base_model.model.named_modules()
    expected = [name for name, m in modules if hasattr(m, "lora_A")]
    assert list(lora_targets(tiny_llama(), wanted).lora) == expected


def test_all_linear_reads_the_layers_of_gpt2_and_leaves_the_head_out():
    found = lora_targets(tiny_gpt2(), "all-linear").lora
    assert {name.rpartition(".")[2] for name in found} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["all-linear"], r"all-linear stands alone, not in a list: model\.lora\.target_modules=all-linear"),
        (
            [".*_proj"],
            r"no module called '\.\*_proj' in llama; in a list are names or their ends: a pattern stands alone",
        ),
        (["q_porj"], r"no module called 'q_porj' in llama; did you mean 'q_proj'"),
        ("q_.*", r"'q_\.\*' matches the whole name of no module, as 'model\.layers\.0\.self_attn\.q_proj' is one"),
        ("(", "is not a regular expression"),
        ([], "is empty"),
        (r".*\.mlp\..*", r"mlp\.act_fn is a SiLU\w+ that takes no LoRA pair"),
        (["lm_head"], "lm_head is a Linear that takes no LoRA pair here"),
    ],
)
def test_what_names_no_target_is_explained(wanted, said):
    with pytest.raises(UserError, match=said):
        lora_targets(tiny_llama(), wanted)


def test_patterns_match_names_and_ends_as_peft_s_do():
    """The first key that matches counts, as in peft.utils.other.get_pattern_key."""
    targets = lora_targets(tiny_llama(), "all-linear")
    found = match_patterns(targets, {r"layers\.0\.self_attn\.q_proj": 2, "q_proj": 8, ".*mlp.*": 1}, "rank_pattern")
    assert found["model.layers.0.self_attn.q_proj"] == 2
    assert found["model.layers.1.self_attn.q_proj"] == 8
    assert found["model.layers.0.mlp.up_proj"] == 1
    assert "model.layers.0.self_attn.v_proj" not in found


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ({"q_prj": 2}, r"'q_prj' matches the name, or the end of the name, of no module .*did you mean 'q_proj'"),
        ({"(q": 2}, r"'\(q' is not a regular expression"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern, why):
    with pytest.raises(UserError, match=why):
        match_patterns(lora_targets(tiny_llama(), "all-linear"), pattern, "rank_pattern")


def test_blocks_are_not_the_longer_list_of_norms_within_a_block():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.StableLmConfig(**shape, num_key_value_heads=4, vocab_size=64, qk_layernorm=True)
    model = transformers.StableLmForCausalLM(config)
    assert find_blocks(model)[0] == "model.layers"
    assert lora_targets(model, ["layers.1.self_attn.q_proj"]).first_block == 1


@pytest.mark.slow
def test_the_last_block_of_xlm_is_the_last_of_each_of_its_lists():
    xlm = make(*CAUSAL["xlm with a causal mask"])
    found = partial_targets(xlm, 1, [])
    whole = {n for n, _ in xlm.named_parameters() if n.split(".")[2:3] == ["1"]}
    assert {n.split(".")[1] for n in whole} == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
    assert {*found.full_parameters} == whole
    assert found.first_block == 0


def test_of_lists_side_by_side_the_one_with_the_most_parameters_has_the_blocks():
    from torch import nn

    model = nn.Module()
    model.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
    model.blocks = nn.ModuleList(nn.Linear(4, 8) for _ in range(2))
    assert find_blocks(model) == ("blocks", model.blocks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "adapted", "left_out"),
    [
        (*CAUSAL["mamba"], {"in_proj", "x_proj"}, {"dt_proj", "out_proj"}),
        (
            "BartConfig",
            {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "vocab_size": 61},
            {"self_attn.q_proj", "self_attn.v_proj"},
            {"encoder_attn.q_proj", "encoder_attn.v_proj"},
        ),
    ],
)
def test_layers_that_nobody_named_and_that_nobody_calls_are_left_out(kind, options, adapted, left_out):
    """Mamba reads dt_proj's weight, BART's decoder alone has nothing for its attention to an encoder."""
    found = lora_targets(make(kind, options), "all-linear" if kind == "MambaConfig" else None)
    assert all(n.endswith(tuple(adapted)) for n in found.lora)
    assert all(any(n.endswith(end) for n in found.lora) for end in adapted)
    assert all(n.endswith(tuple(left_out)) for n in found.left_out)
    assert all(any(n.endswith(end) for n in found.left_out) for end in left_out)


@pytest.mark.slow
def test_layers_that_are_not_called_on_a_row_for_every_text_are_left_out_of_all_linear():
    options = {**SHAPE, "attention_window": 4}
    longformer = make("LongformerConfig", options, auto="AutoModel")
    assert {n.rpartition(".")[2] for n in lora_targets(longformer, "all-linear").lora} == {"dense"}
    with pytest.raises(UserError, match=r"no row for every text on query, value, .*; choose from dense with"):
        lora_targets(longformer, None)
    options = {**SHAPE, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True}
    found = lora_targets(make("DebertaV2Config", options, auto="AutoModel"), "all-linear")
    assert {n.rpartition(".")[2] for n in found.left_out} == {"query_proj", "key_proj"}


@pytest.mark.slow
def test_a_router_that_returns_weights_and_experts_is_left_out_of_all_linear():
    found = lora_targets(make("PhimoeConfig", {**GROUPED, "num_local_experts": 4}), "all-linear")
    assert {n.rpartition(".")[2] for n in found.left_out} == {"router"}


def test_nothing_is_left_out_where_everything_is_called():
    assert not lora_targets(tiny_llama(), "all-linear").left_out
    assert not lora_targets(tiny_gpt2(), None).left_out


def test_experts_stay_in_though_no_token_of_a_trial_may_see_them():
    from torch import nn

    model = tiny_llama()
    model.model.experts = nn.ModuleList([nn.Linear(24, 24)])
    assert "model.experts.0" in lora_targets(model, "all-linear").lora
