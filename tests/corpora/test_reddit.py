import collections
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.corpora.reddit import EMOTIONS
from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.registry import build


def read(path):
    return build("corpus", "reddit", path=str(path))


def test_the_first_emotion_is_the_topic(tmp_path):
    (tmp_path / "train.csv").write_text("text,label_ids,label_names\nOh no,2 25 27,x\nFine,27,neutral\nNice!,0,x\n")
    (tmp_path / "dev.csv").write_text("text,label_ids\nyes,4 27\n")
    (tmp_path / "test.csv").write_text("text,label_ids\nunused,1\n")
    corpus = read(tmp_path)
    assert [d.topic for d in corpus.train] == ["anger", "neutral", "admiration"]
    assert corpus.validation == (("yes", "approval", ""),)


def test_a_copy_of_the_hubs_repository_is_read(tmp_path):
    (tmp_path / "simplified").mkdir()
    for part in ("train", "validation", "test"):
        table = pa.table({"text": [f"{part} a", f"{part} b"], "labels": [[26, 27], [17]], "id": ["x", "y"]})
        pyarrow.parquet.write_table(table, tmp_path / "simplified" / f"{part}-00000-of-00001.parquet")
    corpus = read(tmp_path)
    assert corpus.train == (("train a", "surprise", ""), ("train b", "joy", ""))
    assert corpus.validation == (("validation a", "surprise", ""), ("validation b", "joy", ""))


def test_the_hubs_splits_are_used(monkeypatch):
    splits = {part: {"text": [f"{part} a", f"{part} b"], "labels": [[5], [6]]} for part in ("train", "validation")}
    monkeypatch.setattr(hub, "load_splits", lambda dataset, config: (splits, f"Hub {dataset} {config}"))
    corpus = build("corpus", "reddit")
    assert corpus.source == "Hub google-research-datasets/go_emotions simplified"
    assert corpus.train == (("train a", "caring", ""), ("train b", "confusion", ""))
    assert corpus.validation[0].text == "validation a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label_ids\na,28\n", "label '28'; reddit has 0 to 27"),
        ("text,label_ids\na,\n", "label None"),
        ("text,label_ids\na,joy\n", "label 'joy'"),
        ("text,label\na,1\n", r"needs the columns text, labels or text, label_ids \(found: text, label\)"),
        ("", "no rows"),
    ],
)
def test_other_columns_and_labels_are_refused(tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match=rf"train\.csv: .*{message}"):
        read(tmp_path)


def test_a_folder_without_train_is_refused(tmp_path):
    with pytest.raises(UserError, match="no train file; reddit reads"):
        read(tmp_path)


@pytest.mark.long
@pytest.mark.shared
def test_the_official_parts(shared_data):
    corpus = read(shared_data / "goemotions_reddit")
    topics = collections.Counter(d.topic for d in corpus.train)
    assert set(topics) == set(EMOTIONS)
    assert topics["neutral"] > topics["admiration"] > topics["grief"]
    assert 42_000 < len(corpus.train) < 43_410  # short comments come twice
    assert 5_300 < len(corpus.validation) < 5_426


def test_a_row_without_its_text_is_empty_and_one_without_its_label_is_named(tmp_path):
    rows = [{"text": f"text {i}", "label_ids": i % 2} for i in range(8)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {"label_ids": 1}])))
    corpus = build("corpus", "reddit", path=str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 8
    assert corpus.tally.empty == 1
    file.write_text("\n".join(map(json.dumps, [*rows, {"text": "more"}])))
    with pytest.raises(UserError, match=r"train\.jsonl: row 9: label None; reddit has 0 to"):
        build("corpus", "reddit", path=str(tmp_path))
