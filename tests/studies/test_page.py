"""The report of a study: every number and every answer is there, in any state of the runs, and it loads nothing."""

from __future__ import annotations

import inspect
import itertools
import math
import re
import shutil

import pytest
import yaml

from axe import check_page, needs_axe
from fedfault.backbones.load import PAPERS
from fedfault.errors import UserError
from fedfault.registry import FOLDERS, find_citations, load_builders
from fedfault.report.theme import DARK, LIGHT
from fedfault.studies import references, results
from fedfault.studies.figures import draw_answers, draw_cells, draw_map, make_figures
from fedfault.studies.page import format_markdown, write_page
from fedfault.studies.results import read_results
from fedfault.studies.study import Cell, Contrast, PhaseMap, Study
from handmade import update
from planted import claim, planted

NEARLY = (0.001, -0.001, 0.0, 0.001, -0.001)
PHASE = PhaseMap("m", "lr", "partition", "final.validation.loss", {})


def write_config(run, **more):
    file = run / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | more))


def study(folder, losses, seeds=5, **more):
    """Two splits and learning rates; a cell's runs end at `losses[split][lr]` plus a hundredth a seed, nearly."""
    cells = []
    for i, split in enumerate(("iid", "topic_skew")):
        for j, lr in enumerate(("0.001", "0.1")):
            names = tuple(f"{split}-{lr}-{s}" for s in range(seeds))
            for s, name in enumerate(names):
                state = "healthy" if losses[i][j] < 4.5 else "failed"
                planted(folder / "runs" / name, [5.0, 4.8, losses[i][j] + 0.01 * s + i * NEARLY[s]], state, seed=s)
            cells.append(Cell({"partition": split, "lr": lr}, names))
    about = {
        "question": "Does <skew> hurt?",
        "hypotheses": (claim("skew | hurts", contrasts=[Contrast(2, 0)]),),
        **more,
    }
    made = Study(
        "trial", seeds=tuple(range(seeds)), cells=tuple(cells), maps=(PHASE,), command="fedfault study t", **about
    )
    made.save(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return study(tmp_path / "trial", [[4.0, 4.2], [4.4, math.nan]], limits=("small",))


@pytest.mark.slow
def test_what_hypotheses_are_about_is_in_the_table_of_cells(tmp_path, monkeypatch):
    monkeypatch.setitem(results.ASKED, "rise", "rise")
    asked = study(tmp_path / "asked", [[4.0, 4.9], [4.4, 4.4]], hypotheses=(claim(metric="rise"),))
    table = results.tabulate_cells(read_results(asked))
    assert table.rows[1][table.columns.index("rise")].startswith("0.120")  # 4.9 + 0.02 on average, after 4.8
    silent = study(tmp_path / "silent", [[4.0, 4.9], [4.4, 4.4]])
    assert "rise" not in results.tabulate_cells(read_results(silent)).columns


@pytest.mark.slow
def test_a_run_that_went_on_with_other_settings_is_left_out_by_name(folder):
    run, went_on = folder / "runs" / "iid-0.001-2", {"after": 2, "changes": {"federation.num_rounds": [2, 12]}}
    update(run / "manifest.json", continued=[went_on])
    r = read_results(folder)
    assert results.tabulate_cells(r).rows[0][2] == "4"
    assert len(r.answers[0].decisive.values) == 4
    told = "iid-0.001-2: left out, as it went on with other settings (federation.num_rounds 2 -> 12); delete"
    assert told in " ".join(results.summarise_study(r))


@pytest.mark.slow
def test_tables_by_hand(folder):
    r = read_results(folder)
    table = results.tabulate_cells(r)
    assert table.columns[:4] == ("partition", "lr", "runs", "final loss")
    assert table.rows[0][:3] == ["iid", "0.001", "5"]
    assert table.rows[0][3].startswith("4.020 (4.00")
    assert table.rows[0][-1] == "5 healthy"
    assert table.rows[3][3] == "diverged in 5 of 5"
    (answer,) = results.tabulate_answers(r).rows
    assert answer[:4] == ["skew | hurts", "supported", "claim skew | hurts", "+0.4"]
    (contrast,) = results.tabulate_contrasts(r).rows
    assert contrast[2] == "lr 0.001: topic_skew − iid"
    assert contrast[5] == "+0.401, +0.399, +0.4, +0.401, +0.399"
    assert results.summarise_study(r)[-1] == "Hypotheses: 1 supported."


@pytest.mark.slow
def test_setup_has_what_varies_and_what_is_shared(folder):
    own, rest = results.list_settings(read_results(folder))
    found = dict(own + rest)
    assert found["lr"] == "0.001, 0.1"
    assert found["seeds"] == "0, 1, 2, 3, 4"
    assert found["federation.num_rounds"] == "2"
    assert "seed" not in found


@pytest.mark.slow
def test_limits_say_what_follows_from_the_runs(folder):
    said = " ".join(results.list_limits(read_results(folder)))
    assert "small" in said
    assert "not calibrated" in said
    lone = study(folder.parent / "lone", [[4.0, 4.0], [4.0, 4.0]], seeds=1)
    assert "no interval and no answer" in " ".join(results.list_limits(read_results(lone)))


@pytest.mark.slow
@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_map_shows_means_divergence_and_verdicts(folder, theme, narrow):
    left, right = draw_map(read_results(folder), PHASE, theme, narrow).axes
    assert [t.get_text() for t in left.texts] == ["4.02", "4.22", "4.42", "×5"]
    assert [t.get_text() for t in right.texts] == ["5"] * 4
    assert [t.get_text() for t in left.get_xticklabels()] == ["0.001", "0.1"]


@pytest.mark.slow
def test_the_answers_are_in_units_of_what_matters(folder):
    (ax,) = draw_answers(read_results(folder), LIGHT, False).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["skew | hurts"]
    assert any(line.get_xdata() == pytest.approx([4.0]) for line in ax.lines if len(line.get_xdata()) == 1)
    assert [t.get_text() for t in draw_cells(read_results(folder), LIGHT, False).axes[0].texts] == ["× 5 not finite"]


@pytest.mark.slow
def test_losses_have_the_unit_of_their_own_runs_and_not_of_the_first(folder):
    for s in range(5):
        for lr in ("0.001", "0.1"):
            write_config(folder / "runs" / f"iid-{lr}-{s}", data={"task_type": "preference"})
    (ax,) = draw_cells(read_results(folder), LIGHT, False).axes
    assert ax.get_xlabel() == "final validation loss"
    assert ax.get_yticklabels()[0].get_text().startswith("nats per pair: iid")
    assert ax.get_yticklabels()[2].get_text().startswith("nats per token: topic")
    for run in (folder / "runs").glob("topic_skew*"):
        shutil.rmtree(run)
    (ax,) = draw_cells(read_results(folder), LIGHT, False).axes
    assert ax.get_xlabel() == "final validation loss (nats per pair)"


@pytest.mark.slow
def test_figures_of_nothing_are_none(folder):
    for run in (folder / "runs").iterdir():
        shutil.rmtree(run)
    r = read_results(folder)
    assert [draw_answers(r, LIGHT, False), draw_cells(r, LIGHT, False), draw_map(r, PHASE, LIGHT, False)] == [None] * 3
    with pytest.raises(UserError, match="no run of the study is finished"):
        write_page(folder)


@pytest.mark.draws
@pytest.mark.slow
def test_the_page_and_the_document_say_everything_and_load_nothing(folder):
    shutil.rmtree(folder / "runs" / "iid-0.1-3")
    found, page = write_page(folder)
    html, text = page.read_text(), (folder / "report.md").read_text()
    for part in ("supported", "diverged in 5 of 5", "fedfault study t", "small", "1 run is not finished"):
        assert part in html, part
        assert part in text, part
    assert "Does &lt;skew&gt; hurt?" in html
    assert r"skew \| hurts" in text
    assert not re.findall(r'(?:src|href)="(?!#|data:)|url\((?!#)', html)
    assert list(make_figures(found)) == ["answers", "map-m", "timeline", "clients", "cells"]
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (folder / link).is_file(), link
    assert (folder / "references.bib").read_text().count("@") == len(re.findall(r"^\* .+\d{4}\.$", text, re.MULTILINE))


@pytest.mark.draws
@pytest.mark.slow
def test_only_the_answers_hold_at_a_number_of_seeds_that_the_data_chose(tmp_path):
    """Intervals of cells are by Student's t, which holds where the number was fixed before."""
    planned = {"hypotheses": (claim(metric="client_loss", contrasts=[Contrast(2, 0)]),)}
    for sequential in (False, True):
        folder = study(tmp_path / str(sequential), [[4.0, 4.2], [4.4, 4.4]], sequential=sequential, **planned)
        write_page(folder)
        text = (folder / "report.md").read_text()
        assert (
            "intervals hold at whatever seed one stops; those by Student's t, of cells and of" in text
        ) == sequential
        assert text.count("so that intervals by Student's t miss somewhat more often than in 5 %") == 2 * sequential


def test_tables_in_markdown_escape_what_would_break_them():
    assert format_markdown([("a_b", "x|y")]) == "| setting | value |\n| --- | --- |\n| a\\_b | x\\|y |\n"


@pytest.mark.slow
def test_references_follow_from_the_runs(folder):
    run = planted(folder / "other", [5.0, 4.0], federation={"num_rounds": 1, "algorithm": {"name": "scaffold"}})
    found = references.find_keys([run], {"student"})
    assert found == ["holm1979", "hu2022lora", "karimireddy2020", "student1908"]
    assert references.format_reference("karimireddy2020").endswith(
        "International Conference on Machine Learning (ICML), 2020."
    )


@pytest.mark.parametrize("kind", ["algorithm", "aggregation"])
def test_what_has_a_paper_cites_it(kind):
    for name, builder in load_builders(kind).items():
        if re.search(r"Reference: |et al\., .*\d{4}\)", inspect.getdoc(builder)):
            assert find_citations(kind, name), name


def test_a_paper_without_an_entry_is_told():
    with pytest.raises(UserError, match=r"cites 'nobody2030', which is not in .*references\.bib; add its entry"):
        references.format_entries(["nobody2030"])


def test_every_entry_is_whole_and_every_name_has_its_entry():
    parts = [find_citations(kind, name) for kind in FOLDERS for name in load_builders(kind)]
    named = {key for keys in (*parts, *PAPERS.values()) for key in keys}
    named |= {*references.ALWAYS, *(key for keys in references.TESTS.values() for key in keys)}
    assert named == set(references._read_entries())
    assert all(references.format_reference(key) and references.format_entries([key]).startswith("@") for key in named)


@pytest.mark.long
def test_the_data_of_the_figures_are_a_row_a_run(folder):
    import pyarrow.parquet

    write_page(folder)
    rows = pyarrow.parquet.read_table(folder / "cells.parquet").to_pylist()
    assert len(rows) == 20
    first = rows[0]
    assert (first["partition"], first["lr"], first["seed"], first["verdict"]) == ("iid", "0.001", 0, "healthy")
    assert first["final.validation.loss"] == pytest.approx(4.0)
    assert first["gain"] == pytest.approx(1.0)
    assert math.isinf(rows[-1]["final.validation.loss"])


@needs_axe
@pytest.mark.long
def test_the_page_has_no_finding_of_axe_and_fits_the_window(browser, folder):
    _, page = write_page(folder)
    for width, scheme in ((390, "light"), (390, "dark"), (1440, "light")):
        check_page(browser, page, width, scheme)


@pytest.mark.slow
def test_a_map_compares_means_of_the_seeds_that_all_its_cells_have(tmp_path):
    """The second seed is harder, and only the first arm has it: its mean would be 4.5 beside 4.1."""
    cells = tuple(Cell({"arm": arm, "split": "iid"}, (f"{arm}-0", f"{arm}-1")) for arm in ("a", "b"))
    for name, loss in {"a-0": 4.0, "a-1": 5.0, "b-0": 4.1}.items():
        planted(tmp_path / "runs" / name, [5.0, loss], seed=int(name[-1]))
    phase = PhaseMap("m", "arm", "split", "final.validation.loss", {})
    Study("trial", "", (0, 1), cells, maps=(phase,)).save(tmp_path)
    r = read_results(tmp_path)
    assert r.shared_values(cells, phase.metric) == [[4.0], [4.1]]
    left = draw_map(r, phase, LIGHT, False).axes[0]
    assert [text.get_text() for text in left.texts] == ["4.000", "4.100"]
    page = write_page(tmp_path)[1].read_text()
    assert "Means are over the 1 seed that all cells have; verdicts are of all runs." in page
    assert "Cells have unequal numbers of seeds" in page


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_long_names_below_a_map_do_not_run_into_each_other(tmp_path, narrow):
    arms = ("FedAvg", "FedProx", "SCAFFOLD", "FedAdam", "FedSA-LoRA", "FlexLoRA")
    cells = [Cell({"arm": arm, "partition": split}, (f"{split}-{arm}",)) for split in ("iid", "skew") for arm in arms]
    for cell in cells:
        planted(tmp_path / "runs" / cell.runs[0], [5.0, 4.0], seed=0)
    phase = PhaseMap("m", "arm", "partition", "final.validation.loss", {})
    Study("trial", "", (0,), tuple(cells), maps=(phase,)).save(tmp_path)
    fig = draw_map(read_results(tmp_path), phase, LIGHT, narrow)
    fig.canvas.draw()
    for ax in fig.axes[:2]:
        labels = ax.get_xticklabels()
        upright = [label.get_window_extent() for label in labels if not label.get_rotation()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(upright))
        assert all(label.get_window_extent().x0 >= 0 for label in labels)


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_numbers_of_a_map_of_many_arms_fit_their_cells(tmp_path, narrow):
    """Seventeen columns half a page wide had no room; on a phone the arms go down."""
    arms = [f"Algorithm{n}" for n in range(17)]
    cells = [Cell({"arm": arm, "partition": split}, (f"{split}-{arm}",)) for split in ("iid", "skew") for arm in arms]
    for cell in cells:
        planted(tmp_path / "runs" / cell.runs[0], [5.0, 4.0 + arms.index(cell.choices["arm"]) / 10], seed=0)
    phase = PhaseMap("m", "arm", "partition", "final.validation.loss", {})
    Study("trial", "", (0,), tuple(cells), maps=(phase,)).save(tmp_path)
    fig = draw_map(read_results(tmp_path), phase, LIGHT, narrow)
    fig.canvas.draw()
    values, verdicts = fig.axes[:2]
    assert values.get_position().y0 > verdicts.get_position().y1
    assert (values.get_ylabel() if narrow else values.get_xlabel()) == "arm"
    for ax in (values, verdicts):
        boxes = sorted(
            ((round(b.y0), b.x0, b.x1) for b in (text.get_window_extent() for text in ax.texts)), key=lambda b: b[:2]
        )
        assert len(boxes) == 34
        assert all(a[2] < b[1] for a, b in itertools.pairwise(boxes) if a[0] == b[0])
