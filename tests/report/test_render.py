"""The report: what it says, what it survives, and that it stands alone."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml

from fedfault import plots
from fedfault.errors import UserError
from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.report import summary
from fedfault.report.render import read, render

EVIL = "<script>alert(1)</script>"


def record(r, code, news=4.0, who=(0,), general=5.0):
    """A round in which client 0 (news) or 1 (code) trained."""
    scores = {"topic/news": Score(news, 10), "topic/code": Score(code, 10), "validation": Score((news + code) / 2, 20)}
    scores |= {"client/0": Score(news, 5), "client/1": Score(code, 5), "general": Score(general, 50)}
    trained = tuple(ClientRecord(k, 1.0, 5, 320, 4.0, 1.0, 0.1, 1000, 1000) for k in who) if r else ()
    return RoundRecord(r, trained, scores, {}, 1000 * len(trained), 1000 * len(trained), {"train": 2.0})


HISTORY = [
    record(0, code=6.0),
    record(1, code=5.0, who=(1,)),
    record(2, code=5.52, who=(0,)),
    record(3, code=4.0, who=(1,), general=5.13),
]


def write(folder, records=HISTORY, topics=("news", "code"), status="finished", rounds=3, **config):
    config = {"experiment_name": "trial", "seed": 7, "federation": {"num_rounds": rounds}, **config}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    manifest = {"status": status, "command": "fedfault run trial.yaml --seed 7", "commit": "abc123", "torch": "2.6.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    split = {"topics": list(topics), "clients": [[9, 1], [2, 8]], "tokens": [900, 1100]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.fixture
def few(monkeypatch):
    """Two of the figures, where a test is about words."""
    chosen = {name: plots.FIGURES[name] for name in ("general", "split")}
    monkeypatch.setattr(plots, "FIGURES", chosen)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = render(write(tmp_path_factory.mktemp("runs") / "trial"), dpi=20)
    return path


@pytest.fixture(scope="module")
def html(page):
    return page.read_text(encoding="utf-8")


def test_the_summary_is_computed_from_the_records(tmp_path):
    sentences = summary.headline(read(write(tmp_path)))
    assert sentences == [
        # exp(5) and exp(4): the mixture of news at 4 and code at 6, then at 4
        "Mixed validation perplexity fell from 148.4 to 54.6 over 3 rounds (its best).",
        "Between evaluations the loss of single topics jumped by up to 0.52 nats "
        "(code, round 2, when no client that mostly holds it trained).",
        "Held-out loss of single clients ends between 4.00 nats (client 0) and 4.00 nats (client 1).",
        "General English: +0.13 nats per token against the model before training.",
    ]


def test_a_rise_is_called_a_rise(tmp_path):
    run = read(write(tmp_path, [record(0, 4.0), record(1, 5.0), record(2, 6.0, general=4.9)], rounds=2))
    assert (
        summary.headline(run)[0]
        == "Mixed validation perplexity rose from 54.6 to 148.4 over 2 rounds (best 54.6 in round 0)."
    )
    assert "−0.10 nats" in summary.headline(run)[-1]
    assert summary.status(run) == ["Only 2 rounds of training: too few to show a trend."]


def test_steady_topics_are_called_steady(tmp_path):
    run = read(write(tmp_path, [record(r, 5.0 - r) for r in range(4)]))
    assert "No single topic's loss rose by more than 0.01 nats between two evaluations." in summary.headline(run)


def test_a_diverged_run_says_so(tmp_path, few):
    run = read(write(tmp_path, [*HISTORY[:2], record(2, math.nan), record(3, math.inf)]))
    assert summary.headline(run)[0] == (
        "The run diverged: the validation loss is not a finite number from round 2 on. "
        "Its best perplexity was 90.0 in round 1."
    )
    text = render(run.folder, dpi=20).read_text()
    assert "not finite" in text
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]*", "", text))


def test_an_unfinished_run_says_so(tmp_path):
    run = read(write(tmp_path, HISTORY[:3], status="running", rounds=9))
    assert summary.status(run) == [
        "This run is not finished (status: running): 2 of 9 rounds are recorded.",
        "Only 2 rounds of training: too few to show a trend.",
    ]


def test_a_run_without_any_round_still_has_a_page(tmp_path):
    path = render(write(tmp_path, [], status="running"))
    assert "No round has been recorded yet." in path.read_text()
    (tmp_path / "rounds.jsonl").unlink()
    assert render(tmp_path) == path


def test_a_half_written_last_line_is_left_out_and_noted(tmp_path):
    folder = write(tmp_path)
    with (folder / "rounds.jsonl").open("a") as out:
        out.write('{"round": 4, "cli')
    run = read(folder)
    assert [r.round for r in run.records] == [0, 1, 2, 3]
    assert "The last line of rounds.jsonl is incomplete and was left out." in summary.status(run)


def test_events_are_shown_and_many_are_counted(tmp_path):
    records = [HISTORY[0], *(RoundRecord(r, events=(f"client {r} fell over",)) for r in range(1, 10))]
    notes = summary.status(read(write(tmp_path, records, rounds=9)))
    assert notes[0] == "Round 1: client 1 fell over."
    assert notes[-1] == "4 more such events are in rounds.jsonl."


def test_only_the_folder_and_its_records_are_needed(tmp_path, few):
    folder = write(tmp_path)
    for name in ("manifest.json", "split.json"):
        (folder / name).unlink()
    (folder / "config.yaml").write_text("{}")
    text = render(folder, dpi=20).read_text()
    assert "The run folder does not say how documents were split." in text
    assert f"fedfault run {folder}/config.yaml" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not a run folder: config\.yaml and rounds\.jsonl not found"):
        render(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rounds.jsonl", '{"round": 0}\nnonsense\n', "rounds.jsonl is corrupt: line 1"),
        ("rounds.jsonl", "[]\n", "line 1 is not a round record"),
        ("config.yaml", "a: [", "config.yaml is corrupt"),
        ("config.yaml", "- 1", "it should hold keys and values, not list"),
        ("manifest.json", "{", "manifest.json is corrupt"),
        ("split.json", '{"topics": ["a"]}', "the lists topics, clients and tokens"),
        ("split.json", '{"topics": ["a"], "clients": [[1, 2]], "tokens": [3]}', "one document count a topic"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, name, content, says):
    (write(tmp_path) / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        render(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_rounds_must_count_upwards(tmp_path):
    with pytest.raises(UserError, match=r"do not count upwards \(\[0, 0\]\)"):
        read(write(tmp_path, [HISTORY[0], HISTORY[0]]))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (write(tmp_path) / "rounds.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path)


class Tags(HTMLParser):
    """Every opening tag with its attributes, and whether open and close tags match."""

    VOID = frozenset({"meta", "img", "source", "br"})

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


def test_the_page_stands_alone(html):
    tags = Tags(html)
    assert tags.stack == []
    names = {name for name, _ in tags.tags}
    assert not names & {"link", "script", "iframe", "object", "embed", "base"}
    for _, attributes in tags.tags:
        for key in ("src", "srcset", "href", "poster", "background"):
            assert attributes.get(key, "data:").startswith("data:")
    assert "url(" not in html
    assert "@import" not in html


def test_every_image_has_words_and_a_size(html):
    images = [attributes for name, attributes in Tags(html).tags if name == "img"]
    assert len(images) == 2 * 6  # light and dark; no probes, so no divergence figure
    for attributes in images:
        assert len(attributes["alt"]) > 30
        assert int(attributes["width"]) > int(attributes["height"]) > 0
    assert "No update divergence was recorded." in html


def test_ids_are_unique_and_headings_are_in_order(html):
    tags = Tags(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a} <= set(ids)
    assert [name for name, _ in tags if re.fullmatch("h[1-6]", name)] == ["h1"] + ["h2"] * len(ids)


def test_numbers_commands_and_provenance_are_on_the_page(html):
    for text in ("trial", "148.4", "+0.52 nats", "abc123", "2.6.0", "fedfault run trial.yaml --seed 7", "num_rounds"):
        assert text in html


def test_tables_hold_start_best_final_and_gain(tmp_path):
    run = read(write(tmp_path))
    rows = {row[0]: row[1:] for row in summary.scores(run).rows}
    assert rows["code"] == ["6.000", "4.000", "3", "4.000", "+2.000", "0.520", "54.6"]
    assert rows["general English"][4] == "−0.130"
    assert summary.clients(run).rows[1] == ["1", "code", "80%", "10", "1,100", "2", "6.000", "4.000", "+2.000"]


def test_the_split_is_described_in_sentences_and_a_table(tmp_path, few):
    index = {"value": 0.25, "chance": 0.05, "sd": 0.01, "excess": 0.2, "z": 20.0, "p": 0.005}
    found = {"token_js": index, "label_emd": None, "sentences": ["Two clients share 12 % of topic mass."]}
    split = {"topics": ["news", "code"], "clients": [[9, 1], [2, 8]], "tokens": [900, 1100]}
    split |= {"attempts": 40, "acceptance": 0.02, "notes": ["2 groups at 2 clients"], "removed": [1200, 34]}
    run = write(tmp_path)
    (run / "heterogeneity.json").write_text(json.dumps(found))
    (run / "split.json").write_text(json.dumps(split))
    text = render(run).read_text(encoding="utf-8")
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


def test_names_are_escaped(tmp_path, few):
    topic = [RoundRecord(r.round, r.clients, {f"topic/{EVIL}": Score(4.0, 5), **r.scores}) for r in HISTORY]
    text = render(write(tmp_path, topic, (EVIL, "code"), experiment_name=EVIL), dpi=20).read_text()
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 4  # title, heading, tables, setup


@pytest.mark.slow
def test_rendering_again_replaces_the_page_and_leaves_no_scraps(page):
    before = page.read_bytes()
    assert render(page.parent, dpi=20).read_bytes() == before
    assert {p.name for p in page.parent.iterdir()} == {
        "config.yaml", "manifest.json", "split.json", "rounds.jsonl", "plots", "report.html",
    }  # fmt: skip
    assert {p.suffix for p in (page.parent / "plots").iterdir()} == {".png"}


def test_reading_and_rendering_need_no_torch():
    code = "import sys, fedfault.report.render, fedfault.plots; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import sys, fedfault.report.render; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
