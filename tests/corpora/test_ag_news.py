import collections
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedfault.corpora import ag_news as module
from fedfault.errors import UserError
from fedfault.reading import hub
from fedfault.registry import build

SHARED = Path(__file__).parents[2] / "../shared/data/ag_news"


def test_title_and_description_are_joined_as_sentences(tmp_path):
    (tmp_path / "train.csv").write_text('label,title,description\n0,Peace,"It, came."\n3,,Chips shrink.\n')
    (tmp_path / "test.csv").write_text("label,title,description\n1,Goal,Late.\n2,,chips  SHRINK.\n")
    corpus = build("corpus", "ag_news", path=str(tmp_path))
    assert corpus.train == (("Peace. It, came.", "World", ""),)
    assert corpus.validation == (("Goal. Late.", "Sports", ""), ("chips  SHRINK.", "Business", ""))


def test_a_source_column_is_the_group(tmp_path):
    (tmp_path / "train.csv").write_text("text,label,source\na,0,AP\nb,1,\n")
    (tmp_path / "test.csv").write_text("text,label\nc,2\n")
    corpus = build("corpus", "ag_news", path=str(tmp_path))
    assert [d.group for d in corpus.train + corpus.validation] == ["AP", "", ""]


def test_a_copy_of_the_hubs_repository_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        table = pa.table({"text": [f"{part} {i}" for i in range(8)], "label": [i % 4 for i in range(8)]})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    corpus = build("corpus", "ag_news", path=str(tmp_path))
    assert (len(corpus.train), len(corpus.validation)) == (8, 8)
    assert [d.topic for d in corpus.train[:4]] == ["World", "Sports", "Business", "Sci/Tech"]


def test_without_a_test_file_validation_is_split_off(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"t{i},{i % 4}\n" for i in range(40)))
    assert collections.Counter(
        d.topic for d in build("corpus", "ag_news", path=str(tmp_path)).validation
    ) == dict.fromkeys(module.TOPICS, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [("text,label\na,4\n", "label '4'"), ("a,b\n1,2\n", "found: a, b"), ("", "no rows")],
)
def test_other_columns_and_labels_are_refused(tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        build("corpus", "ag_news", path=str(tmp_path))


def test_a_folder_without_train_and_a_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no train file"):
        build("corpus", "ag_news", path=str(tmp_path))
    (tmp_path / "train.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="reads a folder"):
        build("corpus", "ag_news", path=str(tmp_path / "train.csv"))


def test_the_hubs_splits_are_used(monkeypatch):
    splits = {part: {"text": [f"{part} a", f"{part} b"], "label": [2, 0]} for part in ("train", "test")}
    monkeypatch.setattr(hub, "load_splits", lambda dataset: (splits, f"Hub {dataset}"))
    corpus = build("corpus", "ag_news")
    assert corpus.source == "Hub fancyzhx/ag_news"
    assert corpus.train == (("train a", "Business", ""), ("train b", "World", ""))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the team's data files are not beside the checkout")
def test_the_teams_sample_has_all_rows():
    corpus = build("corpus", "ag_news", path=str(SHARED))
    assert collections.Counter(d.topic for d in corpus.train) == dict.fromkeys(module.TOPICS, 3640)
    assert len({d.group for d in corpus.train}) == 3
    assert len(corpus.validation) == 7600  # one of them differs from another by its punctuation alone


def test_a_row_without_its_text_is_empty_and_one_without_its_label_is_named(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {"label": 1}])))
    corpus = build("corpus", "ag_news", path=str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 8
    assert corpus.tally.empty == 1
    file.write_text("\n".join(map(json.dumps, [*rows, {"text": "more"}])))
    with pytest.raises(UserError, match=r"train\.jsonl: row 9: label None; ag_news has 0 to"):
        build("corpus", "ag_news", path=str(tmp_path))
