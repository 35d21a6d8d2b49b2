"""Words of a report that a newcomer may not know: at its first place on the page each opens its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fedfault.runs.recorded import RunData

if TYPE_CHECKING:
    import markupsafe


class Word(NamedTuple):
    """A word, what it looks like in sentences, and its meaning."""

    name: str
    pattern: str
    meaning: str

    @property
    def id(self) -> str:
        """The id of its meaning in the page.

        >>> Word("Held out", "", "").id
        'word-held-out'
        """
        return f"word-{re.sub('[^a-z]+', '-', self.name.lower())}"


CVAR = Word(
    "CVaR",
    r"CVaR",
    "the mean over the worst clients, here the worst 20 %; p10 and p90 are what a tenth and nine tenths of them are below.",
)
JAIN = Word(
    "Jain",
    r"Jain",
    "Jain's index of fairness of the gains, 1 where all clients gain alike and one over their number where one alone gains.",
)
CKA = Word("CKA", r"CKA", "how alike two sets of representations are, 1 where they are the same but for a rotation.")
SAMENESS = Word(
    "Sameness of answers",
    r"[Ss]ameness of answers",
    "by how much the commonest answer is commoner than the commonest true one; 0 is as it should be.",
)
ALARM = Word(
    "Suspect, alarm",
    r"alarms?",
    "a detector's statistic is above its threshold once; in two of the last three readings.",
)
CONTROL = Word("Control run", r"control runs?", "a healthy run with IID clients, by which thresholds are set.")
TIER = Word(
    "Tier, turn",
    r"tiers?",
    "a kind of hardware that some clients have; how a round went for one client on the simulated clock.",
)
REGRET = Word(
    "Regret", r"[Rr]egret", "the length of a round over the shortest one possible with ranks of the same sum."
)


def list_words(run: RunData, figures: set[str], *, judged: bool) -> list[Word]:
    """List the words that the page of a run may have; `figures`: the names of those that it shows; judged: by detectors."""
    return [
        Word("Nat", r"nats?", "the unit of a loss with natural logarithms; one nat is 1.44 bits."),
        Word("Held out", r"[Hh]eld[ -]out", "documents that a client keeps back from training, and is scored on."),
        Word("Mixture", r"mixture", f"all {run.group}s together, in the proportions of the training data."),
        Word("General", r"[Gg]eneral English", "English that no client trains on; a rise of its loss is forgetting."),
        *((ALARM, CONTROL) if judged else ()),
        Word(
            "By chance",
            r"(?:by|beyond) chance",
            "what the same documents give when they are dealt at random to clients of the same sizes.",
        ),
        *((CVAR, JAIN) if "fairness" in figures else ()),
        *((CKA,) if "layers" in figures else ()),
        *((SAMENESS,) if "one_answer" in run.metrics_measured else ()),
        *((TIER, REGRET) if run.tiers else ()),
    ]


@dataclass
class Explained:
    """Marks words at their first place on a page, in the order in which its sentences are given."""

    words: list[Word]
    used: list[Word] = field(default_factory=list)  # whose meanings the page has to hold

    def mark(self, text: str) -> markupsafe.Markup:
        """Make each word of a sentence a button that opens its meaning, unless an earlier sentence has it.

        >>> page = Explained([Word("Nat", "nats?", "a unit.")])
        >>> str(page.mark("1 nat < 2 nats"))
        '1 <button type="button" class="term" popovertarget="word-nat">nat</button> &lt; 2 nats'
        >>> str(page.mark("3 nats"))
        '3 nats'
        """
        from markupsafe import Markup, escape

        found = str(escape(text))
        for word in self.words:
            if word in self.used:
                continue
            button = rf'<button type="button" class="term" popovertarget="{word.id}">\g<0></button>'
            found, times = re.subn(rf"\b(?:{word.pattern})\b(?![^<]*>)", button, found, count=1)
            self.used += [word] * times
        return Markup(found)
