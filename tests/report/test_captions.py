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
