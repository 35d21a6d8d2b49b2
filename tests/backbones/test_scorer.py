"""Heads of K clients in one pass against PEFT on transformers' own classifiers, one client at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fedfault.backbones.cohort import CohortModel
from fedfault.backbones.scorer import FIRST, LAST, MEAN, POOLER, Scorer, Texts
from fedfault.backbones.sites import lora_targets, partial_targets
from tiny import VOCAB, tiny_bert, tiny_gpt2, tiny_llama

K, B, T, R, C = 3, 4, 9, 2, 3
LENGTHS = torch.tensor([[9, 4, 1, 6], [3, 9, 9, 2], [5, 5, 8, 7]])


def texts(pairs: bool = False) -> Texts:
    """Rows of unequal length, filled up with whatever comes to hand."""
    ids = torch.randint(1, VOCAB, (K, B, T), generator=torch.Generator().manual_seed(1))
    return Texts(ids, LENGTHS, LENGTHS // 2 if pairs else LENGTHS, paired=pairs)


def opened(model, pooling: str, outputs: int = C, **options) -> CohortModel:
    return CohortModel(
        model, lora_targets(model, None), r=R, alpha=10.0, scorer=Scorer(pooling, 24, outputs), **options
    )


def trained(c: CohortModel) -> torch.Tensor:
    """Adapters and heads of clients that all differ."""
    return 0.3 * torch.randn(K, c.layout.size, generator=torch.Generator().manual_seed(2))


def peft_classifier(kind: str, c: CohortModel, flat: torch.Tensor):
    """transformers' own classifier on the same backbone, with this client's adapter and head in PEFT's hands."""
    import transformers
    from peft import LoraConfig, get_peft_model

    bare = {"bert": tiny_bert, "llama": tiny_llama}[kind]()
    config = bare.config
    config.num_labels, config.pad_token_id = C, 0
    classes = {"bert": "BertForSequenceClassification", "llama": "LlamaForSequenceClassification"}
    model = getattr(transformers, classes[kind])(config).eval()
    model.base_model.load_state_dict(bare.base_model.state_dict())
    targets = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}[kind]
    peft = get_peft_model(model, LoraConfig(r=R, lora_alpha=10, target_modules=targets, task_type="SEQ_CLS")).eval()
    modules = dict(peft.base_model.model.named_modules())
    head = modules["classifier" if kind == "bert" else "score"].modules_to_save["default"]
    prefix = "bert." if kind == "bert" else ""
    with torch.no_grad():
        for site in c.layout.lora:
            A, B = c.layout.pair(flat, site)
            modules[prefix + site.name].lora_A["default"].weight.copy_(A)
            modules[prefix + site.name].lora_B["default"].weight.copy_(B)
        weight, bias = (c.layout.part(flat, site) for site in c.layout.sites[-2:])
        head.weight.copy_(weight)
        if kind == "bert":
            head.bias.copy_(bias)

    def gradient() -> torch.Tensor:
        sites = [modules[prefix + s.name] for s in c.layout.lora]
        parts = [getattr(m, f)["default"].weight.grad.flatten() for m in sites for f in ("lora_A", "lora_B")]
        bias = head.bias.grad if kind == "bert" else torch.zeros(C)
        return torch.cat([*parts, head.weight.grad.flatten(), bias])

    return peft, gradient


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_client_has_the_loss_and_gradient_that_peft_gives_it_alone(kind):
    c = opened(tiny_bert(), POOLER) if kind == "bert" else opened(tiny_llama(), LAST)
    flat, read = trained(c), texts(pairs=kind == "bert")
    if kind == "llama":  # which has no bias, and finds the last token by the padding
        flat[:, -C:] = 0
        read = read._replace(ids=read.ids * read.mask)
    labels = torch.randint(C, (K, B), generator=torch.Generator().manual_seed(3))
    leaf = flat.clone().requires_grad_()
    out, _ = c.compute_scores(leaf, read)
    loss = F.cross_entropy(out.flatten(0, 1), labels.flatten(), reduction="none").view(K, B).mean(1)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    for k in range(K):
        model, gradient = peft_classifier(kind, c, flat[k])
        given = {"token_type_ids": (torch.arange(T) >= read.second[k][:, None]).long()} if kind == "bert" else {}
        expected = model(input_ids=read.ids[k], attention_mask=read.mask[k].long(), labels=labels[k], **given).loss
        expected.backward()
        torch.testing.assert_close(loss[k], expected.detach(), rtol=1e-5, atol=0)
        theirs, ours = gradient(), grad[k].clone()
        if kind == "llama":
            ours[-C:] = 0
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.slow
def test_the_mean_is_over_real_tokens_and_the_first_is_the_first():
    for pooling in (MEAN, FIRST):
        c = opened(tiny_bert(), pooling)
        flat, read = trained(c), texts()
        z = c.compute_scores(flat, read)[1]
        for k in range(K):
            for row in range(B):
                n = int(read.lengths[k, row])
                with torch.no_grad(), c.slots.bind(flat[k : k + 1]):
                    alone = c.model(input_ids=read.ids[k, row : row + 1, :n]).last_hidden_state[0]
                expected = alone.mean(0) if pooling == MEAN else alone[0]
                torch.testing.assert_close(z[k, row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("build", "pooling"), [(tiny_bert, MEAN), (tiny_llama, LAST), (tiny_gpt2, LAST)])
def test_what_stands_in_the_padding_does_not_matter(build, pooling):
    c = opened(build(), pooling)
    flat, read = trained(c), texts()
    other = read._replace(ids=torch.where(read.mask, read.ids, 5))
    wider = read._replace(ids=F.pad(read.ids, (0, 4), value=7))
    expected = c.compute_scores(flat, read)[0]
    for changed in (other, wider):
        torch.testing.assert_close(c.compute_scores(flat, changed)[0], expected, rtol=1e-5, atol=1e-5)


def test_a_fresh_head_is_drawn_from_a_stream_of_its_own():
    c, plain = opened(tiny_bert(), MEAN), CohortModel(bare := tiny_bert(), lora_targets(bare, None), r=R, alpha=10.0)
    one, again, other = c.init(1).flat, c.init(1).flat, c.init(2).flat
    weight, bias = (c.layout.part(one, site) for site in c.layout.sites[-2:])
    assert torch.equal(one, again)
    assert not torch.equal(weight, c.layout.part(other, c.layout.sites[-2]))
    assert 0.01 < float(weight.std()) < 0.03
    assert not bias.any()
    assert torch.equal(one[: plain.layout.size], plain.init(1).flat)  # the adapter's numbers do not know of it


def test_the_head_is_a_part_of_every_client_s_row():
    c = opened(tiny_bert(), MEAN)
    assert [(s.name, s.kind, s.shape) for s in c.layout.sites[-2:]] == [
        ("score.weight", "full", (C, 24)),
        ("score.bias", "full", (C,)),
    ]
    flat = trained(c)
    out = c.compute_scores(flat, texts())[0]
    flat[1, -1] += 1.0
    moved = c.compute_scores(flat, texts())[0] - out
    torch.testing.assert_close(moved[1, :, -1], torch.ones(B))
    assert not moved[[0, 2]].any()


def test_whole_blocks_of_an_encoder_are_trained_with_their_head():
    model = tiny_bert()
    c = CohortModel(model, partial_targets(model, 1, []), r=R, alpha=1.0, scorer=Scorer(MEAN, 24, C))
    assert c.targets.first_block == 1
    leaf = c.init(0).flat.expand(K, -1).clone().requires_grad_()
    (grad,) = torch.autograd.grad(c.compute_scores(leaf, texts())[0].square().sum(), leaf)
    assert all(bool(c.layout.part(grad, s).flatten(1).any(1).all()) for s in c.layout.sites if "key.bias" not in s.name)


def test_dropout_of_a_token_depends_on_its_place_alone():
    c = opened(tiny_bert(), MEAN, dropout=0.5)
    flat, read, key = trained(c), texts(), torch.tensor([5, 6, 7])
    place = lambda columns: (columns[:, None] * 100 + torch.arange(T)).flatten().expand(K, -1)  # noqa: E731
    whole = c.compute_scores(flat, read, key, place(torch.arange(B)))[0]
    some = torch.tensor([2, 0])
    part = read._replace(ids=read.ids[:, some], lengths=LENGTHS[:, some], second=LENGTHS[:, some])
    torch.testing.assert_close(c.compute_scores(flat, part, key, place(some))[0], whole[:, some], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(c.compute_scores(flat, read)[0], whole)
