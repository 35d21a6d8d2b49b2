"""Five tasks of the GLUE benchmark: sentences, or pairs of sentences, with a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fedfault.errors import UserError
from fedfault.reading import documents, files, hub, sides
from fedfault.reading.cells import write_cell
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document, Labels

HUB = "nyu-mll/glue"
VALIDATION_NAMES = ("validation", "dev")  # the labels of the test sets are not public


@dataclass(frozen=True)
class GlueTask:
    """One of the benchmark's tasks: the places of its files, and the columns of its sentences and, last, its label."""

    name: str  # of the Hub's configuration and its folder
    folder: str  # in the original archives
    columns: tuple[str, ...]  # in .parquet files
    tsv_columns: tuple[str, ...]  # in the .tsv files of the original archives
    labels: tuple[str, ...] = ()  # names of the numbers 0, 1, ...; none for a score from 0 to 5
    positive: str | None = None  # the class whose F1 GLUE reports


class GlueExample(NamedTuple):
    """One row: a sentence or a pair, its class (0, 1, ...) or score, and its genre if the file tells it."""

    sentences: tuple[str, ...]
    label: float
    genre: str = ""


PAIR = ("sentence1", "sentence2", "label")
QUESTION = ("question", "sentence", "label")
SST2 = GlueTask("sst2", "SST-2", ("sentence", "label"), ("sentence", "label"), ("negative", "positive"))
QNLI = GlueTask("qnli", "QNLI", QUESTION, QUESTION, ("entailment", "not_entailment"))
MRPC = GlueTask(
    "mrpc", "MRPC", PAIR, ("#1 String", "#2 String", "Quality"), ("not_equivalent", "equivalent"), "equivalent"
)
STSB = GlueTask("stsb", "STS-B", PAIR, ("sentence1", "sentence2", "score"))
RTE = GlueTask("rte", "RTE", PAIR, PAIR, ("entailment", "not_entailment"))
TASKS = (SST2, QNLI, MRPC, STSB, RTE)


@register("corpus", "glue/sst2")
def sst2(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """68,000 phrases of film reviews, negative or positive (Hub nyu-mll/glue sst2, or a folder; terms not stated).

    The topic is the label. `keep_repeats` keeps phrases that are there twice. The dev set is the validation part; most
    of it is in the film reviews of `styles` too: never train on one and evaluate on the other. `path` is a
    copy of the Hub's repository or a folder of the original archives (train.tsv and dev.tsv in SST-2), or the task's own
    folder in it.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Socher et al., EMNLP 2013; Wang et al., ICLR 2019.
    """
    return _make_corpus(SST2, path, keep_repeats)


@register("corpus", "glue/qnli")
def qnli(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """110,000 questions with a sentence that answers or not (Hub nyu-mll/glue qnli, or a folder; CC BY-SA 4.0).

    Question and sentence are joined by a line break. The topic is the label: entailment or not_entailment. The dev set
    is the validation part. `path` and `keep_repeats` are as for glue/sst2, the original archive's folder is QNLI.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Rajpurkar et al., EMNLP 2016 (SQuAD); Wang et al., ICLR 2019.
    """
    return _make_corpus(QNLI, path, keep_repeats)


@register("corpus", "glue/mrpc")
def mrpc(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """4,000 pairs of news sentences, paraphrases or not (Hub nyu-mll/glue mrpc, or a folder; Microsoft's own terms).

    The two are joined by a line break. The topic is the label: equivalent or not_equivalent. The dev set is the
    validation part. `path` and `keep_repeats` are as for glue/sst2, the original archive's folder is MRPC.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Dolan and Brockett, IWP 2005; Wang et al., ICLR 2019.
    """
    return _make_corpus(MRPC, path, keep_repeats)


@register("corpus", "glue/stsb")
def stsb(*, path: str | None = None) -> Corpus:
    """7,000 pairs of sentences, how similar from 0 to 5 (Hub nyu-mll/glue stsb, or a folder; scores CC BY-SA 4.0).

    The two are joined by a line break. The topic is the score rounded to the nearest whole number, halves up. The group
    is the genre, which the original files have and the Hub's have not. The dev set is the validation part. `path` is as
    for glue/sst2, the original archive's folder is STS-B. The texts are under their own licences.

    path: a folder or file with the data, in the place of the Hub

    Reference: Cer et al., SemEval 2017; Wang et al., ICLR 2019.
    """
    return _make_corpus(STSB, path)


@register("corpus", "glue/rte")
def rte(*, path: str | None = None, keep_repeats: bool = False) -> Corpus:
    """2,800 pairs of sentences, one entails the other or not (Hub nyu-mll/glue rte, or a folder; terms not stated).

    The two are joined by a line break. The topic is the label: entailment or not_entailment. The dev set is the
    validation part. `path` and `keep_repeats` are as for glue/sst2, the original archive's folder is RTE.

    path: a folder or file with the data, in the place of the Hub
    keep_repeats: keep texts that are there more than once

    Reference: Dagan et al., PASCAL challenge 2005, and its sequels; Wang et al., ICLR 2019.
    """
    return _make_corpus(RTE, path, keep_repeats)


def _read_examples(
    task: GlueTask, path: str | None
) -> tuple[str, sides.Sides | None, list[GlueExample], list[GlueExample]]:
    """Read a task from the Hub or from a folder: where it came from, its files, its examples of train and validation."""
    if path is None:
        splits, source = hub.load_splits(HUB, task.name)
        train, validation = (
            list(_parse_examples(task, HUB, hub.list_rows(splits[part], *task.columns)))
            for part in ("train", "validation")
        )
        return source, None, train, validation
    place = files.find_folder(path, f"glue/{task.name}")
    folder = _find_folder(task, place.path)
    own = sides.find_sides(folder, f"glue/{task.name}", names=VALIDATION_NAMES)
    train, validation = (
        [e for file in side for e in _parse_examples(task, file, files.read_rows(file))] for side in own[:2]
    )
    return hub.name_place(place._replace(path=folder)), own, train, validation


def _make_corpus(task: GlueTask, path: str | None, keep_repeats: bool = False) -> Corpus:
    source, own, train, validation = _read_examples(task, path)
    made = documents.make_corpus(
        f"glue/{task.name}",
        source,
        _make_documents(task, train),
        _make_documents(task, validation),
        sides=own,
        keep_repeats=keep_repeats,
    )
    return replace(made, labels=_make_labels(task, [*validation, *train]))


def _make_documents(task: GlueTask, examples: Iterable[GlueExample]) -> list[Document]:
    return [Document(_join_sentences(e), _name_topic(task, e.label), e.genre) for e in examples]


def _join_sentences(example: GlueExample) -> str:
    return "\n".join(example.sentences)


def _make_labels(task: GlueTask, examples: Sequence[GlueExample]) -> Labels:
    """The facts about labels; of examples with the same text the first one counts, as in `documents.drop_repeats`."""
    backwards = [(_join_sentences(e).strip(), e) for e in reversed(examples)]
    pairs, scored = len(task.columns) > 2, not task.labels
    return Labels(
        names=task.labels,
        positive=task.positive,
        scores={text: e.label for text, e in backwards} if scored else {},
        first_lengths={text: len(e.sentences[0]) for text, e in backwards} if pairs else {},
    )


def _name_topic(task: GlueTask, label: float) -> str:
    return task.labels[int(label)] if task.labels else str(math.floor(label + 0.5))


def _find_folder(task: GlueTask, folder: Path) -> Path:
    """Find the task's folder: a sub-folder of the given one, or that itself."""
    for name in (task.name, task.folder):
        if (folder / name).is_dir():
            return folder / name
    for other in TASKS:  # whose columns may have the same names
        if other != task and folder.resolve().name in (other.name, other.folder):
            raise UserError(f"data.path={folder} holds another task: use data.dataset=glue/{other.name}")
    if not sides.group_by_part(sides.list_tables(folder)):
        raise UserError(
            f"data.path={folder}: neither a folder {task.name} or {task.folder} nor a train file; glue/{task.name} reads "
            f"a copy of the Hub's {HUB}, or a folder with {task.folder}/train.tsv and {task.folder}/dev.tsv"
        )
    return folder


def _parse_examples(task: GlueTask, where: str | Path, rows: Sequence[files.Row]) -> Iterator[GlueExample]:
    *texts, label = files.choose_columns(f"glue/{task.name}", where, rows, task.columns, task.tsv_columns)
    for n, row in enumerate(rows, start=1):
        sentences = tuple(write_cell(row.get(text)).strip() for text in texts)
        found = _parse_label(task, f"{where}: row {n}", row.get(label))
        yield GlueExample(sentences, found, write_cell(row.get("genre")))


def _parse_label(task: GlueTask, where: str, label: object) -> float:
    """The number of a class, which .tsv files may give by name, or a score."""
    if task.labels:
        if label in task.labels:
            return task.labels.index(str(label))
        return task.labels.index(files.label_name(f"glue/{task.name}", where, label, task.labels))
    try:
        score = float(str(label))
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise UserError(f"{where}: score {label!r}; glue/{task.name} has numbers from 0 to 5")
    return score
