"""Scores of answers: whether they are the true ones, and how much of these they say."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Sequence


def score_answers(
    answers: Sequence[str], references: Sequence[str], pattern: str | None = None
) -> dict[str, list[float]]:
    """Score each answer beside the true one: exact_match, 0 or 1, and rouge_l where it is installed."""
    pairs = [*zip(answers, references, strict=True)]
    found = {"exact_match": [float(match_exactly(*pair, pattern)) for pair in pairs]}
    if importlib.util.find_spec("rouge_score") is not None:
        found["rouge_l"] = _score_rouge(answers, references)
    return found


def measure_sameness(answers: Sequence[str], references: Sequence[str]) -> float:
    """The share of the commonest answer minus that of the commonest true one: how far answers collapse to one.

    >>> measure_sameness(["yes", "yes", "yes ", ""], ["yes", "no", "yes", "no"])
    0.25
    """
    one, other = (max(Counter(" ".join(t.split()) for t in texts).values()) for texts in (answers, references))
    return (one - other) / len(answers)


def match_exactly(answer: str, reference: str, pattern: str | None = None) -> bool:
    """Whether an answer is the true one, whatever blanks stand in it; with a pattern, what it finds is compared.

    >>> match_exactly("two  apples ", "two apples"), match_exactly("It makes #### 12", "#### 12", "#### (.*)")
    (True, True)
    """
    one, other = extract_answer(answer, pattern), extract_answer(reference, pattern)
    return one is not None and one == other


def extract_answer(text: str, pattern: str | None) -> str | None:
    """Extract the last thing that a pattern finds, its first group if it has one; None if it finds nothing.

    >>> extract_answer("#### 1,200 in all", r"#### ([0-9,]+)"), extract_answer("no number", r"[0-9]+")
    ('1,200', None)
    """
    if pattern is not None:
        found = [m[1] if m.re.groups else m[0] for m in re.finditer(pattern, text)]
        if not found or found[-1] is None:
            return None
        text = found[-1]
    return " ".join(text.split())


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> float:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of words (Lin, ACL 2004), mean over the pairs.

    As the library rouge-score has it: lower case, words of a-z and 0-9 only, no stemmer, and the text is one sequence, not
    split into sentences (that would be ROUGE-Lsum). Text in other alphabets scores 0.
    """
    return sum(_score_rouge(texts, references)) / len(texts)


def _score_rouge(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    return [float(scorer.score(*pair)["rougeL"].fmeasure) for pair in zip(references, texts, strict=True)]
