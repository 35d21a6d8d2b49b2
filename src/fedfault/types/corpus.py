"""Data sets, and the assignment of their documents to clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Document(NamedTuple):
    """One text with its topic (or register, style, label) and the group that it came from."""

    text: str
    topic: str
    group: str = ""  # its author, site or genre; empty where the source does not say


SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = (SYSTEM, USER, ASSISTANT, "tool")


class Turn(NamedTuple):
    """What one side of a conversation says."""

    role: str  # one of ROLES
    text: str
    input: str = ""  # what an instruction is about, where the data set it apart; Alpaca's template does too


@dataclass(frozen=True)
class Conversation:
    """Turns of which the last one is the assistant's: its turns behind the prompt are the responses that a model learns."""

    turns: tuple[Turn, ...]
    place: str  # where it was read: a file and a line, or the name of what made it
    rejected: tuple[Turn, ...] = ()  # of a preference: what is worse than the turns from the prompt's end on
    prompt: int = 0  # turns of a prompt that a column holds, whose responses are not learned; 0: all are

    @property
    def text(self) -> str:
        """All that is said, a turn a line, without white space at the ends."""
        every = (*self.turns, *self.rejected)
        return "\n".join(part for turn in every for part in (turn.text, turn.input) if part.strip()).strip()

    @property
    def opening(self) -> str:
        """What is said before the first response, a turn a line: the prompt."""
        before = itertools.takewhile(lambda turn: turn.role != ASSISTANT, self.turns)
        return "\n".join(part for turn in before for part in (turn.text, turn.input) if part.strip())

    @property
    def worse(self) -> Conversation:
        """Of a preference: the prompt with the response that is rejected."""
        return Conversation((*self.turns[: self.prompt], *self.rejected), self.place, prompt=self.prompt)


@dataclass(frozen=True)
class Labels:
    """Facts about labels that the topics of the documents do not tell."""

    names: tuple[str, ...] = ()  # of the classes 0, 1, ...; empty: the classes are the topics in alphabetical order
    positive: str | None = None  # the class whose F1 is reported; None: the mean over the classes
    scores: Mapping[str, float] = field(default_factory=dict)  # text -> score, for regression
    first_lengths: Mapping[str, int] = field(default_factory=dict)  # text of two sentences -> characters of the first


@dataclass(frozen=True)
class Tally:
    """What became of everything that was read for a corpus: nothing is left out without a number."""

    train_files: str = ""  # the names; empty for a source that is no user's files
    validation_files: str = ""
    left_out: str = ""  # files that were seen and not read
    train: int = 0  # texts read: rows, files or pieces of running text
    validation: int = 0  # 0: validation is split off train
    empty: int = 0  # texts dropped as they have no character but white space
    repeated: int = 0  # texts dropped as they are the same as an earlier one of their side
    relabelled: int = 0  # of those, how many have another topic than the one that was kept
    shared: int = 0  # texts dropped from train as validation has them
    near: int = 0  # texts kept in train that have the letters and digits of one in validation
    repeats_kept: bool = False
    quoted: int = 0  # cells of .tsv files in quotes as of CSV: there quotes are letters of the text
    prompts: int = 0  # conversations of validation that begin with a prompt that training has too
    unheld: int = 0  # topics of train of which validation has no text
    unread: str = ""  # columns of the tables of train that are not read

    def describe(self) -> list[str]:
        """Say it in two sentences, and in one more of each thing that few corpora have."""
        of, by = (f" of {names}" if names else "" for names in (self.train_files, self.validation_files))
        held = f"{self.validation:,}{by} for validation" if self.validation else "validation is split off"
        rest = f"; files left out: {self.left_out}" if self.left_out else ""
        rule = (
            "repeats are kept"
            if self.repeats_kept
            else f"{self.repeated:,} repeated ({self.relabelled:,} with another topic)"
        )
        near = (
            f"{self.near:,} training texts have the letters and digits of a validation text and differ from it in signs "
            "or blanks alone"
        )
        prompts = (
            f"{self.prompts:,} validation conversations begin with a prompt that training has too, so that their scores are "
            "not of new prompts"
        )
        quoted = (
            f"{self.quoted:,} cells of .tsv files stand in quotes, which are letters of the text there; if they are not, "
            "save the table as .csv"
        )
        unheld = f"topics without a text in validation: {self.unheld:,}; losses and scores are of the others alone" + (
            "" if self.validation else ", as the only text of a topic is for training"
        )
        unread = (
            f"columns not read: {self.unread}; data.topic_column names the topic or label of a text, and data.group_column "
            "who it is of"
        )
        return [
            f"read {self.train:,} texts{of}, {held}{rest}",
            f"dropped {self.empty:,} empty, {rule}, {self.shared:,} from training that validation has; texts with the same "
            "characters, whatever case and blanks, are the same",
            *([near] if self.near else []),
            *([prompts] if self.prompts else []),
            *([quoted] if self.quoted else []),
            *([unheld] if self.unheld else []),
            *([unread] if self.unread else []),
        ]


@dataclass(frozen=True)
class Corpus:
    """A data set: documents with a topic each, split into train and validation."""

    name: str
    train: tuple[Document, ...]
    validation: tuple[Document, ...]  # shares no text with train
    source: str  # where the text came from, as precisely as can be said (package and version, Hub id, folder)
    fingerprint: str  # hash of all texts and topics: two runs with the same fingerprint saw the same data
    # topic -> nats a character that no model can beat; None where the generator of the texts is unknown
    entropy: Mapping[str, float] | None = None
    labels: Labels | None = None  # None: the topics say all
    # text of a document -> the conversation that it is; empty where documents are plain text
    conversations: Mapping[str, Conversation] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Deal:
    """Which client got which of n documents, as a partition decided it, and what a reader should know about it."""

    # For each of N clients a sorted int array of positions: disjoint, together range(n)
    clients: list[NDArray[np.int64]]
    attempts: int = 1  # draws until every client had min_samples
    # Share of draws in which every client has min_samples; None: all do by construction
    acceptance: float | None = None
    texts: Mapping[int, str] = field(default_factory=dict)  # position -> the new text, where the partition changes it
    removed: list[int] | None = None  # words removed from each client's texts; None: the partition changes no texts
    notes: tuple[str, ...] = ()  # sentences, such as the convention used or what a setting could not do
    names: tuple[str, ...] = ()  # (N,) of the clients, all different, where the data names them


# (documents, num_clients, generator) -> deal
Partition = Callable[[Sequence[Document], int, "np.random.Generator"], Deal]
