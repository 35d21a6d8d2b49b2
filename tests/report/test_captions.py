"""Captions speak of what is drawn."""

from dataclasses import replace

from fedfault.report.captions import write_caption
from handmade import make


def test_the_figure_of_answers_is_about_labels_only_where_labels_are_learned():
    run = make(probed=True)
    assert write_caption(run, "labels").title == "Answers"
    labelled = replace(run, config={**run.config, "data": {"task_type": "classification"}})
    assert write_caption(labelled, "labels").title == "Labels"


def test_a_caption_names_the_target_and_the_clients_only_where_they_are_drawn():
    run = make(probed=True)
    text = write_caption(run, "labels").text
    assert "median and the middle 80 %" in text
    assert "Thin line: the second metric." in text
    assert "target" not in text
    aimed = replace(run, config={**run.config, "evaluation": {"target_score": 0.7}})
    assert "Dashed: the target." in write_caption(aimed, "labels").text
    assert "middle 80 %" not in write_caption(make(probed=True, clients=1), "labels").text


def test_captions_speak_of_labels_where_labels_are_learned():
    run = make(probed=True)
    labelled = replace(run, config={**run.config, "data": {"task_type": "classification"}})
    assert write_caption(run, "loss_by_topic").title == "Loss by topic"
    caption = write_caption(labelled, "loss_by_topic")
    assert caption.title == "Loss by label"
    assert "topic" not in caption.text


def test_the_clock_is_explained_without_the_deadline_and_the_regret_that_a_run_has_not():
    text = write_caption(make(), "clock").text
    assert "eadline" not in text
    assert "Regret" not in text
    due = replace(make(), config={"deadline": {"seconds": 5.0, "enabled": True}})
    assert "Done by the deadline" in write_caption(due, "clock").text


def test_ranks_are_explained_without_the_energy_where_all_clients_have_one_rank():
    assert "Energy" not in write_caption(make(), "ranks").text
