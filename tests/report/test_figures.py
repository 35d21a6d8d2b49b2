"""What the figures show: the recorded numbers, computed by hand, at the right place."""

import dataclasses
import math

import numpy as np
import pytest

from fedfault.records import RoundRecord, Score
from fedfault.report.captions import write_caption
from fedfault.report.draw import MARKERS, spread_places
from fedfault.report.figures.clients import draw_clients, draw_fairness
from fedfault.report.figures.cost import draw_traffic
from fedfault.report.figures.heat import average_cosines, draw_cosines, draw_participation, draw_split
from fedfault.report.figures.layers import draw_layers
from fedfault.report.figures.leakage import draw_leakage
from fedfault.report.figures.losses import draw_general, draw_loss_by_topic
from fedfault.report.figures.rounds import draw_control, draw_drift, draw_gradients, draw_ranks
from fedfault.runs.recorded import Fork, RunData
from handmade import client, finding, make


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in [*ax.texts, *ax.get_xticklabels(), *ax.get_yticklabels()]]


def curves(ax):
    """Data of the lines with more than a level."""
    return [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata()) > 2]


def probed(**probes):
    """A run of one client with these probes in rounds 1, 2, ..."""
    rows = zip(*probes.values(), strict=True)
    rounds = [RoundRecord(r, (client(0),), {}, dict(zip(probes, row, strict=True))) for r, row in enumerate(rows, 1)]
    return RunData(make().folder, (RoundRecord(0), *rounds))


def test_the_lines_are_the_recorded_losses():
    lines = draw_loss_by_topic(make(rounds=7, every=3)).axes[0].get_lines()
    by_end = {round(float(line.get_ydata()[-1]), 6): line for line in lines}
    assert list(by_end[3.4].get_xdata()) == [0, 3, 6]  # news, t = 0: 4.0 - 0.1 * 6
    np.testing.assert_allclose(by_end[3.6].get_ydata(), [4.2, 3.9, 3.6])  # code, t = 1


def test_a_marker_says_that_the_topic_took_part():
    run = make()
    records = (run.records[0], *(RoundRecord(r.round, (client(0),), r.scores) for r in run.records[1:]))  # news alone
    figure = draw_loss_by_topic(RunData(run.folder, records, split=run.split))
    news, code = figure.axes[0].get_lines()[:2]
    assert (news.get_marker(), news.get_markevery()) == (MARKERS[0], [1, 2, 3])
    assert code.get_marker() == "None"


@pytest.mark.parametrize(("kept", "who"), [(3, "3 of 4 clients"), (1, "1 of 4 clients"), (4, "4 clients")])
def test_figures_of_clients_say_how_many_of_them_are_shown(kept, who):
    """A client with a single text holds none back and has no score."""
    run = make()
    gone = {f"client/{k}" for k in range(kept, 4)}
    records = [dataclasses.replace(r, scores={n: s for n, s in r.scores.items() if n not in gone}) for r in run.records]
    run = dataclasses.replace(run, records=tuple(records))
    for name, draw in (("clients", draw_clients), ("fairness", draw_fairness)):
        (ax,) = draw(run).axes
        assert ax.get_title(loc="left").split(";")[0].split(",")[0] == who
        assert ("are left out" in write_caption(run, name).text) == (kept < 4)


def test_a_known_entropy_is_a_line_below_the_losses():
    run = make()
    ax = draw_loss_by_topic(dataclasses.replace(run, split={**run.split, "floor": {"validation": 1.5}})).axes[0]
    (level,) = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert level == 1.5
    assert ax.get_ylim()[0] < 1.5
    assert "entropy" in [t.get_text() for t in ax.texts]
    assert "entropy" not in texts(draw_loss_by_topic(run))


def test_a_finding_is_a_line_in_its_round_with_its_name():
    run = make(findings=(finding("client_drift", 2), finding("client_drift", 1, "suspect"), finding("late", 9)))
    ax = draw_loss_by_topic(run).axes[0]
    upright = [line.get_xdata()[0] for line in ax.get_lines() if list(line.get_ydata()) == [0, 1]]
    assert upright == [2]  # the suspicion became the alarm, and there is no round 9
    assert "client drift" in [t.get_text() for t in ax.texts]


def test_a_fork_shows_both_futures_from_its_round_on():
    parent = make(rounds=5, loss=lambda r, t: 5.0 + r).records
    run = make(forks=(Fork("parent", 1, {"training.lr": (0.003, 0.001)}, parent),))
    ax = draw_loss_by_topic(run).axes[0]
    (future,) = [line for line in ax.get_lines() if line.is_dashed() and len(line.get_xdata()) > 2]
    assert list(future.get_xdata()) == [1, 2, 3, 4, 5]
    # Round 1 is the run's own: 4 - 0.1 + 0.1
    np.testing.assert_allclose(future.get_ydata(), [4.0, 7.0, 8.0, 9.0, 10.0])
    assert ax.get_xlim()[1] == 5.5
    assert ax.get_ylim()[1] > 10.0
    assert {"parent", "training.lr 0.003 → 0.001"} <= {t.get_text() for t in ax.texts}


def test_a_loss_that_is_not_finite_is_marked_and_named():
    for plot in (draw_loss_by_topic, draw_clients):
        assert "× not finite" in texts(plot(make(loss=lambda r, t: 4.0 + t if r < 2 else math.nan)))
        assert "× not finite" not in texts(plot(make()))


def test_forgetting_is_the_difference_to_round_zero():
    change = draw_general(make()).axes[0].get_lines()[1].get_ydata()
    np.testing.assert_allclose(change, [0.0, 0.01, 0.02, 0.03], atol=1e-12)


def test_the_band_around_forgetting_is_two_standard_errors():
    losses = [Score(3.0, 10), Score(3.2, 10, se=0.1, blocks=9), Score(3.4, 10, se=0.2, blocks=9)]
    run = RunData(make().folder, tuple(RoundRecord(r, scores={"general": s}) for r, s in enumerate(losses)))
    (band,) = draw_general(run).axes[0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((0.0, 0.4 + 1.96 * 0.2))


def test_the_client_fan_is_percentiles():
    run = make(rounds=1, clients=11, loss=lambda r, t: float(t))  # held-out losses 0, 1, ..., 10
    ends = sorted(line.get_ydata()[-1] for line in draw_clients(run).axes[0].get_lines())
    assert ends == [0.0, 5.0, 10.0]


def test_gains_count_those_who_are_worse_off():
    # gains of eleven clients: -1, 0, ..., 9 tenths; losses fall from 5 to 5 - gain
    run = make(rounds=1, clients=11, loss=lambda r, t: 5.0 - r * (t - 1) / 10)
    figure = draw_fairness(run)
    main, below = figure.axes
    worst, median = sorted(float(line.get_ydata()[-1]) for line in main.get_lines()[1:])  # first: the zero line
    assert (worst, median) == pytest.approx((-0.1, 0.4))
    assert [bar.get_height() for bar in below.patches] == [1]
    assert main.get_title(loc="left").startswith("11 clients, 1 of them below zero")


def test_without_a_loser_there_is_no_panel_for_them_and_a_broken_client_is_one():
    assert len(draw_fairness(make()).axes) == 1
    figure = draw_fairness(make(loss=lambda r, t: math.nan if r == 3 and t == 2 else 4.0 - 0.1 * r))
    assert figure.axes[0].get_title(loc="left").startswith("4 clients, 1 of them")


def test_drift_is_between_over_within_and_pooled():
    run = probed(drift_between=[1.0, -1.0, 3.0, 1.0], drift_within=[1.0, 2.0, 1.0, 0.0])
    of_the_round, so_far = curves(draw_drift(run).axes[0])
    np.testing.assert_allclose(of_the_round, [1.0, -0.5, 3.0])  # the last round's is not defined
    np.testing.assert_allclose(so_far, [1.0, 0.0, 0.75, 1.0])  # 0/3, 3/4, 4/4


def test_the_band_around_gradient_norms_is_one_standard_deviation():
    run = probed(gradient_norm_mean=[1.0, 2.0], gradient_norm_variance=[0.25, 1.0], gradient_norm_cv=[0.5, 0.5])
    (band,) = draw_gradients(run).axes[0].collections
    edges = band.get_paths()[0].vertices
    assert {(x, round(y, 9)) for x, y in edges} >= {(1.0, 0.5), (1.0, 1.5), (2.0, 1.0), (2.0, 3.0)}


def test_control_variates_are_compared_with_none():
    run = probed(control_error=[1.0, 3.0, 2.0], control_spread=[2.0, 1.0, 2.0])
    ax = draw_control(run).axes[0]
    of_the_round, so_far = curves(ax)
    np.testing.assert_allclose(of_the_round, [0.5, 3.0, 1.0])
    np.testing.assert_allclose(so_far, [0.5, 4 / 3, 1.2])
    assert [1, 1] in [list(line.get_ydata()) for line in ax.get_lines()]


def test_the_noise_of_a_batch_stands_beside_the_error_of_control_variates_and_of_none():
    """IID clients do not differ: 0.6 over nothing would be without bounds, (0.6 + 2) / (0 + 2) is not."""
    run = probed(control_error=[0.6] * 3, control_spread=[0.0] * 3, drift_within=[2.0] * 3)
    of_the_round, so_far = curves(draw_control(run).axes[0])
    np.testing.assert_allclose([of_the_round, so_far], 1.3)


def test_panels_without_anything_are_left_out():
    assert len(draw_ranks(probed(effective_rank=[3.0, 2.0])).axes) == 1
    assert len(draw_ranks(make(probed=True)).axes) == 3


def test_layers_are_those_of_the_first_a_middle_and_the_last_measured_round():
    rows = [{f"cka/{layer}": 1.0 - 0.1 * layer * r for layer in (2, 0, 10)} for r in range(1, 6)]
    records = (RoundRecord(0), *(RoundRecord(r, probes=row) for r, row in enumerate(rows, 1)))
    (ax,) = draw_layers(RunData(make().folder, records)).axes
    found = {line.get_label(): line for line in ax.get_lines()}
    assert list(found) == ["round 1", "round 3", "round 5"]
    assert list(found["round 5"].get_xdata()) == [0, 2, 10]  # numbers, not text: 2 before 10
    np.testing.assert_allclose(found["round 5"].get_ydata(), [1.0, 0.0, -4.0])


def together(round, ids, matrix):
    return RoundRecord(round, tuple(client(k) for k in ids), matrices={"update_cosine": matrix})


def test_cosines_are_means_over_the_rounds_in_which_both_trained():
    # clients 0 and 2 hold the first topic, so the order is 0, 2, 1
    records = (
        together(1, (0, 1), ((1.0, 0.2), (0.2, 1.0))),
        together(2, (1, 0), ((1.0, 0.6), (0.6, 1.0))),
        together(3, (2, 0), ((1.0, math.nan), (math.nan, 1.0))),
        RoundRecord(4, (client(1),)),
    )
    split = {"topics": ["a", "b"], "clients": [[1, 0], [0, 1], [1, 0]], "tokens": [1, 1, 1]}
    mean, rounds = average_cosines(RunData(make().folder, records, split=split))
    assert rounds == [1, 2, 3]
    empty = math.nan
    np.testing.assert_allclose(mean, [[empty, empty, 0.4], [empty, empty, empty], [0.4, empty, empty]])


def test_with_all_clients_in_every_round_the_last_one_counts():
    records = (together(1, (0, 1), ((1.0, 0.2), (0.2, 1.0))), together(2, (0, 1), ((1.0, -0.6), (-0.6, 1.0))))
    mean, rounds = average_cosines(RunData(make().folder, records))
    assert rounds == [2]
    np.testing.assert_allclose(mean, [[math.nan, -0.6], [-0.6, math.nan]])
    assert "−0.60" in texts(draw_cosines(RunData(make().folder, records)))


def test_traffic_adds_up():
    up, down = draw_traffic(make(rounds=2)).axes[0].get_lines()
    np.testing.assert_allclose(up.get_ydata(), [0, 0.002, 0.004])  # MB, two clients a round
    np.testing.assert_allclose(down.get_ydata(), [0, 0.004, 0.008])


def test_seconds_of_all_probes_are_one_part():
    ax = draw_traffic(make(rounds=2, probed=True)).axes[1]
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == ["train", "evaluate", "probes"]
    assert [bar.get_height() for bar in ax.containers[2]] == [0.0, 0.5, 0.5]


def test_labels_stay_few_and_apart_when_there_are_many():
    large = make(clients=300, topics=tuple(f"topic {i}" for i in range(50)))
    assert len([t for t in texts(draw_participation(large)) if t.startswith("topic")]) <= 25
    assert spread_places([0.5, 0.5, 0.5], 0.2) == pytest.approx([0.3, 0.5, 0.7])
    assert spread_places([0.1, 0.6], 0.2) == [0.1, 0.6]
    assert spread_places([0.9, 1.0, 1.0], 0.2) == pytest.approx([0.6, 0.8, 1.0])  # not into the title
    assert spread_places([], 0.2) == []


def test_the_band_around_a_norm_ends_at_zero():
    run = make()
    wide = [
        dataclasses.replace(r, probes={**r.probes, "gradient_norm_mean": 1.0, "gradient_norm_variance": 9.0})
        for r in run.records
    ]
    (band,) = draw_gradients(dataclasses.replace(run, records=wide)).axes[0].collections[:1]
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (0.0, 4.0)


def test_what_models_give_away_is_drawn_beside_its_null_with_a_dot_for_each_upload():
    run = probed(exposure=[2.0, 5.0, 6.0], exposure_null=[1.0, 1.5, 2.0])
    known = [dataclasses.replace(client(k), probes={"exposure": value}) for k, value in ((0, 8.0), (1, 3.0), (2, 4.0))]
    records = [dataclasses.replace(r, clients=tuple(known)) if r.round else r for r in run.records]
    (ax,) = draw_leakage(RunData(run.folder, tuple(records))).axes
    assert [list(values) for values in curves(ax)] == [[2, 5, 6], [1, 1.5, 2], [8, 3, 4] * 3, [4, 4, 4]]
    assert draw_leakage(make()) is None


def test_the_title_over_what_clients_have_fits_a_narrow_figure():
    run = make()
    run = dataclasses.replace(run, config={**run.config, "data": {"task_type": "instruction"}})
    titles = [draw_split(run, narrow=narrow).axes[1].get_title(loc="left") for narrow in (False, True)]
    assert titles == ["Tokens of responses", "Tokens"]
