"""The page: that it stands alone, opens with the verdict, and survives what runs look like."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedfault.errors import UserError
from fedfault.records import RoundRecord, Score
from fedfault.report import gallery
from fedfault.report.captions import CAPTIONS
from fedfault.report.render import render_report
from handmade import HISTORY, clocked, finding, lines, record, turn, update, write

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def few(monkeypatch):
    """Two of the figures, where a test is about words."""
    chosen = {name: gallery.FIGURES[name] for name in ("general", "split")}
    monkeypatch.setattr(gallery, "FIGURES", chosen)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return render_report(write(tmp_path_factory.mktemp("runs") / "trial"), dpi=20)


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_diverged_run_shows_words_for_numbers(tmp_path):
    run = write(tmp_path, [*HISTORY[:2], record(2, math.nan), record(3, math.inf)])
    text = render_report(run, dpi=20).read_text()
    assert "not finite" in text
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]*", "", text))


@pytest.mark.slow
def test_a_run_without_any_round_still_has_a_page(tmp_path):
    path = render_report(write(tmp_path, [], status="running"))
    assert "No round is recorded yet." in path.read_text()
    (tmp_path / "rounds.jsonl").unlink()
    assert render_report(tmp_path) == path


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_only_the_folder_and_its_records_are_needed(tmp_path):
    folder = write(tmp_path)
    for name in ("manifest.json", "split.json"):
        (folder / name).unlink()
    (folder / "config.yaml").write_text("{}")
    text = render_report(folder, dpi=20).read_text()
    assert CAPTIONS["general"].text[:40] in text
    assert CAPTIONS["split"].text[:40] not in text
    assert f"fedfault run {folder}/config.yaml" in text


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_data_that_clients_have_themselves_are_not_called_by_the_name_of_the_servers(tmp_path):
    folder = write(tmp_path, data={"dataset": "text", "partition": {"name": "iid"}})
    assert "data text · split iid" in render_report(folder, dpi=20).read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "data_elsewhere": True}))
    text = render_report(folder, dpi=20).read_text()
    assert "the clients&#39; own data" in text
    assert "split iid" not in text


class Tags(HTMLParser):
    """Every opening tag with its attributes, and whether open and close tags match."""

    VOID = frozenset({"meta", "img", "source", "br", "wbr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


@pytest.mark.slow
def test_the_page_stands_alone(html):
    tags = Tags(html)
    assert tags.stack == []
    names = {name for name, _ in tags.tags}
    assert not names & {"link", "iframe", "object", "embed", "base", "foreignobject"}
    for _, attributes in tags.tags:
        for key in ("src", "srcset", "href", "xlink:href", "poster", "background"):
            assert attributes.get(key, "#").startswith(("data:", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    # Numbers, and code
    assert [a.get("type") for name, a in tags.tags if name == "script"] == ["application/json", None]
    assert "src" not in {key for name, a in tags.tags if name == "script" for key in a}
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|eval|innerHTML)\b\s*[(=]", html)
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_every_figure_has_words_and_room(html):
    figures = [a for name, a in Tags(html).tags if name == "svg" and a.get("role") == "img"]
    shown = [
        name for name, plot in gallery.FIGURES.items() if name in re.findall(r'<section aria-labelledby="(\w+)"', html)
    ]
    assert shown == ["loss_by_topic", "clients", "fairness", "general", "participation", "split", "traffic"]
    assert len(figures) == 5 * 2 + 2 * 4  # wide and narrow; those with numbers on cells once a theme
    for attributes in figures:
        assert len(attributes["aria-label"]) > 30
        width, height = map(float, attributes["viewbox"].split()[2:])
        assert width == (288.0 if "narrow" in attributes["class"] else 619.2)  # 4 in and 8.6 in
        assert height > 100


def test_letters_are_defined_once(html):
    used = set(re.findall(r'href="#(-[^"]*)"', html))
    defined = re.findall(r'<path id="(-[^"]*)"', html)
    assert used
    assert used <= set(defined)
    assert len(defined) == len(set(defined))


def test_every_figure_has_a_caption():
    assert set(CAPTIONS) == set(gallery.FIGURES)


def test_ids_are_unique_and_headings_are_in_order(html):
    tags = Tags(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a} <= set(ids)
    assert [name for name, _ in tags if re.fullmatch("h[1-6]", name)] == ["h1"] + ["h2"] * html.count("<section")


def test_numbers_commands_and_provenance_are_on_the_page(html):
    for text in ("trial", "148.4", "+0.52 nats", "abc123", "2.6.0", "fedfault run trial.yaml --seed 7", "num_rounds"):
        assert text in html


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_split_is_described_in_sentences_and_a_table(tmp_path):
    index = {"value": 0.25, "chance": 0.05, "sd": 0.01, "excess": 0.2, "z": 20.0, "p": 0.005}
    found = {"token_js": index, "label_emd": None, "sentences": ["Two clients share 12 % of topic mass."]}
    split = {"topics": ["news", "code"], "clients": [[9, 1], [2, 8]], "tokens": [900, 1100]}
    split |= {"attempts": 40, "acceptance": 0.02, "notes": ["2 groups at 2 clients"], "removed": [1200, 34]}
    run = write(tmp_path)
    (run / "heterogeneity.json").write_text(json.dumps(found))
    (run / "split.json").write_text(json.dumps(split))
    text = render_report(run).read_text(encoding="utf-8")
    for said in (
        "Two clients share 12 % of topic mass.",
        "2 groups at 2 clients.",
        "accepted at draw 40; about 2 % of draws",
        "1,234 words were taken out of the clients",
        "tokens: Jensen-Shannon divergence (nats)",
    ):
        assert said in text, said
    assert re.search(r"0\.25.*0\.05.*0\.2.*20\.0.*0\.005", text, re.DOTALL)
    assert "earth mover" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_names_are_escaped(tmp_path):
    topic = [RoundRecord(r.round, r.clients, {f"topic/{EVIL}": Score(4.0, 5), **r.scores}) for r in HISTORY]
    text = render_report(write(tmp_path, topic, (EVIL, "code"), experiment_name=EVIL), dpi=20).read_text()
    assert text.count("<script") == 2  # the numbers, and the code that shows them
    assert text.count("&lt;script&gt;alert(1)") >= 4  # title, heading, tables, setup


def judged(folder, found=(), **verdict):
    """A run folder with these findings and this verdict."""
    lines(write(folder) / "findings.jsonl", found)
    about = {
        "state": "failed",
        "since": 2,
        "sentence": "It diverged.",
        "sure": "Quite.",
        "calibration": "packaged: quickstart",
    }
    update(folder / "metrics.json", verdict={**about, "controls": 19, "alpha": 0.05, **verdict})
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_page_opens_with_the_verdict_and_its_findings(tmp_path):
    advice = ("training.lr at half", "training.max_grad_norm lower")
    found = [finding("slow", 1, "suspect"), finding("divergence", 2, evidence={"rise": 0.5}, advice=advice)]
    text = render_report(judged(tmp_path, found), dpi=20).read_text()
    order = [
        "✕ Failed", "Mixed validation perplexity fell", "It diverged.", "Quite.", '<figure ',
        "Round 2 · divergence.", "The loss rises.", "Statistic 4.25, threshold 1.5 from 19 control runs; rise 0.5.",
        "Try: training.lr at half; training.max_grad_norm lower.", "Round 1 · slow.",
    ]  # fmt: skip
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.count("Mixed validation perplexity fell") == 1
    assert "What the same detectors said" not in text


def test_a_newcomer_s_figures_come_first_and_the_others_are_folded(html):
    names = re.findall(r'<section aria-labelledby="(\w+)"', html)
    experts = re.findall(r'<section aria-labelledby="(\w+)"', html.partition('<details class="experts">')[2])
    assert names[:5] == ["loss_by_topic", "split", "clients", "fairness", "general"]
    assert experts[:2] == ["participation", "traffic"]
    contents = re.findall(r'<a href="#([\w-]+)">', html.partition("<main>")[0])
    assert set(names[:5] + experts[:2]) < set(contents)
    assert {f'id="{name}"' in html for name in contents} == {True}


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_what_can_be_done_next_depends_on_where_the_run_stands(tmp_path):
    done = render_report(write(tmp_path / "done"), dpi=20).read_text()
    assert f"fedfault compare {tmp_path / 'done'} OTHER_RUN" in done
    assert "fedfault resume" not in done
    cut = render_report(write(tmp_path / "cut", HISTORY[:3], status="running", rounds=9), dpi=20).read_text()
    assert f"fedfault resume {tmp_path / 'cut'}" in cut


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_what_a_detector_said_in_other_rounds_is_folded_away(tmp_path):
    found = [finding(round=1, level="suspect"), finding(round=2), finding(round=3)]
    text = render_report(judged(tmp_path, found), dpi=20).read_text()
    assert text.index("Round 2 · divergence.") < text.index("<details>") < text.index("Round 1 · divergence.")
    assert "2 more</summary>" in text


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("state", "sign"), [("healthy", "✓"), ("degraded", "!"), ("failed", "✕")])
def test_a_state_is_a_word_and_a_sign_not_a_colour_alone(tmp_path, state, sign):
    text = render_report(judged(tmp_path, state=state, since=None), dpi=20).read_text()
    assert f'<span class="badge">{sign} {state.capitalize()}</span>' in text


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_verdict_without_calibration_says_so_plainly(tmp_path):
    assert "not calibrated" in render_report(judged(tmp_path, calibration=None), dpi=20).read_text()
    assert "not calibrated" not in render_report(judged(tmp_path), dpi=20).read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_run_without_a_verdict_says_nothing_about_it(tmp_path):
    text = render_report(write(tmp_path), dpi=20).read_text()
    assert 'class="verdict' not in text
    assert not re.search("healthy|calibrated", text.partition("<body>")[2], re.IGNORECASE)
    lines(tmp_path / "findings.jsonl", [finding()])
    assert "Findings so far" in render_report(tmp_path, dpi=20).read_text()  # of a run that goes on


@pytest.mark.slow
@pytest.mark.long
def test_a_run_with_everything_stays_small(tmp_path):
    topics = ("news", "code", "prose")
    tiers = ("fast", "middle", "slow")
    turns = [[turn(k % 10, tiers[k % 10 % 3], 2 + k % 8, seconds=0.1 * k) for k in (r, r + 1)] for r in range(1, 13)]
    run = clocked(turns, clients=10, topics=topics, probed=True)
    stale = [
        replace(r, clients=tuple(replace(c, probes={**c.probes, "staleness": 1.0}) for c in r.clients))
        for r in run.records
    ]
    folder = write(tmp_path, stale, rounds=12)
    own = [
        {"client": k, "model": model, "loss": 3.0 + 0.1 * k, "targets": 9, "metrics": {}}
        for model in ("global", "own")
        for k in range(10)
    ]
    (folder / "personal.json").write_text(json.dumps({"rows": own}))
    update(folder / "split.json", **run.split)
    blamed = [{"round": 3, "client": k, "score": "validation", "left_out": 0.01 * k, "shapley": 0.0} for k in range(3)]
    (folder / "contributions.json").write_text(json.dumps({"rows": blamed}))
    path = render_report(folder, dpi=20)
    assert {p.stem for p in (tmp_path / "plots").iterdir()} == set(gallery.FIGURES)
    assert path.stat().st_size < 1.5e6


@pytest.mark.slow
def test_the_clock_is_told_below_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", {"clock": gallery.FIGURES["clock"]})
    run = clocked([[turn(0), turn(1, "slow", 2, "dropped", seconds=3.0)]])
    text = render_report(write(tmp_path, run.records, deadline={"seconds": 2.0}), dpi=20).read_text()
    order = ["By the simulated clock", "Deadline 2 s: 50 %", "How often clients of each tier"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.long
def test_rendering_again_replaces_the_page_and_leaves_no_scraps(page):
    before = page.read_bytes()
    assert render_report(page.parent, dpi=20).read_bytes() == before
    assert {p.name for p in page.parent.iterdir()} == {
        "config.yaml", "metrics.json", "manifest.json", "split.json", "rounds.jsonl", "plots", "report.html",
    }  # fmt: skip
    assert {p.suffix for p in (page.parent / "plots").iterdir()} == {".png"}


@pytest.mark.slow
def test_reading_and_rendering_need_no_torch():
    code = "import sys, fedfault.report.inline, fedfault.report.gallery"
    code += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, fedfault.report.render; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_report_goes_elsewhere_where_the_run_is_not_to_be_written(tmp_path):
    run = write(tmp_path / "run")
    before = sorted(p.name for p in run.iterdir())
    page = render_report(run, dpi=20, out=tmp_path / "else" / "where")
    assert page == tmp_path / "else" / "where" / "report.html"
    assert sorted(p.name for p in run.iterdir()) == before
    assert list((page.parent / "plots").glob("*.png"))
    assert render_report(run, dpi=20, out=page.parent) == page  # its own is replaced


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_report_replaces_no_other_page_no_other_picture_and_no_report_of_another_run(tmp_path):
    run, other, mine = write(tmp_path / "run"), write(tmp_path / "other"), tmp_path / "mine"
    (mine / "plots").mkdir(parents=True)
    page, photo = mine / "report.html", mine / "plots" / "split.png"
    page.write_text("<title>Thesis, with fedfault</title>")
    with pytest.raises(UserError, match=r"report\.html is not a page of fedfault's; move it away"):
        render_report(run, out=mine)
    assert page.read_text() == "<title>Thesis, with fedfault</title>"
    page.rename(mine / "thesis.html")
    photo.write_bytes(b"photo")
    with pytest.raises(UserError, match=r"split\.png exists, and no report beside it"):
        render_report(run, out=mine)
    assert photo.read_bytes() == b"photo"
    with pytest.raises(UserError, match="other holds a run or a study, with a report of its own"):
        render_report(run, out=other)
    assert not page.exists()
    assert not (other / "report.html").exists()
