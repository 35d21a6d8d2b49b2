import collections
import json

import pytest

from fedfault.corpora.stackoverflow import TAGS
from fedfault.errors import UserError
from fedfault.registry import build


def read(path):
    return build("corpus", "stackoverflow", path=str(path))


def raw(folder, titles, labels):
    folder.mkdir(exist_ok=True)
    (folder / "title_StackOverflow.txt").write_text("".join(f"{title}\n" for title in titles), encoding="utf-8")
    (folder / "label_StackOverflow.txt").write_text("".join(f"{label}\n" for label in labels))


def test_labels_of_the_repository_start_at_one_and_those_of_tables_at_zero(tmp_path):
    titles = [f"How to {i}?" for i in range(40)]
    raw(tmp_path / "rawText", titles, [i % 20 + 1 for i in range(40)])
    (tmp_path / "table").mkdir()
    rows = "".join(f"{i % 20},{title}\n" for i, title in enumerate(titles))
    (tmp_path / "table" / "titles.csv").write_text("label,text\n" + rows)
    made = [read(path) for path in (tmp_path, tmp_path / "rawText", tmp_path / "table")]
    assert len({corpus.fingerprint for corpus in made}) == 1
    by_title = {d.text: d.topic for d in made[0].train + made[0].validation}
    assert [by_title[f"How to {i}?"] for i in (0, 19, 20, 39)] == ["wordpress", "magento", "wordpress", "magento"]


def test_validation_has_a_tenth_of_every_tag(tmp_path):
    raw(tmp_path, [f"Title {i}" for i in range(200)], [i % 20 + 1 for i in range(200)])
    corpus = read(tmp_path)
    assert collections.Counter(d.topic for d in corpus.validation) == dict.fromkeys(TAGS, 1)
    assert len(corpus.train) == 180


def test_without_a_folder_the_way_out_is_named():
    with pytest.raises(
        UserError, match=r"data\.path=FOLDER.*github\.com/jacoxu/StackOverflow.*data\.dataset=registers"
    ):
        build("corpus", "stackoverflow")


def test_other_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"neither rawText/title_StackOverflow\.txt nor a file"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("text,tag\na,bash\n")
    with pytest.raises(UserError, match=r"a\.csv.*needs the columns text, label \(found: text, tag\)"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\na,20\n")
    with pytest.raises(UserError, match="label '20'; stackoverflow has 0 to 19"):
        read(tmp_path)
    with pytest.raises(UserError, match="reads a folder"):
        read(tmp_path / "a.csv")


def test_a_torn_repository_is_explained(tmp_path):
    raw(tmp_path, ["a", "b"], [1])
    with pytest.raises(UserError, match=r"2 lines in title_StackOverflow\.txt, but 1 in label"):
        read(tmp_path)
    raw(tmp_path, ["a", "b"], [1, 0])
    with pytest.raises(UserError, match="label '0'; stackoverflow has 1 to 20"):
        read(tmp_path)
    (tmp_path / "label_StackOverflow.txt").unlink()
    with pytest.raises(UserError, match=r"label_StackOverflow\.txt: cannot be read"):
        read(tmp_path)


@pytest.mark.slow
@pytest.mark.shared
def test_the_twenty_thousand_titles(shared_data):
    corpus = read(shared_data / "stackoverflow_titles")
    assert (len(corpus.train), len(corpus.validation)) == (17980, 2000)  # 20 titles are there twice
    assert {d.topic for d in corpus.train} == set(TAGS)
    assert "linq" in {d.topic for d in corpus.train if "LINQ query" in d.text}


def test_a_row_without_its_text_is_empty_and_one_without_its_label_is_named(tmp_path):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, {"label": 1}])))
    corpus = build("corpus", "stackoverflow", path=str(tmp_path))
    assert len(corpus.train) + len(corpus.validation) == 8
    assert corpus.tally.empty == 1
    file.write_text("\n".join(map(json.dumps, [*rows, {"text": "more"}])))
    with pytest.raises(UserError, match=r"train\.jsonl: row 9: label None; stackoverflow has 0 to"):
        build("corpus", "stackoverflow", path=str(tmp_path))
