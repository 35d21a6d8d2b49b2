"""WikiText-2: running text of good and featured Wikipedia articles."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from fedfault.errors import UserError
from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document

HUB, CONFIG = "Salesforce/wikitext", "wikitext-2-raw-v1"
TOPIC = "wikipedia"

_TITLE = re.compile(r"^ = (?!=).*(?<!=) = \n(?=\s*\n)", re.MULTILINE)  # " = Title = "; a section is " = = Title = = "


@register("corpus", cite=("merity2017wikitext",))
def wikitext(*, path: str | None = None) -> Corpus:
    """WikiText-2 raw, an article a document (Hub Salesforce/wikitext, or a folder; CC BY-SA 3.0 and GFDL).

    `path` is a folder with train, valid and test as .txt, .raw, .tokens or .parquet. The first two of these that are
    there become train and validation: with valid and test alone, valid is trained on.

    path: a folder or file with the data, in the place of the Hub

    Reference: Merity et al., arXiv 1609.07843.
    """
    if path is None:
        splits, source = hub.load_splits(HUB, CONFIG)
        train, validation = (split_articles(_join_rows(splits[part]["text"])) for part in ("train", "validation"))
        return documents.make_corpus("wikitext", source, train, validation)
    place = files.find_folder(path, "wikitext")
    seen = sides.list_files(place.path, (".txt", ".raw", ".tokens", ".parquet"))
    found = sides.group_by_part(seen)
    used = [found[name] for name in ("train", *sides.VALIDATION_NAMES) if name in found][:2]
    if not used:
        raise UserError(f"data.path={path}: no file called train, valid or test with the ending .txt, .raw or .parquet")
    own = sides.Sides.of(used[0], used[1] if len(used) > 1 else [], seen)
    train, validation = ([d for file in side for d in split_articles(_read_text(file))] for side in own[:2])
    source = f"{hub.name_place(place)}: {', '.join(file.name for side in used for file in side)}"
    return documents.make_corpus("wikitext", source, train, validation, sides=own)


def split_articles(text: str) -> list[Document]:
    """Split running text into articles, each with its title first. Text before the first title is an article too."""
    starts = [0, *(match.start() for match in _TITLE.finditer(text)), len(text)]
    cut = (text[a:b].strip() for a, b in itertools.pairwise(starts))
    return [Document(article, TOPIC) for article in cut if article]


def _read_text(file: Path) -> str:
    if file.suffix.lower() != ".parquet":
        return files.read_text(file)
    rows = files.read_rows(file)
    files.check_columns(file, rows, ["text"], "data.path")
    return _join_rows(write_cell(row["text"]) for row in rows)


def _join_rows(rows: Iterable[str]) -> str:
    """Join the lines of the Hub's tables, in which a blank one is an empty text, to the text that they were cut from."""
    return "".join(row or " \n" for row in rows)
