"""The way over the Hugging Face Hub, against a stand-in on loopback: models and data sets under their documented names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import loopback_hub
from fedfault.corpora.glue import TASKS

ROOT = Path(__file__).parents[1]
WORDS = [
    "market", "chip", "team", "minister", "wins", "falls", "software", "election", "shares", "coach", "web", "war", "game",
    "profit", "science", "treaty",
]  # fmt: skip
ARTICLES = "".join(
    f" = Article {i} = \n \n The {WORDS[i % 16]} of {WORDS[(3 * i) % 16]} {i} . It was number {i} . \n"
    for i in range(60)
)


def make_model(folder: Path) -> None:
    """DistilGPT-2's architecture with a handful of weights, and a tokenizer that reads any text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[end], initial_alphabet=bytes_, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **size)).save_pretrained(folder)


def make_dataset(folder: Path, config: str | None, splits: dict[str, list[dict]]) -> None:
    """Parquet files as the Hub has them: in the configuration's folder, or in data/ where there is none."""
    import pandas

    place = folder / (config or "data")
    place.mkdir(parents=True)
    for name, rows in splits.items():
        pandas.DataFrame(rows).to_parquet(place / f"{name}-00000-of-00001.parquet")
    files = "".join(f"  - split: {name}\n    path: {place.name}/{name}-*\n" for name in splits)
    card = folder / "README.md"
    head = card.read_text().removesuffix("---\n") if card.is_file() else "---\nconfigs:\n"
    card.write_text(f"{head}- config_name: {config or 'default'}\n  data_files:\n{files}---\n")


def texts(n: int, salt: str, **columns) -> list[dict]:
    """Rows of different texts; a column is a function of the row's number."""
    made = [" ".join(WORDS[(i * k + k) % 16] for k in range(1, 9)) + f" {salt} {i}" for i in range(n)]
    return [{"text": text, **{name: value(i) for name, value in columns.items()}} for i, text in enumerate(made)]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    """The folder of the stand-in with everything that the docs name."""
    root = tmp_path_factory.mktemp("hub")
    data = root / "datasets"
    make_model(root / "models/distilbert/distilgpt2")
    label = {"label": lambda i: i % 4}
    make_dataset(data / "fancyzhx/ag_news", None, {"train": texts(200, "a", **label), "test": texts(40, "b", **label)})
    lines = [{"text": line} for line in ARTICLES.splitlines(keepends=True)]
    parts = {"train": lines, "validation": lines[:20], "test": lines[:9]}
    make_dataset(data / "Salesforce/wikitext", "wikitext-2-raw-v1", parts)
    emotions = {"labels": lambda i: [i % 28]}
    both = {"train": texts(80, "c", **emotions), "validation": texts(30, "d", **emotions)}
    make_dataset(data / "google-research-datasets/go_emotions", "simplified", both)
    for task in TASKS:
        *sentences, target = task.columns
        columns = {name: (lambda i, name=name: f"{name} {i} {WORDS[i % 16]}") for name in sentences}
        columns[target] = (lambda i: i % 2) if task.labels else (lambda i: float(i % 6))
        rows = [{name: value(i) for name, value in columns.items()} for i in range(60)]
        make_dataset(data / "nyu-mll/glue", task.name, {"train": rows[:40], "validation": rows[40:]})
    make_dataset(data / "cardiffnlp/tweet_eval", "sentiment", {"train": texts(60, "e", label=lambda i: i % 3)})
    make_dataset(data / "cornell-movie-review-data/rotten_tomatoes", None, {"train": texts(60, "f")})
    asked = [{"prompt": f"What is {i}?", "completion": f"It is {i}.", "kind": "ab"[i % 2]} for i in range(40)]
    make_dataset(data / "some/asked", None, {"train": asked[:30], "validation": asked[30:]})
    make_dataset(data / "some/gated", None, {"train": texts(9, "g")})
    (data / "some/gated/.gated").touch()
    make_model(root / "models/some/gated")
    (root / "models/some/gated/.gated").touch()
    make_model(root / "models/some/pinned/.branches/v2")
    pinned = data / "some/pinned/.branches/v2"
    make_dataset(pinned, None, {"train": texts(40, "h", **label), "validation": texts(8, "i", **label)})
    (root / "models/some/pinned/README.md").write_text("moved to the branch v2")
    (data / "some/pinned/README.md").write_text("moved to the branch v2")
    make_model(root / "models/some/cut")
    (root / "models/some/cut/.cut").touch()
    return root


def python(words: Sequence[str], home: Path, address: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the Hub's libraries read their settings when they are imported."""
    own = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "FEDFAULT_CACHE": str(home / "fedfault"),
    }
    env = {**os.environ, **own, "no_proxy": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, *words], env=env, capture_output=True, text=True, check=False, timeout=300, cwd=home
    )


NOBODY = "http://127.0.0.1:9"  # a port that refuses at once
SMALL = [
    "federation.num_rounds=1", "federation.total_clients=3", "model.max_length=32", "evaluation.max_blocks=4",
    "evaluation.general_blocks=2", "training.batch_size=4",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_the_printed_default_runs_over_the_hub_and_offline_afterwards_from_the_cache(served, tmp_path):
    """`python train.py --config configs/default.yaml` needs distilgpt2 and AG News."""
    words = [str(ROOT / "train.py"), "--config", str(ROOT / "configs/default.yaml"), *SMALL]
    with loopback_hub.serve(served) as (address, hub):
        first = python([*words, "experiment_name=first"], tmp_path, address)
        assert first.returncode == 0, first.stderr
        assert any("distilgpt2" in line and line.endswith("model.safetensors") for line in hub.asked)
    again = python([*words, "experiment_name=again"], tmp_path, NOBODY)
    assert again.returncode == 0, again.stderr
    results = tmp_path / "results"
    manifests = [json.loads((results / name / "manifest.json").read_text()) for name in ("first", "again")]
    assert manifests[0]["corpus"] == manifests[1]["corpus"]
    assert manifests[0]["model"]["fingerprint"] == manifests[1]["model"]["fingerprint"]
    commit = loopback_hub.commit_of(served / "datasets/fancyzhx/ag_news")
    assert manifests[0]["corpus"]["source"] == f"Hugging Face Hub fancyzhx/ag_news at {commit}"


@pytest.mark.slow
@pytest.mark.long
def test_every_documented_corpus_is_read_as_the_hub_has_it(served, tmp_path):
    names = ["ag_news", "wikitext", "reddit", "styles", *(f"glue/{task.name}" for task in TASKS)]
    code = (
        "import json, sys\nfrom fedfault.registry import build\n"
        "found = {n: build('corpus', n) for n in sys.argv[1:]}\n"
        "print(json.dumps({n: [len(c.train), len(c.validation), c.source] for n, c in found.items()}))"
    )
    with loopback_hub.serve(served) as (address, _):
        done = python(["-c", code, *names], tmp_path, address)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(names)
    assert all(train > 0 and validation > 0 for train, validation, _ in found.values())
    assert found["ag_news"][:2] == [200, 40]
    assert found["styles"][2].count("Hugging Face Hub") == 4
    assert all(" at " in source for *_, source in found.values())


@pytest.mark.slow
@pytest.mark.long
def test_what_the_hub_refuses_is_said_and_a_cut_download_goes_on(served, tmp_path):
    code = (
        "import sys\nfrom fedfault.errors import UserError\nfrom fedfault.backbones.load import load_backbone\n"
        "from fedfault.reading.hub import load_splits\n"
        "for kind, name in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "    try:\n"
        "        (load_splits if kind == 'data' else load_backbone)(name)\n"
        "        print(kind, name, 'there')\n"
        "    except UserError as e:\n"
        "        print(kind, name, ' '.join(str(e).split()))\n"
    )
    asked = [
        "model",
        "some/cut",
        "model",
        "some/gated",
        "model",
        "some/missing",
        "data",
        "some/gated",
        "data",
        "some/missing",
    ]
    with loopback_hub.serve(served) as (address, hub):
        done = python(["-c", code, *asked], tmp_path, address)
        assert hub.cut, "the download was not cut"
    assert done.returncode == 0, done.stderr
    cut, gated, missing, gated_data, missing_data = done.stdout.splitlines()
    assert cut == "model some/cut there"
    assert "gated" in gated
    assert "model.name=micro" in gated
    assert "model.name=micro" in missing
    assert "data.dataset=registers" in gated_data
    assert "some/missing" in missing_data


@pytest.mark.slow
@pytest.mark.long
def test_a_revision_of_a_model_and_of_ones_own_data_is_reached_and_named_where_they_are_recorded(served, tmp_path):
    """Neither has files on the branch main; the adapter says the revision to PEFT, and the run goes on without network."""
    words = [
        "-m",
        "fedfault",
        "run",
        "data.dataset=text",
        "data.path=hf://datasets/some/pinned@v2",
        "data.partition=iid",
    ]
    words += ["model.name=some/pinned@v2", "evaluation.general=none", "training.local_steps=1", "-q", *SMALL]
    with loopback_hub.serve(served) as (address, _):
        first = python([*words, "experiment_name=first"], tmp_path, address)
        assert first.returncode == 0, first.stderr
        main = python([*words, "experiment_name=main", "data.path=hf://datasets/some/pinned"], tmp_path, address)
        wrong = python([*words, "experiment_name=wrong", "data.path=hf://datasets/some/pinned@v3"], tmp_path, address)
    again = python([*words, "experiment_name=again"], tmp_path, NOBODY)
    assert again.returncode == 0, again.stderr
    assert (main.returncode, wrong.returncode) == (2, 2)
    assert "no file in it that ends in one of .csv" in main.stderr
    assert "hf://datasets/some/pinned@v3 cannot be had" in wrong.stderr
    run = tmp_path / "results/first"
    said = json.loads((run / "manifest.json").read_text())
    commit = loopback_hub.commit_of(served / "datasets/some/pinned/.branches/v2")
    assert said["corpus"]["source"] == f"Hugging Face Hub some/pinned at {commit}"
    assert said["corpus"]["documents"] == {"train": 40, "validation": 8}
    assert (said["model"]["source"], said["model"]["revision"]) == ("some/pinned", "v2")
    assert json.loads((run / "adapter/adapter_config.json").read_text())["revision"] == "v2"
    assert "from_pretrained('some/pinned', revision='v2', dtype" in (run / "adapter/README.md").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_without_any_network_it_is_said_at_once(tmp_path):
    """Left to itself the Hub's client asks for a minute."""
    start = time.monotonic()
    done = python(["-m", "fedfault", "run", "quickstart", "model.name=distilgpt2"], tmp_path, NOBODY)
    spent = time.monotonic() - start
    assert done.returncode == 2
    assert "model.name=micro" in done.stderr
    assert "Retrying" not in done.stderr
    assert spent < 40  # five on an idle machine; it was 53


@pytest.mark.slow
def test_conversations_are_read_from_the_hub_like_from_a_folder(served, tmp_path):
    code = (
        "from fedfault.registry import build\n"
        "c = build('corpus', 'text', path='hf://datasets/some/asked', topic_column='kind')\n"
        "print(len(c.train), len(c.validation), len(c.conversations))"
    )
    with loopback_hub.serve(served) as (address, _):
        done = python(["-c", code], tmp_path, address)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["30", "10", "40"]
