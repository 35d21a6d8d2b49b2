"""The document as LaTeX, and as PDF where a TeX is installed."""

from __future__ import annotations

import shutil
import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfault.report.words import Table
from fedfault.storage import write_atomically

SOURCE = "report.tex"
PATIENCE = 180  # seconds for a TeX, which may have packages to fetch
_LATEX = ("pdflatex", "-interaction=nonstopmode", SOURCE)
WAYS = (  # commands that make a PDF of the source and the bibliography, the best way first
    (("latexmk", "-pdf", "-interaction=nonstopmode", SOURCE),),
    (("tectonic", SOURCE),),
    (_LATEX, ("bibtex", "report"), _LATEX, _LATEX),
)
WIDE = 5  # columns, beyond which a table is set smaller
SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "[": "{[}",
    "]": "{]}", "_": r"\_\allowbreak{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "−": r"$-$", "–": "--", "±": r"$\pm$", "×": r"$\times$",
    "≤": r"$\le$", "→": r"$\to$", "←": r"$\leftarrow$",
}  # fmt: skip


def write_paper(folder: Path, about: dict[str, Any]) -> Path | None:
    """Write report.tex, and report.pdf where a TeX is installed; returns the PDF, if there is one now."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("template.tex").render(**about, tex=escape_tex, table=format_table)
    write_atomically(folder / SOURCE, text)
    return _compile_pdf(folder)


def _compile_pdf(folder: Path) -> Path | None:
    """The PDF by the first TeX that is there; one that fails leaves its log and no PDF."""
    commands = next((way for way in WAYS if all(shutil.which(words[0]) for words in way)), None)
    if commands is None:
        return None
    pdf = (folder / SOURCE).with_suffix(".pdf")
    pdf.unlink(missing_ok=True)
    for words in commands:
        try:
            subprocess.run(words, cwd=folder, capture_output=True, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return None
    return pdf if pdf.is_file() else None


def escape_tex(text: object) -> str:
    """Text as LaTeX has to be told it; what it has no letter for becomes a question mark.

    >>> escape_tex("10 % of α_k")
    '10 \\\\% of ?\\\\_\\\\allowbreak{}k'
    """
    return "".join(SIGNS.get(c) or (c if _is_latin(c) else "?") for c in " ".join(str(text).split()))


def _is_latin(c: str) -> bool:
    return ord(c) < 128 or unicodedata.name(c, "").startswith("LATIN ")


def format_table(data: Table | Sequence[tuple[str, str]]) -> str:
    """A table over as many pages as it needs; columns of text are wrapped."""
    t = data if isinstance(data, Table) else Table(("setting", "value"), data, text=(1,))
    n = len(t.columns)
    text = [i == 0 or i in t.text or len(max((row[i] for row in t.rows), key=len, default="")) > 18 for i in range(n)]
    longest = [max((len(row[i]) for row in t.rows), default=0) for i in range(n)]
    shares = [min(max(longest[i], len(t.columns[i])), 40) + 3 for i in range(n)]  # a word of 12 letters fits its column
    widths = [0.97 * share / sum(shares) for share in shares]
    raggeds = [r"\raggedright" if own else r"\raggedleft" for own in text]
    columns = "".join(
        rf">{{{ragged}\arraybackslash}}p{{{width:.3f}\linewidth}}"
        for ragged, width in zip(raggeds, widths, strict=True)
    )
    rows = [" & ".join(escape_tex(cell) for cell in row) + r" \\" for row in t.rows]
    head = " & ".join(escape_tex(c) for c in t.columns) + r" \\"
    size = r"\scriptsize" if n > WIDE else r"\small"
    body = "\n".join([r"\toprule", head, r"\midrule", r"\endhead", *rows, r"\bottomrule"])
    return (
        f"{{{size}\\setlength{{\\tabcolsep}}{{2pt}}\n\\begin{{longtable}}{{{columns}}}\n{body}\n\\end{{longtable}}}}\n"
    )
