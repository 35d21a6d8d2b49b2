"""Captions speak of what is drawn."""

from dataclasses import replace

from fedfault.report.captions import CELLS, _list_drawn, describe_figure, write_caption
from fedfault.report.figures.losses import draw_loss_by_topic
from fedfault.report.summary import make_tiles
from handmade import client, make, read_texts


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


def test_panels_and_lines_are_explained_only_where_they_are_drawn():
    whole = make(probed=True)
    assert [title for title, _ in _list_drawn(whole, "drift")] == [
        "Differences between clients", "To −gradient", "To last round",
    ]  # fmt: skip
    text = write_caption(without(whole, "drift_between", "gradient_alignment"), "drift").text
    assert text.startswith("To last round: cosine of the mean update")
    assert "gradient" not in text
    blind = without(whole, "attention_entropy", "attention_entropy_base")
    assert "Attention" in write_caption(whole, "layers").text
    assert "Attention" not in write_caption(blind, "layers").text
    assert describe_figure(blind, "layers") == (
        "Line charts over layers, in some rounds: Hidden states, Their geometry, Dashed, between clients."
    )


def without(run, *probes):
    """The run as if these probes had not been taken."""

    def kept(r):
        return {name: v for name, v in r.probes.items() if name.partition("/")[0] not in probes}

    return replace(run, records=tuple(replace(r, probes=kept(r)) for r in run.records))


def test_preferences_are_not_called_labels():
    run = make(probed=True)
    assert write_caption(replace(run, config={"data": {"task_type": "preference"}}), "labels").title == "Preferences"


def test_where_all_data_have_one_topic_there_are_no_lines_of_topics():
    run = make(topics=("text",))
    assert write_caption(run, "loss_by_topic") == (
        "Loss",
        "Loss on the validation set." + CELLS.format(by_number=", by number"),
    )
    assert not any(tile.name.startswith("Largest jump") for tile in make_tiles(run))
    shown = read_texts(draw_loss_by_topic(run))
    assert shown[0].startswith("Validation: perplexity")
    assert "validation" in shown
    assert not {"mixture", "text"}.intersection(shown)
    central = replace(run, config={"federation": {"centralised": True}})
    assert write_caption(central, "loss_by_topic").text == "Loss on the validation set."


def test_cells_are_numbered_only_where_the_caption_says_so():
    """Two clients a round have room for their numbers, seven have not."""
    few, many = make(clients=4), make(clients=7)
    many = replace(many, records=tuple(replace(r, clients=r.clients and every(7)) for r in many.records))
    assert "trained in a round, by number, in the colour" in write_caption(few, "loss_by_topic").text
    assert "trained in a round, in the colour" in write_caption(many, "loss_by_topic").text
    assert {"1", "2"} <= set(read_texts(draw_loss_by_topic(few)))
    assert "6" not in read_texts(draw_loss_by_topic(many))


def every(count):
    return tuple(client(k) for k in range(count))


def test_an_empty_cell_is_explained_only_where_two_clients_have_never_met():
    """In rounds 1 to 3 clients 1 and 2, 2 and 3, 3 and 0 meet, and no others; of two clients both are always there."""
    assert "an empty cell: they never trained" in write_caption(make(probed=True), "cosines").text
    assert "empty" not in write_caption(make(clients=2, probed=True), "cosines").text


def test_what_general_text_is_sampled_from_is_told_where_that_is_so():
    run = make()
    assert "KL(base" not in write_caption(run, "general").text
    sampled = replace(run, config={"evaluation": {"general": "base_samples"}})
    assert "estimates KL(base || model)" in write_caption(sampled, "general").text


def test_markers_are_explained_only_where_rounds_are_few_enough_for_them():
    assert "a marker on a line" in write_caption(make(rounds=3), "loss_by_topic").text
    assert "marker" not in write_caption(make(rounds=100), "loss_by_topic").text
