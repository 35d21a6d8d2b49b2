"""Titles of Stack Overflow questions, each with one of 20 tags."""

from __future__ import annotations

from pathlib import Path

from fedfault.errors import UserError
from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

HOME = "github.com/jacoxu/StackOverflow"
TITLES, LABELS = "title_StackOverflow.txt", "label_StackOverflow.txt"
TAGS = (
    "wordpress", "oracle", "svn", "apache", "excel", "matlab", "visual-studio", "cocoa", "osx", "bash",
    "spring", "hibernate", "scala", "sharepoint", "ajax", "qt", "drupal", "linq", "haskell", "magento",
)  # fmt: skip


@register("corpus")
def stackoverflow(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """20,000 question titles with 20 tags (a folder with github.com/jacoxu/StackOverflow; no licence stated).

    `path` is a copy of that repository: rawText/title_StackOverflow.txt and rawText/label_StackOverflow.txt with a
    title and a label (1 to 20) a line. Or it is a folder of .csv, .tsv, .jsonl or .parquet files with the columns text
    and label (0 to 19, in the same order). Files are pooled and validation is split off, unless one is called test or
    validation. `keep_repeats` keeps titles that are there twice. No copy on the Hugging Face Hub is known, so `path`
    must be given. The texts are Stack Overflow's, CC BY-SA.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Xu et al., NAACL workshop on vector space modeling for NLP, 2015.
    """
    if path is None:
        raise UserError(
            f"stackoverflow is not read from the Hugging Face Hub; set data.path=FOLDER to a copy of {HOME}, "
            "or data.dataset=registers, which needs no files"
        )
    place = files.find_folder(path, "stackoverflow")
    folder = place.path
    raw = next((place for place in (folder / "rawText", folder) if (place / TITLES).is_file()), None)
    if raw:
        own = sides.Sides([raw / TITLES], [], [])
        train, validation = _read_raw(raw), []
    else:
        own = sides.sort_files(folder, _find_tables(folder))
        train, validation = ([d for file in side for d in _read_table(file)] for side in own[:2])
    return documents.make_corpus(
        "stackoverflow", hub.name_place(place), train, validation, sides=own, keep_repeats=keep_repeats
    )


def _read_raw(folder: Path) -> list[Document]:
    titles, labels = (files.read_text(folder / name).removesuffix("\n").split("\n") for name in (TITLES, LABELS))
    if len(titles) != len(labels):
        raise UserError(f"{folder}: {len(titles)} lines in {TITLES}, but {len(labels)} in {LABELS}")
    tags = (
        files.label_name("stackoverflow", f"{folder / LABELS}: line {n}", label.strip(), TAGS, first=1)
        for n, label in enumerate(labels, start=1)
    )
    return list(map(Document, titles, tags))


def _find_tables(folder: Path) -> list[Path]:
    found = sides.list_tables(folder)
    if not found:
        raise UserError(
            f"data.path={folder}: neither rawText/{TITLES} nor a file that ends in one of {', '.join(files.TABLES)}; "
            f"the folder should be a copy of {HOME}"
        )
    return found


def _read_table(file: Path) -> list[Document]:
    rows = files.read_rows(file)
    files.choose_columns("stackoverflow", file, rows, ("text", "label"))
    return [
        Document(write_cell(r.get("text")), files.label_name("stackoverflow", f"{file}: row {n}", r.get("label"), TAGS))
        for n, r in enumerate(rows, start=1)
    ]
