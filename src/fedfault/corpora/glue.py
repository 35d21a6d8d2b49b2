"""Five tasks of the GLUE benchmark: sentences, or pairs of sentences, with a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fedfault.errors import UserError
from fedfault.reading import documents, files, hub
from fedfault.registry import register
from fedfault.types.corpus import Corpus, Document, Labels

HUB = "nyu-mll/glue"
VALIDATION_NAMES = ("validation", "dev")  # the labels of the test sets are not public


@dataclass(frozen=True)
class Task:
    """Where a task's files are and what they hold; columns are the sentences, then the label."""

    name: str  # of the Hub's configuration and its folder
    folder: str  # in the original archives
    columns: tuple[str, ...]  # in .parquet files
    original: tuple[str, ...]  # in .tsv files
    labels: tuple[str, ...] = ()  # of the numbers 0, 1, ...; none for a score from 0 to 5
    positive: str | None = None  # the class whose F1 GLUE reports


class Example(NamedTuple):
    """One row: a sentence or a pair, a class from 0 or a score, and the genre if the file says it."""

    sentences: tuple[str, ...]
    label: float
    genre: str = ""


PAIR = ("sentence1", "sentence2", "label")
QUESTION = ("question", "sentence", "label")
SST2 = Task("sst2", "SST-2", ("sentence", "label"), ("sentence", "label"), ("negative", "positive"))
QNLI = Task("qnli", "QNLI", QUESTION, QUESTION, ("entailment", "not_entailment"))
MRPC = Task("mrpc", "MRPC", PAIR, ("#1 String", "#2 String", "Quality"), ("not_equivalent", "equivalent"), "equivalent")
STSB = Task("stsb", "STS-B", PAIR, ("sentence1", "sentence2", "score"))
RTE = Task("rte", "RTE", PAIR, PAIR, ("entailment", "not_entailment"))
TASKS = (SST2, QNLI, MRPC, STSB, RTE)


@register("corpus", "glue/sst2")
def sst2(*, path: str | None = None) -> Corpus:
    """68,000 phrases of film reviews, negative or positive (Hub nyu-mll/glue sst2, or a folder; terms not stated).

    The topic is the label. Of phrases with the same letters one is kept: 59,000 in all. The dev set is the validation
    part; most of it is in the film reviews of `styles` too: never train on one and evaluate on the other. `path` is a
    copy of the Hub's repository or a folder of the original archives (train.tsv and dev.tsv in SST-2), or the task's own
    folder in it.

    Reference: Socher et al., EMNLP 2013; Wang et al., ICLR 2019.
    """
    return _corpus(SST2, path)


@register("corpus", "glue/qnli")
def qnli(*, path: str | None = None) -> Corpus:
    """110,000 questions with a sentence that answers or not (Hub nyu-mll/glue qnli, or a folder; CC BY-SA 4.0).

    Question and sentence are joined by a line break. The topic is the label: entailment or not_entailment. The dev set
    is the validation part. `path` is as for glue/sst2, the original archive's folder is QNLI.

    Reference: Rajpurkar et al., EMNLP 2016 (SQuAD); Wang et al., ICLR 2019.
    """
    return _corpus(QNLI, path)


@register("corpus", "glue/mrpc")
def mrpc(*, path: str | None = None) -> Corpus:
    """4,000 pairs of news sentences, paraphrases or not (Hub nyu-mll/glue mrpc, or a folder; Microsoft's own terms).

    The two are joined by a line break. The topic is the label: equivalent or not_equivalent. The dev set is the
    validation part. `path` is as for glue/sst2, the original archive's folder is MRPC.

    Reference: Dolan and Brockett, IWP 2005; Wang et al., ICLR 2019.
    """
    return _corpus(MRPC, path)


@register("corpus", "glue/stsb")
def stsb(*, path: str | None = None) -> Corpus:
    """7,000 pairs of sentences, how similar from 0 to 5 (Hub nyu-mll/glue stsb, or a folder; scores CC BY-SA 4.0).

    The two are joined by a line break. The topic is the score rounded to the nearest whole number, halves up. The group
    is the genre, which the original files have and the Hub's have not. The dev set is the validation part. `path` is as
    for glue/sst2, the original archive's folder is STS-B. The texts are under their own licences.

    Reference: Cer et al., SemEval 2017; Wang et al., ICLR 2019.
    """
    return _corpus(STSB, path)


@register("corpus", "glue/rte")
def rte(*, path: str | None = None) -> Corpus:
    """2,800 pairs of sentences, one entails the other or not (Hub nyu-mll/glue rte, or a folder; terms not stated).

    The two are joined by a line break. The topic is the label: entailment or not_entailment. The dev set is the
    validation part. `path` is as for glue/sst2, the original archive's folder is RTE.

    Reference: Dagan et al., PASCAL challenge 2005, and its sequels; Wang et al., ICLR 2019.
    """
    return _corpus(RTE, path)


def read(task: Task, path: str | None) -> tuple[str, list[Example], list[Example]]:
    """What to call the source, and the examples of train and validation, from the Hub or from a folder."""
    if path is None:
        splits, source = hub.load(HUB, task.name)
        train, validation = (
            list(_examples(task, HUB, hub.rows(splits[part], *task.columns))) for part in ("train", "validation")
        )
        return source, train, validation
    folder = _folder(task, files.existing_folder(path, f"glue/{task.name}"))
    own = files.sides_in(folder, f"glue/{task.name}", names=VALIDATION_NAMES)
    train, validation = ([e for file in side for e in _examples(task, file, files.read_rows(file))] for side in own)
    return f"folder {folder.resolve()}", train, validation


def _corpus(task: Task, path: str | None) -> Corpus:
    source, train, validation = read(task, path)
    made = documents.corpus(f"glue/{task.name}", source, _documents(task, train), _documents(task, validation))
    return replace(made, labels=_labels(task, [*validation, *train]))


def _documents(task: Task, examples: Iterable[Example]) -> list[Document]:
    return [Document(_text(e), _topic(task, e.label), e.genre) for e in examples]


def _text(example: Example) -> str:
    return "\n".join(example.sentences)


def _labels(task: Task, examples: Sequence[Example]) -> Labels:
    """Of examples with the same text the first one counts, as in `documents.distinct`."""
    backwards = [(_text(e).strip(), e) for e in reversed(examples)]
    pairs, scored = len(task.columns) > 2, not task.labels
    return Labels(
        names=task.labels,
        positive=task.positive,
        scores={text: e.label for text, e in backwards} if scored else {},
        first={text: len(e.sentences[0]) for text, e in backwards} if pairs else {},
    )


def _topic(task: Task, label: float) -> str:
    return task.labels[int(label)] if task.labels else str(math.floor(label + 0.5))


def _folder(task: Task, folder: Path) -> Path:
    """The task's folder: below the given one, or that itself."""
    for name in (task.name, task.folder):
        if (folder / name).is_dir():
            return folder / name
    for other in TASKS:  # whose columns may have the same names
        if other != task and folder.resolve().name in (other.name, other.folder):
            raise UserError(f"data.path={folder} holds another task: use data.dataset=glue/{other.name}")
    if not files.parts(files.tables_in(folder)):
        raise UserError(
            f"data.path={folder}: neither a folder {task.name} or {task.folder} nor a train file; glue/{task.name} reads "
            f"a copy of the Hub's {HUB}, or a folder with {task.folder}/train.tsv and {task.folder}/dev.tsv"
        )
    return folder


def _examples(task: Task, where: str | Path, rows: Sequence[files.Row]) -> Iterator[Example]:
    *texts, label = files.columns_for(f"glue/{task.name}", where, rows, task.columns, task.original)
    for row in rows:
        sentences = tuple((row[text] or "").strip() for text in texts)
        yield Example(sentences, _label(task, where, row[label]), row.get("genre") or "")


def _label(task: Task, where: str | Path, label: object) -> float:
    """A class as its number, which .tsv files may give by name, or a score."""
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
