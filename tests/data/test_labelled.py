"""From labelled corpora to clients: which number a label is, which sentences are a pair, what is drawn for evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedfault.config import load
from fedfault.data.labelled import count_outputs, find_positive_class, list_classes, split_into_examples
from fedfault.data.split import load_corpus
from fedfault.errors import UserError
from glue import glue, sentence
from tiny import tiny_bert_tokenizer


def experiment(name: str, path: str, *changes: str, task: str = "classification"):
    usual = {"federation.total_clients": "3", "data.partition": "iid", "model.max_length": "16"}
    usual |= {"data.dataset": name, "data.path": path, "data.task_type": task}
    given = usual | dict(change.split("=", 1) for change in changes)
    return load("quickstart", [f"{key}={value}" for key, value in given.items()]).experiment


def made(exp, control: bool = False):
    return split_into_examples(exp, load_corpus(exp), tiny_bert_tokenizer(), None, control=control)


def test_classes_have_the_numbers_that_glue_gives_them(tmp_path):
    exp = experiment("glue/mrpc", glue(tmp_path, "MRPC"))
    corpus = load_corpus(exp)
    assert list_classes(exp, corpus) == ("not_equivalent", "equivalent")
    assert find_positive_class(exp, corpus) == 1
    found = made(exp)
    equivalent = found.topics.index("equivalent")
    assert found.examples.labels.tolist() == (found.labels == equivalent).astype(int).tolist()
    exp = experiment("glue/rte", glue(tmp_path, "RTE"))
    assert find_positive_class(exp, load_corpus(exp)) is None


def test_topics_of_other_corpora_are_classes_in_alphabetical_order(tmp_path):
    rows = ["text,kind", *(f"{sentence(i)},{'nml'[i % 3]}" for i in range(30))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    exp = experiment("text", str(tmp_path / "t.csv"), "data.topic_column=kind", "data.num_labels=3")
    corpus = load_corpus(exp)
    assert list_classes(exp, corpus) == ("l", "m", "n")
    assert count_outputs(exp, corpus) == 3
    assert made(exp).examples.labels.tolist() == ["lmn".index(d.topic) for d in corpus.train]


def test_classes_that_are_named_have_that_order_and_the_data_may_have_some_of_them(tmp_path):
    rows = ["text,kind", *(f"{sentence(i)},{'nl'[i % 2]}" for i in range(30))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    of = ["text", str(tmp_path / "t.csv"), "data.topic_column=kind"]
    exp = experiment(*of, "data.label_names=[n,m,l]")
    corpus = load_corpus(exp)
    assert list_classes(exp, corpus) == ("n", "m", "l")
    assert count_outputs(exp, corpus) == 3
    assert made(exp).examples.labels.tolist() == ["nml".index(d.topic) for d in corpus.train]
    with pytest.raises(UserError, match=r"data.label_names=m, n is without l, which .* has; add them"):
        count_outputs(experiment(*of, "data.label_names=[m,n]"), corpus)


@pytest.mark.parametrize(
    ("change", "task", "words"),
    [
        ("data.label_names=[a,b,a]", "classification", "has a more than once"),
        ("data.label_names=[a,b]", "regression", "has scores; leave it out"),
        ("data.label_names=[a,b]", "causal_lm", "causal_lm has none"),
        ("data.label_names=[a]", "classification", "at least 2"),
    ],
)
def test_names_that_cannot_be_classes_are_refused(change, task, words):
    with pytest.raises(UserError, match=words):
        experiment("text", "nowhere", change, task=task)


def test_scores_are_those_of_the_file(tmp_path):
    exp = experiment("glue/stsb", glue(tmp_path, "STS-B"), task="regression")
    corpus = load_corpus(exp)
    assert count_outputs(exp, corpus) == 1
    found = made(exp)
    by_text = {f"{sentence(i)}\n{sentence(i + 7)}": round((i * 7) % 51 / 10, 3) for i in range(60)}
    expected = [by_text[d.text] for d in found.documents]
    torch.testing.assert_close(found.examples.labels, torch.tensor(expected))
    assert {d.topic for d in corpus.train} <= set("012345")


def test_a_pair_is_read_as_two_sentences(tmp_path):
    exp = experiment("glue/rte", glue(tmp_path, "RTE"))
    found, tokenizer = made(exp), tiny_bert_tokenizer()
    for i in (0, 7):
        a, b = found.documents[i].text.split("\n")
        expected = tokenizer(a, b, return_token_type_ids=True)
        n = int(found.examples.lengths[i])
        assert found.examples.ids[i, :n].tolist() == expected["input_ids"]
        assert int(found.examples.second[i]) == expected["token_type_ids"].index(1)


def test_two_text_columns_are_a_pair_wherever_a_line_breaks(tmp_path):
    rows = ['{"a": "good film\\nbad", "b": "it is", "y": "p"}', '{"a": "plot", "b": "a\\nfilm", "y": "q"}']
    rows += [f'{{"a": "{sentence(i)}", "b": "{sentence(i + 3)}", "y": "{"pq"[i % 2]}"}}' for i in range(20)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    columns = ["data.text_columns=[a,b]", "data.topic_column=y"]
    found = made(experiment("text", str(tmp_path / "t.jsonl"), *columns))
    texts = [d.text for d in found.documents]
    tokenizer = tiny_bert_tokenizer()
    known = [
        (texts.index(t), a)
        for t, a in (("good film\nbad\nit is", "good film bad"), ("plot\na\nfilm", "plot"))
        if t in texts
    ]
    assert known
    for place, a in known:
        assert int(found.examples.second[place]) == len(tokenizer(a)["input_ids"])


def test_each_client_has_its_own_examples_and_keeps_some_back(tmp_path):
    exp = experiment("glue/sst2", glue(tmp_path, "SST-2"))
    found = made(exp)
    assert sum(len(t) for t in found.train) + sum(len(h) for h in found.held_out) == len(found.documents)
    assert [len(t) + len(h) for t, h in zip(found.train, found.held_out, strict=True)] == [
        len(own) for own in found.deal.clients
    ]
    assert found.to_json()["tokens"] == [len(t) for t in found.train]
    assert sum(found.mixture.values()) == pytest.approx(1)
    control = made(exp, control=True)
    assert [len(t) for t in control.train] == [len(t) for t in found.train]


def test_what_is_evaluated_has_the_tokens_of_so_many_blocks(tmp_path):
    exp = experiment("glue/sst2", glue(tmp_path, "SST-2"), "evaluation.max_blocks=2", "data.held_out=0.5")
    found = made(exp)
    drawn = sum(int(part.lengths.sum()) for part in found.validation.values())
    assert 2 * 2 * 16 - 8 < drawn <= 2 * 2 * 16  # two topics; the next example would not have fitted
    assert all(int(h.lengths.sum()) <= 2 * 16 // 4 for h in found.held_out)
    assert set(found.validation) == {"negative", "positive"}
    assert all(len(set(part.labels.tolist())) == 1 for part in found.validation.values())


def test_clients_are_skewed_by_label(tmp_path):
    path = glue(tmp_path, "SST-2", 90)
    skewed = made(
        experiment(
            "glue/sst2", path, "data.partition={name: label_skew, labels_per_client: 1}", "federation.total_clients=2"
        )
    )
    assert all((row > 0).sum() == 1 for row in skewed.counts)
    assert all(len(set(t.labels.tolist())) == 1 for t in skewed.train)
    drawn = made(experiment("glue/sst2", path, "data.partition={name: dirichlet, alpha: 0.3}"))
    assert drawn.counts.sum() == len(drawn.documents)


BAD = [
    ("SST-2", ["data.num_labels=3"], r"num_labels=3, but glue/sst2 has 2 classes \(negative, positive\)"),
    ("SST-2", ["data.task_type=regression"], "regression needs texts with a score"),
    ("STS-B", ["data.task_type=regression", "data.num_labels=6"], "num_labels=6, but a regression has one score"),
]


@pytest.mark.parametrize(("task", "changes", "says"), BAD, ids=[" ".join(c) for _, c, _ in BAD])
def test_labels_that_are_not_there_are_explained(tmp_path, task, changes, says):
    name = {"SST-2": "glue/sst2", "STS-B": "glue/stsb"}[task]
    exp = experiment(name, glue(tmp_path, task), *changes)
    with pytest.raises(UserError, match=says):
        count_outputs(exp, load_corpus(exp))


def test_one_class_is_none(tmp_path):
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(sentence(i) for i in range(20)))
    exp = experiment("text", str(tmp_path / "t.csv"))
    with pytest.raises(UserError, match=r"needs two classes at least.*set data\.topic_column"):
        count_outputs(exp, load_corpus(exp))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["data.task_type=regression", "evaluation.metric=accuracy"],
            r"metric=accuracy does not fit data\.task_type=regression",
        ),
        (["data.task_type=classification", "evaluation.metric=pearson"], "measured by accuracy and f1"),
        (["evaluation.metric=accuracy"], "is about labels, but data.task_type=causal_lm"),
        (["evaluation.target_score=0.9"], "is about labels"),
        (["data.num_labels=2"], "is about labels"),
        (["data.task_type=classify"], "causal_lm"),
        (["evaluation.metric=acuracy"], "accuracy"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        load("quickstart", changes)


def test_the_usual_name_of_the_task_is_understood():
    found = load("quickstart", ["data.task_type=sequence_classification"])
    assert found.experiment.data.task_type == "classification"
    assert found.experiment.metric == "accuracy"
    assert any("'sequence_classification' is 'classification'" in note for note in found.notes)
    assert load("quickstart", ["data.task_type=regression"]).experiment.metric == "pearson"
    assert load("quickstart").experiment.metric is None


def write_sides(folder, train, validation, ending="jsonl"):
    """Two files of texts with these labels."""
    for side, labels in (("train", train), ("validation", validation)):
        rows = [
            {"text": sentence(i + (100 if side == "train" else 0)), "kind": label} for i, label in enumerate(labels)
        ]
        lines = [json.dumps(row) for row in rows]
        if ending == "csv":
            lines = ["text,kind", *(f"{row['text']},{row['kind']}" for row in rows)]
        (folder / f"{side}.{ending}").write_text("\n".join(lines))
    return ["text", str(folder), "data.topic_column=kind"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ([0.0, 1.0] * 6, [0, 1]),
        ([0, 0.0, "0", 1, 1.0, "1"] * 2, ["0.0", "1.0"]),
        (["0", "1"] * 6, [0.0, 1.0]),
    ],
)
def test_labels_that_are_equal_as_numbers_are_one_class(tmp_path, ending, train, validation):
    exp = experiment(*write_sides(tmp_path, train, validation, ending))
    assert list_classes(exp, load_corpus(exp)) == ("0", "1")


@pytest.mark.parametrize(
    ("train", "validation", "says"),
    [
        ([0, 1] * 6, [-1, -1], r"2 of 2 validation texts of text have a class that no training text has: -1"),
        (["a", "b"] * 6, ["a", "b", "c"], r"1 of 3 .* has: c \(training has a, b\)"),
        ([True, False] * 6, [1, 0], r"has: 0, 1 \(training has False, True\)"),
        (["a", "b"] * 6, ["A", "b"], r"has: A "),
    ],
)
def test_a_class_that_only_validation_has_is_an_error_unless_it_is_named(tmp_path, train, validation, says):
    of = write_sides(tmp_path, train, validation)
    exp = experiment(*of)
    with pytest.raises(UserError, match=says):
        count_outputs(exp, load_corpus(exp))
    names = sorted({str(label) for label in (*train, *validation)})
    exp = experiment(*of, f"data.label_names=[{','.join(map(repr, names))}]")
    assert list_classes(exp, load_corpus(exp)) == tuple(names)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (["Pos", "neg", "pos"] * 4, r"classes 'Pos' \(4 training texts\) and 'pos' \(4\), which differ in case"),
        (["True", "False", "true"] * 4, "'True' .* and 'true'"),
        (["a  b", "a b", "c"] * 4, "'a  b' .* and 'a b'"),
        (["a\uff11", "a1", "c"] * 4, "'a1' .* and 'a\uff11'"),
    ],
)
def test_classes_that_are_written_alike_are_an_error_unless_they_are_named(tmp_path, train, says):
    of = write_sides(tmp_path, train, train[:3])
    exp = experiment(*of)
    with pytest.raises(UserError, match=says):
        count_outputs(exp, load_corpus(exp))
    exp = experiment(*of, f"data.label_names=[{','.join(map(repr, train[:3]))}]")
    assert list_classes(exp, load_corpus(exp)) == tuple(train[:3])


def test_the_classes_of_a_source_are_an_error_too_where_training_has_not_all_of_validation(tmp_path):
    path = Path(glue(tmp_path, "SST-2"))
    train = next(path.rglob("train.tsv"))
    header, *rows = train.read_text().splitlines()
    train.write_text("\n".join([header, *(row for row in rows if row.endswith("\t1"))]))
    exp = experiment("glue/sst2", str(path))
    with pytest.raises(UserError, match="a class that no training text has: negative"):
        count_outputs(exp, load_corpus(exp))


def test_a_pair_without_its_first_sentence_keeps_all_of_its_second(tmp_path):
    rows = ["a,b,y", ",film it is,p", "plot,,q", *(f"{sentence(i)},{sentence(i + 3)},{'pq'[i % 2]}" for i in range(20))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    found = made(experiment("text", str(tmp_path / "t.csv"), "data.text_columns=[a,b]", "data.topic_column=y"))
    tokenizer = tiny_bert_tokenizer()
    for text, pair in (("film it is", ("", "film it is")), ("plot", ("plot", ""))):
        texts = [d.text for d in found.documents]
        if text in texts:
            i = texts.index(text)
            n = int(found.examples.lengths[i])
            assert found.examples.ids[i, :n].tolist() == tokenizer([pair[0]], [pair[1]])["input_ids"][0]
    assert {"film it is", "plot"} & set(texts)


class Deaf:
    """A tokenizer that knows words of letters only: a token a word."""

    def __call__(self, texts, **_):
        return {"input_ids": [[1] * sum(word.isalpha() for word in text.split()) for text in texts]}


def test_texts_that_are_too_short_or_cut_off_are_counted_and_told(tmp_path):
    words = [sentence(i) for i in range(20)] + [" ".join(sentence(j) for j in range(k, k + 9)) for k in (30, 40, 50)]
    rows = ["text,y", *(f"{text},{'pq'[i % 2]}" for i, text in enumerate([*words, "1 2 3"]))]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    exp = experiment("text", str(tmp_path / "t.csv"), "data.topic_column=y")
    found = split_into_examples(exp, load_corpus(exp), Deaf(), 0)
    assert (found.too_short, found.cut) == (1, 3)
    said = found.describe_losses()
    assert said[0].startswith("1 texts are too short")
    assert said[1].startswith("3 texts fill model.max_length")
    assert (made(exp).too_short, made(exp).cut) == (0, 3)  # an encoder's tokenizer has a token for unknown words
