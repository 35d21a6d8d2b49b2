"""What today's rule makes of the differences that a study's report lists seed by seed: answer, interval, p, seeds.

    python scripts/restate.py [main failure clustering smollm2 domains topics_news topics_styles dynamic]

Most reports in docs/studies were written before intervals came from the test that answers; the differences in them are as
they were. Prints the numbers of docs/answers.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fedfault.report.words import format_interval, format_number
from fedfault.studies.answers import Answer, SeedDifferences, answer_listed
from fedfault.studies.file import load_study
from fedfault.studies.results import format_needed, format_p
from fedfault.studies.study import Study

REPORTS = Path(__file__).parents[1] / "docs" / "studies"
SHIPPED = ("main", "failure", "clustering", "smollm2", "domains", "topics_news", "topics_styles", "dynamic")
# With which a report was made: other seeds, and so another test, or other data
SETTINGS = {
    "main": ("seeds=auto", "max_seeds=12"),
    "topics_news": ("data.dataset=ag_news",),
    "topics_styles": ("data.dataset=styles",),
}
FILES = dict.fromkeys(("topics_news", "topics_styles"), "topics")  # report -> study, where these have not one name


def read_differences(name: str) -> list[list[float]]:
    """The differences of every contrast of a report, in its order, a number a seed."""
    text = (REPORTS / name / "report.md").read_text(encoding="utf-8")
    table = text.split("### Every contrast, seed by seed")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[float(v.replace("−", "-")) for v in row.split(" | ")[-1].strip(" |").split(", ")] for row in rows]


def restate(name: str) -> list[Answer]:
    """The answers of a shipped study by today's rule."""
    study: Study = load_study(FILES.get(name, name), SETTINGS.get(name, ())).study
    listed = iter(read_differences(name))
    return answer_listed(study, [[dict(enumerate(next(listed))) for _ in h.contrasts] for h in study.hypotheses])


def format_answers(name: str) -> str:
    """The answers of a study as rows of a table in Markdown, each by the contrast that speaks most against the claim."""
    rows = []
    for a in restate(name):
        f: SeedDifferences = a.decisive
        needed = f"; {format_needed(a)}" if a.verdict == "inconclusive" else ""
        interval = f" ({format_interval(f.interval)})" if f.interval else ""
        rows.append(
            f"| {name} | {a.hypothesis.name} | {a.verdict}{needed} | {format_number(f.mean, '+.3g')}{interval} "
            f"| {a.hypothesis.expect} by {a.hypothesis.by:g} | {format_p(a.p_holm)} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Print the answers of the studies that are named, or of all."""
    print("| study | hypothesis | answer | difference (interval) | claimed | p (Holm) |\n|---|---|---|---:|---|---:|")
    print("\n".join(format_answers(name) for name in sys.argv[1:] or SHIPPED))


if __name__ == "__main__":
    main()
