"""What every registered corpus promises, read from the package or from a folder: no network."""

from functools import lru_cache

import pytest

from fedfault.registry import load_builders
from fedfault.testing import get_rules
from fedfault.testing.rules import Subject

RULES = [pytest.param(name, marks=[pytest.mark.slow] * found.slow) for name, found in get_rules("corpus").items()]

GLUE = {
    "sst2": ("SST-2", "sentence\tlabel", "{0}\t{1}"),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "0\t{0}\tyes\tentailment"),
    "mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{1}\t1\t2\t{0}\tyes"),
    "stsb": ("STS-B", "genre\tsentence1\tsentence2\tscore", "news\t{0}\tyes\t{1}.5"),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", "0\t{0}\tyes\tentailment"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each corpus that reads one; any other is built without options."""
    names = ("ag_news", "reddit", "stackoverflow", "styles", "text", "wikitext", *(f"glue/{task}" for task in GLUE))
    made = {name: tmp_path_factory.mktemp(name.replace("/", "_")) for name in names}
    rows = "".join(f"Story {i} of many,{i % 4}\n" for i in range(40))
    (made["ag_news"] / "train.csv").write_text("text,label\n" + rows + "a story of the test,0\n,1\n")
    (made["ag_news"] / "test.csv").write_text("text,label\nA story of the TEST.,0\n")
    (made["reddit"] / "train.csv").write_text("text,label_ids\n" + rows + "a story of the test,0 1\n,1\n")
    (made["reddit"] / "dev.csv").write_text("text,label_ids\nA story of the TEST.,27\n")
    (made["stackoverflow"] / "titles.csv").write_text("text,label\n" + rows + "STORY 1 OF MANY!,2\n,3\n")
    (made["text"] / "mine.csv").write_text("text,label\n" + rows + "STORY 1 OF MANY!,2\n,3\n")
    for part in ("train", "valid"):
        (made["wikitext"] / f"{part}.txt").write_text(f" = Same = \n \n same . \n \n = T = \n \n {part} . \n")
    (made["styles"] / "vader_styles").mkdir()
    for name in ("tweets", "movie_reviews"):
        lines = "".join(f"{i},Text {i} in {name}\n" for i in range(99))
        (made["styles"] / "vader_styles" / f"{name}.csv").write_text("id,text\n" + lines + "99,the same\n100,\n")
    for task, (name, header, row) in GLUE.items():
        folder = made[f"glue/{task}"] / name
        folder.mkdir()
        for part, texts in {"train": ["one", "two", "Test!", "two!"], "dev": ["test"]}.items():
            lines = "".join(f"{row.format(text, i % 2)}\n" for i, text in enumerate(texts))
            (folder / f"{part}.tsv").write_text(f"{header}\n{lines}")
    return made


@lru_cache
def subject(name: str, path: str | None) -> Subject:
    return Subject("corpus", load_builders("corpus")[name], {"path": path} if path else {})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", load_builders("corpus"))
def test_every_corpus_keeps_every_rule(name, rule, folders):
    get_rules("corpus")[rule].check(subject(name, str(folders[name]) if name in folders else None))
