"""The probe of what the model writes: its continuations of held-out text beside the true ones."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence

from fedfault.errors import UserError
from fedfault.measures.answers import rouge_l
from fedfault.registry import register
from fedfault.types.task import FinishedRound, Measurements, Probe

BLOCKS = 16  # held-out blocks that are continued: the same ones in every round


@register("probe", order=8, on=False)
def generation() -> Probe:
    """BLEU, ROUGE-L and distinct-2 of greedy continuations of held-out text by the server's model.

    The first half of each of 16 held-out blocks, one of every topic in turn, is continued with the likeliest token after
    token up to the length of the second half, which is the reference.

    bleu         see `bleu`
    rouge_l      see `rouge_l`
    distinct_2   see `distinct_2`

    Small models in short blocks score low on the first two: compare rounds and runs, not papers. Raises `UserError` when
    the libraries are not installed.
    """
    for module, package in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"metrics.generation needs {package}, which is not installed: pip install 'fedfault[text]', "
                "or switch it off with metrics.generation=false"
            )

    def measure(m: FinishedRound) -> Measurements:
        found = m.task.continuations(m.after.adapter.flat, BLOCKS)
        if found is None:
            return Measurements()
        distinct = distinct_2(found.ids)
        return Measurements(
            {
                "bleu": bleu(found.texts, found.references),
                "rouge_l": rouge_l(found.texts, found.references),
                **({} if distinct is None else {"distinct_2": distinct}),
            }
        )

    return Probe(measure, sparse=True, public=True, provenance={"bleu": signature()})


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of the whole corpus, not a mean over texts, 0 to 100 (Papineni et al., ACL 2002) as sacreBLEU has it.

    One reference a text; tokenisation, case and smoothing are in `signature` (Post, WMT 2018).
    """
    from sacrebleu.metrics import BLEU

    return float(BLEU().corpus_score(texts, [references]).score)


def signature() -> str:
    """Return the settings and version of sacreBLEU: BLEU scores compare only where this is the same."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    metric.corpus_score(["a"], [["a"]])  # it tells only after it has seen how many references there are
    return str(metric.get_signature())


def distinct_2(rows: Sequence[Sequence[int]]) -> float | None:
    """Distinct pairs of neighbouring tokens over all such pairs, of rows of any lengths; None where there is no pair.

    1 / their number: the model repeats itself; 1: it never does (Li et al., arXiv 1510.03055, who divide by tokens).

    >>> distinct_2([[5, 6, 5, 6, 5], [7]])  # (5, 6) and (6, 5), twice each
    0.5
    """
    pairs = [pair for row in rows for pair in itertools.pairwise(row)]
    return len(set(pairs)) / len(pairs) if pairs else None
