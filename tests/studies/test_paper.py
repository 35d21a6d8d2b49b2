"""The document as LaTeX: what is written cannot be taken for commands, and a TeX is used where there is one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fedfault.report.words import Table
from fedfault.studies import paper

ABOUT = {
    "title": "a_b", "question": "50 % & more?", "headline": ["One."], "answers": None, "rule": "", "best": [], "figures": [],
    "cells": Table(("cell", "loss"), [["x_1", "−0.5 ± 0.1"]]), "legend": "", "setup": [("lr", "1e-3")], "defaults": [],
    "limits": ["$5 #1"],
    "clients": Table(("cell", "worst_client"), [["x_1", "1.0"]]), "differences": None, "basis": "100 %", "clusters": None,
    "command": "fedfault study ~/x", "provenance": [("commit", "abc")],
}  # fmt: skip


def test_signs_that_latex_would_take_for_commands_are_escaped():
    assert paper.escape_tex("100 % {x} $y$ a&b #1 ~") == r"100 \% \{x\} \$y\$ a\&b \#1 \textasciitilde{}"
    assert paper.escape_tex("\\input{x}") == r"\textbackslash{}input\{x\}"
    assert paper.escape_tex("− ± × ≤ é 中 [1]") == r"$-$ $\pm$ $\times$ $\le$ é ? {[}1{]}"


def test_the_columns_of_a_table_fill_the_line():
    text = paper.format_table(Table(("name", "a", "long"), [["x", "1", "y" * 200]], text=(2,)))
    widths = [float(w) for w in re.findall(r"p\{([\d.]+)\\linewidth\}", text)]
    assert sum(widths) == pytest.approx(0.97, abs=0.002)
    assert text.count("&") == 4  # two a row, head and body


def test_the_source_is_written_without_a_tex_and_its_braces_match(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert paper.write_paper(tmp_path, ABOUT) is None
    text = (tmp_path / "report.tex").read_text()
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert "<<" not in text


@pytest.mark.parametrize("works", [True, False])
def test_a_tex_makes_the_pdf_or_leaves_none(tmp_path, monkeypatch, works):
    def run(words, cwd, **_):
        assert words[0] == "latexmk"
        if works:
            (Path(cwd) / "report.pdf").write_text("%PDF")

    (tmp_path / "report.pdf").write_text("of before")
    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")
    monkeypatch.setattr(paper.subprocess, "run", run)
    assert paper.write_paper(tmp_path, ABOUT) == (tmp_path / "report.pdf" if works else None)
    assert (tmp_path / "report.pdf").exists() == works
