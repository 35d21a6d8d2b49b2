import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.corpora.glue import MRPC, SST2, STSB, _read_examples
from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.registry import build

NAMES = ["sst2", "qnli", "mrpc", "stsb", "rte"]
FOLDERS = {"sst2": "SST-2", "qnli": "QNLI", "mrpc": "MRPC", "stsb": "STS-B", "rte": "RTE"}
TSV = {  # name -> header, a line of train, a line of dev
    "sst2": ("sentence\tlabel", 'a "fine film \t1', "dull \t0"),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tShe.\tentailment", "0\tWhy?\tNo.\tnot_entailment"),
    "mrpc": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tIt rose .\tIt went up .", "0\t7\t9\tA .\tB ."),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain-news\tx\t2012\t1\tn\tn\tA plane.\tAn air plane.\t4.500",
        "0\tmain-captions\tx\t2012\t1\tn\tn\tA cat.\tA dog.\t0.499",
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tHe ran.\tHe moved.\tentailment", "0\tA.\tB.\tnot_entailment"),
}
HUB = {
    "sst2": {"sentence": ['a "fine film ', "dull "], "label": [1, 0], "idx": [0, 1]},
    "qnli": {"question": ["Who?", "Why?"], "sentence": ["She.", "No."], "label": [0, 1], "idx": [0, 1]},
    "mrpc": {"sentence1": ["It rose .", "A ."], "sentence2": ["It went up .", "B ."], "label": [1, 0], "idx": [0, 1]},
    "stsb": {"sentence1": ["A plane.", "A cat."], "sentence2": ["An air plane.", "A dog."], "label": [4.5, 0.499]},
    "rte": {"sentence1": ["He ran.", "A."], "sentence2": ["He moved.", "B."], "label": [0, 1], "idx": [0, 1]},
}
DOCUMENTS = {
    "sst2": (('a "fine film', "positive", ""), ("dull", "negative", "")),
    "qnli": (("Who?\nShe.", "entailment", ""), ("Why?\nNo.", "not_entailment", "")),
    "mrpc": (("It rose .\nIt went up .", "equivalent", ""), ("A .\nB .", "not_equivalent", "")),
    "stsb": (("A plane.\nAn air plane.", "5", "main-news"), ("A cat.\nA dog.", "0", "main-captions")),
    "rte": (("He ran.\nHe moved.", "entailment", ""), ("A.\nB.", "not_entailment", "")),
}


def original(folder, name):
    """The task's files as the original archive has them."""
    header, train, dev = TSV[name]
    (folder / FOLDERS[name]).mkdir()
    (folder / FOLDERS[name] / "train.tsv").write_text(f"{header}\n{train}\n", encoding="utf-8-sig")
    (folder / FOLDERS[name] / "dev.tsv").write_text(f"{header}\n{dev}\n")
    (folder / FOLDERS[name] / "test.tsv").write_text("index\tsentence\n0\tno label here\n")
    return folder / FOLDERS[name]


def rows_of(name):
    """What train, validation and test hold on the Hub: the labels of the test sets are hidden."""
    columns = HUB[name]
    for part, rows in (("train", slice(0, 1)), ("validation", slice(1, 2)), ("test", slice(0, 1))):
        yield part, {**{k: v[rows] for k, v in columns.items()}, **({"label": [-1]} if part == "test" else {})}


@pytest.mark.parametrize("name", NAMES)
def test_the_original_files_are_read_from_their_folder_or_the_one_above(tmp_path, name):
    own = original(tmp_path, name)
    for path in (tmp_path, own):
        corpus = build("corpus", f"glue/{name}", path=str(path))
        assert (corpus.train[0], corpus.validation[0]) == DOCUMENTS[name]
        assert (len(corpus.train), len(corpus.validation)) == (1, 1)
        assert corpus.name == f"glue/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_of_the_hubs_repository_is_read(tmp_path, name):
    (tmp_path / name).mkdir()
    for part, columns in rows_of(name):
        pyarrow.parquet.write_table(pa.table(columns), tmp_path / name / f"{part}-00000-of-00001.parquet")
    corpus = build("corpus", f"glue/{name}", path=str(tmp_path))
    assert [d[:2] for d in corpus.train + corpus.validation] == [d[:2] for d in DOCUMENTS[name]]
    assert {d.group for d in corpus.train} == {""}


@pytest.mark.parametrize("name", NAMES)
def test_the_hubs_splits_are_used(monkeypatch, name):
    monkeypatch.setattr(hub, "load_splits", lambda dataset, config: (dict(rows_of(config)), f"Hub {dataset} {config}"))
    corpus = build("corpus", f"glue/{name}")
    assert [d[:2] for d in corpus.train + corpus.validation] == [d[:2] for d in DOCUMENTS[name]]
    assert corpus.source == f"Hub nyu-mll/glue {name}"


def test_examples_keep_sentences_and_label_apart(tmp_path):
    for task in (SST2, MRPC, STSB):
        original(tmp_path, task.name)
    assert _read_examples(SST2, str(tmp_path))[2] == [(('a "fine film',), 1, "")]
    assert _read_examples(MRPC, str(tmp_path))[2:] == (
        [(("It rose .", "It went up ."), 1, "")],
        [(("A .", "B ."), 0, "")],
    )
    assert _read_examples(STSB, str(tmp_path))[3] == [(("A cat.", "A dog."), 0.499, "main-captions")]


@pytest.mark.parametrize(("score", "topic"), [("0", "0"), ("0.5", "1"), ("2.49", "2"), ("2.5", "3"), ("5.000", "5")])
def test_scores_are_rounded_halves_up(tmp_path, score, topic):
    (tmp_path / "train.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t{score}\n")
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\nc\td\t1\n")
    assert build("corpus", "glue/stsb", path=str(tmp_path)).train[0].topic == topic


def test_the_folder_of_another_task_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"MRPC holds another task: use data\.dataset=glue/mrpc"):
        build("corpus", "glue/rte", path=str(original(tmp_path, "mrpc")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst2", "sentence\tlabel\na\t2\n", "label '2'; glue/sst2 has 0 to 1 for negative, positive"),
        ("rte", "sentence1\tsentence2\tlabel\na\tb\tneutral\n", "label 'neutral'"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.1\n", "score '5.1'; glue/stsb has numbers from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\thigh\n", "score 'high'"),
        ("mrpc", "a\tb\n1\t2\n", "sentence1, sentence2, label or #1 String, #2 String, Quality .found: a, b"),
        ("qnli", "index\tquestion\tsentence\tlabel\n", "no rows"),
        ("rte", "a\tb\n1\t2\n", "needs the columns sentence1, sentence2, label .found: a, b"),
        ("sst2", "sentence\tlabel\na\n", "line 2 has 1 fields"),
    ],
)
def test_other_columns_and_labels_are_refused(tmp_path, name, content, message):
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(UserError, match=rf"train\.tsv: .*{message}"):
        build("corpus", f"glue/{name}", path=str(tmp_path))


def test_a_folder_without_train_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a folder sst2 or SST-2 nor a train file.*SST-2/dev\.tsv"):
        build("corpus", "glue/sst2", path=str(tmp_path))
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n")
    with pytest.raises(UserError, match="no train file; glue/sst2 reads"):
        build("corpus", "glue/sst2", path=str(tmp_path))


PUBLISHED = {"sst2": (67349, 872), "qnli": (9999, 5463), "mrpc": (3667, 408), "stsb": (5749, 1500), "rte": (2490, 277)}


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize("name", NAMES)
def test_all_rows_but_repeats_are_there(shared_data, name):
    corpus = build("corpus", f"glue/{name}", path=str(shared_data / "glue"))
    train, validation = PUBLISHED[name]
    assert (0.85 if name == "sst2" else 0.99) * train < len(corpus.train) <= train  # SST-2 has short phrases often
    assert 0.99 * validation < len(corpus.validation) <= validation
    assert len({d.topic for d in corpus.train}) == (6 if name == "stsb" else 2)


@pytest.mark.slow
@pytest.mark.shared
def test_stsb_has_three_genres(shared_data):
    corpus = build("corpus", "glue/stsb", path=str(shared_data / "glue" / "STS-B"))
    assert {d.group for d in corpus.train} == {"main-news", "main-captions", "main-forum"}


def test_a_row_without_its_text_is_empty_and_one_without_its_label_is_named(tmp_path):
    rows = [{"sentence": f"text {i}", "label": i % 2} for i in range(8)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {"label": 1}])))
    corpus = build("corpus", "glue/sst2", path=str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 8
    assert corpus.tally.empty == 1
    file.write_text("\n".join(map(json.dumps, [*rows, {"sentence": "more"}])))
    with pytest.raises(UserError, match=r"train\.jsonl: row 9: label None; glue/sst2 has 0 to"):
        build("corpus", "glue/sst2", path=str(tmp_path))
