"""The page answers, in headless Chromium: to the pointer, to keys, to what is looked for; and stays what it is without."""

import re
from itertools import pairwise

import pytest

from fedfault.records import ClientRecord, RoundRecord, Score
from fedfault.report import gallery
from fedfault.report.render import render_report
from handmade import client, clocked, finding, lines, make, probes, turn, update, write

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Four clients on a simulated clock, three rounds of 1, 2 and 1 seconds; client 2 is Eve."""
    run = clocked([[turn(0), turn(1)], [turn(0, seconds=2.0)], [turn(1)]])
    folder = write(tmp_path_factory.mktemp("results") / "one", run.records)
    update(folder / "split.json", **run.split, names=["Ann", "Bob", "Eve", "Dan"])
    lines(folder / "findings.jsonl", [finding(round=2)])
    return render_report(folder, dpi=20)


@pytest.fixture
def page(browser, report):
    page = browser.new_page(viewport={"width": 1024, "height": 900})
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield page
    page.close()
    assert wrong == []


def part(page, name, line):
    return page.locator(f'[data-figure="{name}"] svg:visible [data-part="line {line}"]').first


def test_the_pointer_shows_the_values_of_its_round(page):
    area = page.locator('[data-figure="loss_by_topic"] .probe').first
    box = area.bounding_box()
    area.hover(position={"x": box["width"] * 0.99, "y": 20})
    tip = page.locator('[data-figure="loss_by_topic"] .tip')
    assert tip.is_visible()
    assert tip.inner_text().splitlines()[0] == "round 3 · 4 s · 12 kB"
    assert "code 3.9" in tip.inner_text()
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_arrow_keys_go_from_round_to_round_and_say_the_values(page):
    area = page.locator('[data-figure="loss_by_topic"] .probe').first
    area.focus()
    for key in ("Home", "ArrowRight"):
        page.keyboard.press(key)
    said = area.get_attribute("aria-valuetext")
    assert said.startswith("round 1")
    assert "news 3.9" in said
    assert area.get_attribute("aria-valuenow") == "1"
    page.keyboard.press("Escape")
    assert not page.locator('[data-figure="loss_by_topic"] .tip').is_visible()


def test_a_line_is_taken_away_with_its_name_and_comes_back(page):
    button = page.locator('[data-figure="loss_by_topic"] .tools button', has_text="code")
    shown = page.locator('[data-figure="loss_by_topic"] svg:visible [data-part="line 0 1"]')
    assert shown.count() == 2  # the line and the name at its end
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert not shown.first.is_visible()
    assert not shown.last.is_visible()
    page.locator('[data-figure="loss_by_topic"] .probe').first.focus()
    page.keyboard.press("End")
    assert "code" not in page.locator('[data-figure="loss_by_topic"] .tip').inner_text()
    button.click()
    assert shown.first.is_visible()


def test_a_line_of_several_panels_has_one_button_for_all_of_them(browser, tmp_path, monkeypatch):
    """Three panels show the layers after round 1, after the last one, between clients, and of the base."""
    monkeypatch.setattr(gallery, "FIGURES", {"layers": gallery.FIGURES["layers"]})
    folder = write(tmp_path / "one", make(rounds=3, probed=True).records)
    page = browser.new_page()
    page.goto(render_report(folder, dpi=20).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    buttons = page.locator('[data-figure="layers"] .tools button')
    names = buttons.all_inner_texts()
    assert len(names) == len(set(names)) > 2
    buttons.filter(has_text="round 3").click()
    hidden = '[data-figure="layers"] svg.wide [data-part^="line "][style*="none"]'
    panels = {node.get_attribute("data-part").split()[1] for node in page.locator(hidden).all()}
    page.close()
    assert len(panels) > 1


@pytest.mark.parametrize("asked", ["2", "Eve", "client 2 (Eve)"])
def test_a_client_is_found_by_number_or_name_in_every_figure_and_in_the_table(page, asked):
    page.locator('[data-figure="clients"] input.client').fill(asked)
    assert page.locator('[data-figure="clients"] svg:visible path.own').count() == 1
    assert page.locator('[data-figure="fairness"] svg:visible path.own').count() == 1
    assert page.locator('[data-figure="participation"] svg:visible rect.own').count() == 1
    assert page.locator("tr.found th").inner_text() == "2 (Eve)"
    page.locator('[data-figure="clients"] .probe').first.focus()
    page.keyboard.press("Home")
    assert "client 2 (Eve) 4.4" in page.locator('[data-figure="clients"] .tip').inner_text()


def test_a_client_that_is_not_there_is_said_to_be_wrong(page):
    field = page.locator('[data-figure="clients"] input.client')
    field.fill("nobody")
    assert field.get_attribute("aria-invalid") == "true"
    assert page.locator(".own").count() == 0


def test_rounds_are_counted_in_simulated_time_everywhere_and_back(page):
    def points():
        d = part(page, "clients", "0 0").locator("path").first.get_attribute("d")
        return [float(x) for x, _ in re.findall(r"([-\d.]+) ([-\d.]+)", d)]

    before = points()
    page.locator('[data-figure="loss_by_topic"] select').select_option("simulated time")
    assert page.locator('[data-figure="clients"] select').input_value() == "simulated time"
    x = points()
    steps = [b - a for a, b in pairwise(x)]
    assert steps[1] == pytest.approx(2 * steps[0], abs=0.1)  # the second round is twice as long
    assert "simulated time (seconds)" in page.locator('[data-figure="clients"] svg:visible').text_content()
    page.locator('[data-figure="clients"] select').select_option("round")
    assert points() == pytest.approx(before, abs=0.01)


def test_it_is_printed_as_it_was_drawn(page):
    before = part(page, "clients", "0 0").locator("path").first.get_attribute("d")
    page.locator('[data-figure="clients"] select').select_option("bytes")
    page.locator('[data-figure="clients"] .tools button').first.click()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    line = page.locator('[data-figure="clients"] svg.wide [data-part="line 0 0"]').first
    assert line.is_visible()
    printed = [float(v) for v in re.findall(r"[-\d.]+", line.locator("path").first.get_attribute("d"))]
    assert printed == pytest.approx([float(v) for v in re.findall(r"[-\d.]+", before)], abs=0.02)
    assert not page.locator(".tools").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen")
    assert not line.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_areas_lie_over_the_axes_that_are_shown(browser, report, scheme):
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.goto(report.as_uri())
    area = page.locator('[data-figure="clients"] .probe').first.bounding_box()
    picture = page.locator('[data-figure="clients"] svg.narrow').bounding_box()
    line = page.locator('[data-figure="clients"] svg.narrow [data-part="line 0 0"] path').first.bounding_box()
    assert picture["x"] < area["x"] < line["x"]
    assert area["width"] < picture["width"]
    assert area["y"] - 1 <= line["y"] <= line["y"] + line["height"] <= area["y"] + area["height"] + 1
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


def test_without_scripts_all_words_and_figures_are_there_and_no_tools(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("figure svg:visible").count() >= 4
    assert page.locator(".tools, .probe").count() == 0
    assert "Thick line: validation loss" in page.locator("main").inner_text()
    context.close()


def test_a_hundred_clients_and_a_hundred_rounds_fit_into_a_megabyte_and_a_half(tmp_path):
    clients, rounds, topics = 100, 100, [f"topic {i}" for i in range(10)]
    records = []
    for r in range(rounds + 1):
        wave = [4 - 0.01 * r + 0.1 * ((37 * r + 11 * k) % 17) / 17 for k in range(clients)]
        scores = {f"topic/{t}": Score(wave[i], 10) for i, t in enumerate(topics)}
        scores |= {f"client/{k}": Score(wave[k], 10) for k in range(clients)}
        scores |= {"validation": Score(wave[50], 10), "general": Score(3 + 0.001 * r, 10)}
        who = sorted({(7 * r + 13 * i) % clients for i in range(10)}) if r else []
        measured, _ = probes(r, 0) if r else ({}, {})
        row = tuple(tuple(wave[i] / 5 for i in range(len(who))) for _ in who)
        turns = tuple(turn(k, "fast" if k % 2 else "slow", rank=4 + 4 * (k % 2)) for k in who)
        trained: tuple[ClientRecord, ...] = tuple(client(k, wave[k]) for k in who)
        more = {"round_seconds": 2.0, "compliance": 0.9, "regret": 1.2} if r else {}
        matrices = {"update_cosine": row} if r else {}
        records.append(
            RoundRecord(r, trained, scores, measured | more, matrices, bytes_up=1000, bytes_down=2000, turns=turns)
        )
    folder = write(tmp_path / "large", records, topics=topics, rounds=rounds)
    held = [[9 if t == k % 10 else 1 for t in range(10)] for k in range(clients)]
    update(folder / "split.json", clients=held, tokens=[1000 + k for k in range(clients)])
    assert render_report(folder, dpi=20).stat().st_size < 1.5e6


def test_a_word_opens_its_meaning_by_keyboard_and_without_scripts(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    words = page.locator("button.term")
    meanings = [words.nth(i).get_attribute("popovertarget") for i in range(words.count())]
    assert meanings
    assert len(set(meanings)) == len(meanings)
    for id in meanings:
        assert page.locator(f"#{id}").count() == 1
        assert not page.locator(f"#{id}").is_visible()
    words.first.focus()
    page.keyboard.press("Enter")
    assert page.locator(f"#{meanings[0]}").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator(f"#{meanings[0]}").is_visible()
    context.close()
