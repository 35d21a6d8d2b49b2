"""The code on the card of a classifier, run on tiny models: its scores are those of training."""

from __future__ import annotations

from types import SimpleNamespace

import jinja2
import pytest
import torch
from safetensors.torch import save_file

from fedfault.backbones.checks import takes_token_types
from fedfault.backbones.scorer import FIRST, LAST, MEAN, POOLER, Texts, model_inputs, pool_states
from fedfault.text.examples import encode_pairs
from tiny import CAUSAL, OTHERS, make, tiny_bert_tokenizer

LENGTH = 16
SHORT, LONG = "it rains", " ".join(f"word number {i}" for i in range(20))
ENCODERS = [name for name in OTHERS if name not in ("xlm", "xlnet")]  # whose tokenizers put their tokens elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("texts", [(SHORT,), (LONG,), (SHORT, "it is wet"), (LONG, SHORT), (SHORT, LONG), (LONG, LONG)])
@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert", POOLER), *((name, p) for name in ENCODERS for p in (MEAN, FIRST)), ("gpt2", LAST), ("qwen2", LAST)],
)
def test_the_code_on_the_card_gives_the_scores_of_training(tmp_path, monkeypatch, name, pooling, texts):
    body, tokenizer = make(*{**CAUSAL, **OTHERS}[name], "AutoModel").eval(), tiny_bert_tokenizer()
    g = torch.Generator().manual_seed(0)
    head = {"weight": torch.randn(3, 32, generator=g), "bias": torch.randn(3, generator=g)}
    separator = 5 if pooling == LAST else None
    (row,) = encode_pairs([(*texts, "")[:2]], tokenizer, LENGTH, separator)
    n = torch.tensor([[len(row.ids)]])
    given = Texts(torch.tensor([[row.ids]]), n, torch.tensor([[row.second]]), paired=row.second < len(row.ids))
    with torch.no_grad():
        found = body(input_ids=given.ids.flatten(0, 1), **model_inputs(body, given, pooling))
        expected = pool_states(found, given, pooling)[0] @ head["weight"].T + head["bias"]

    body.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    tokenizer.save_pretrained(tmp_path / "adapter")
    save_file(head, tmp_path / "adapter/head.safetensors")
    save_file({}, tmp_path / "adapter/trained.safetensors")
    environment = jinja2.Environment(loader=jinja2.PackageLoader("fedfault", "session"), autoescape=False)
    code = environment.get_template("scorer.md").render(
        exp=SimpleNamespace(model=SimpleNamespace(trainable="partial", max_length=LENGTH)),
        base=repr(str(tmp_path / "base")), placed="", shipped=False,
        pooling=pooling, separator=separator, takes_types=takes_token_types(body), dtype="float32", place="adapter",
        labels=[],
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code.replace('["a sentence"]', repr(list(texts))), "card", "exec"), names)
    torch.testing.assert_close(names["scores"].detach(), expected, rtol=1e-4, atol=1e-5)
