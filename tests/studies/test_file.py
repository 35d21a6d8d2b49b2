"""Study files: what they span, that pairs are pairs, and that everything wrong is told at once."""

from __future__ import annotations

import pytest

from fedfault.config.shipped import list_studies
from fedfault.data.split import deal_out, load_corpus
from fedfault.errors import UserError
from fedfault.studies.file import load_study
from fedfault.studies.study import Contrast, read_study
from fedfault.testing.toys import LowRank, federation

GRID = {"federation.algorithm": ["fedavg", {"name": "fedprox", "mu": 0.1}], "training.lr": [1e-3, 0.1]}
CLAIM = {"claim": "c", "metric": "auc", "arm": {"lr": 0.1}, "than": {"lr": 1e-3}, "expect": "higher", "by": 0.1}


def refusal(file, *words, **more):
    with pytest.raises(UserError) as e:
        load_study(file, words, **more)
    return str(e.value)


def test_cells_are_the_product_and_runs_are_cells_times_seeds(write):
    plan = load_study(write(grid=GRID, seeds=3, seed=7))
    assert [c.choices for c in plan.study.cells] == [
        {"algorithm": a, "lr": lr} for a in ("fedavg", "fedprox") for lr in ("0.001", "0.1")
    ]
    assert plan.study.seeds == (7, 8, 9)
    assert plan.study.axes == {"algorithm": ["fedavg", "fedprox"], "lr": ["0.001", "0.1"]}
    assert [plan.configs[name].experiment.seed for name in plan.study.runs] == [7] * 4 + [8] * 4 + [9] * 4
    last = plan.configs[plan.study.cells[3].runs[1]].experiment
    assert (last.federation.algorithm.options["mu"], last.training.lr, last.seed) == (0.1, 0.1, 8)
    assert plan.path("x").as_posix() == "results/trial/runs/x"


def test_arms_multiply_the_grid_and_nested_keys_are_as_good_as_dotted_ones(write):
    arms = {"plain": {}, "prox": {"federation": {"algorithm": "fedprox"}}}
    plan = load_study(write(arms=arms, grid={"training": {"lr": [0.1, 0.2]}}, seeds=[3]))
    assert [c.name for c in plan.study.cells] == ["plain, lr 0.1", "plain, lr 0.2", "prox, lr 0.1", "prox, lr 0.2"]
    assert plan.configs[plan.study.cells[3].runs[0]].experiment.federation.algorithm.name == "fedprox"


def test_a_component_may_be_named_by_an_alias_in_a_grid(write):
    below = {"data": {"partition": {"name": "topic_skew", "alpha": 0.3, "convention": "balanced"}}}
    named, alias = (
        load_study(write(**below, grid={"data.partition": [{key: "topic_skew", "alpha": 0.1}, {key: "iid"}]}, seeds=1))
        for key in ("name", "method")
    )
    assert [c.choices for c in named.study.cells] == [{"partition": "topic_skew"}, {"partition": "iid"}]
    assert alias.study == named.study
    assert alias.configs == named.configs
    (skewed, *_) = alias.configs.values()
    assert skewed.experiment.data.partition.options["alpha"] == 0.1
    assert skewed.experiment.data.partition.options["convention"] == "balanced"  # the file's, as on the command line


def test_names_follow_from_the_settings_alone(write):
    one = load_study(write(grid=GRID, seeds=2))
    again = load_study(write(name="other", grid={**GRID, "training.lr": [0.1]}, seeds=1), results_dir="elsewhere")
    assert set(again.study.runs) < set(one.study.runs)
    changed = load_study(write(grid=GRID, seeds=2), ["training.batch_size=3"])
    assert not set(changed.study.runs) & set(one.study.runs)


def test_blocks_share_the_runs_that_both_need(write):
    blocks = [{"training.lr": [0.1, 0.2]}, {"training.lr": [0.1], "training.batch_size": [8, 4]}]
    plan = load_study(write(grid=blocks, seeds=1))
    assert len(plan.study.cells) == 4
    assert len(plan.study.runs) == 3  # batches of eight are the default


def test_a_study_inherits_from_another_one(write):
    write(name="below", grid=GRID, seeds=4, question="why?", hypotheses={"h": CLAIM})
    study = load_study(write(_base_="below.yaml", seeds=2, model={"max_length": 32})).study
    assert (study.name, study.question, len(study.seeds), len(study.cells)) == ("trial", "why?", 2, 4)
    assert study.hypotheses[0].contrasts == (Contrast(1, 0), Contrast(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.3, 0.5])
def test_arms_are_paired_by_named_streams(write, rate):
    """The same seed gives the same split to every algorithm, and nested cohorts to every participation."""
    plan = load_study(
        write(
            grid={"federation.algorithm": ["fedavg", "scaffold"], "federation.participation_rate": [rate, 1.0]},
            seeds=2,
            data={"partition": "topic_skew", "max_samples": 100},
        )
    )
    exps = [plan.configs[cell.runs[1]].experiment for cell in plan.study.cells]
    deals = [[part.tolist() for part in deal_out(e, load_corpus(e)).deal.clients] for e in exps]
    assert all(d == deals[0] for d in deals)

    def cohort(e, t):
        fed = federation(
            LowRank(), clients=e.federation.total_clients, cohort_size=e.federation.cohort_size, seed=e.seed
        )
        return set(fed.cohort(t))

    for t in (1, 2):
        assert cohort(exps[0], t) == cohort(exps[2], t)
        assert cohort(exps[0], t) < cohort(exps[1], t)


def test_hypotheses_find_their_cells(write):
    more = {
        "one": {**CLAIM, "arm": {"federation.algorithm": "fedprox", "lr": 0.1}},
        "beyond": {**CLAIM, "arm": {"algorithm": "fedprox", "lr": 0.1}, "beyond": {"algorithm": "fedavg"}},
        "number": {**CLAIM, "than": 3.5},
    }
    study = load_study(write(grid=GRID, seeds=2, hypotheses={"all": CLAIM, **more})).study
    found = {h.name: h.contrasts for h in study.hypotheses}
    assert found == {
        "all": (Contrast(1, 0), Contrast(3, 2)),
        "one": (Contrast(3, 2),),
        "beyond": (Contrast(3, 2, c=1, d=0),),
        "number": (Contrast(1, constant=3.5), Contrast(3, constant=3.5)),
    }


def test_everything_wrong_is_told_at_once(write):
    wrong = {
        "axis": {**CLAIM, "arm": {"rank": 4}},
        "label": {**CLAIM, "arm": {"lr": 0.2}},
        "metric": {**CLAIM, "metric": "final.validation.los"},
        "key": {**CLAIM, "by_": 1},
        "expect": {**CLAIM, "expect": "bigger"},
        "by": {**CLAIM, "by": "much"},
        "same": {**CLAIM, "than": {"lr": 0.1}},
        "arm": {**CLAIM, "arm": "prox"},
    }
    told = refusal(write(grid=GRID, seeds=0, hypotheses=wrong, maps={"m": {"x": "lr", "y": "alpha"}}))
    for part in (
        "seeds must be a number of seeds", "axis: arm: 'rank' does not vary", "no lr '0.2'",
        "did you mean 'final.validation.loss'",
        "no key 'by_'; did you mean 'by'", "higher, lower, equal", "a number of at least 0", "leads to the very cell",
        "'arm' does not vary", "maps.m: y: 'alpha' does not vary",
    ):  # fmt: skip
        assert part in told, part
    assert len(told.splitlines()) == 10


def test_a_metric_that_the_runs_cannot_have_is_refused_before_the_first_of_them(write):
    scored = {**CLAIM, "metric": "final.validation.accuracy"}
    more = {"maps": {"m": {"x": "lr", "y": "algorithm", "metric": "personal.own.f1"}}}
    more |= {"best": {"b": {"axis": "lr", "metric": "final.topic/a.exact_match", "by": 0.1}}}
    told = refusal(write(grid=GRID, hypotheses={"h": scored}, **more))
    assert "hypotheses.h: metric: final.validation.accuracy is not measured with data.task_type=causal_lm" in told
    assert "maps.m: metric: personal.own.f1 is" in told
    assert "best.b: metric: final.topic/a.exact_match is" in told
    assert len(told.splitlines()) == 3
    fine = ["probes.accuracy", "final.backdoor.exact_match", "final.validation.perplexity"]
    load_study(write(grid=GRID, hypotheses={name: {**CLAIM, "metric": name} for name in fine}))


def test_a_hypothesis_about_losses_of_different_units_is_refused(write):
    grid = {"data.task_type": ["instruction", "preference"], "training.lr": [0.1, 0.2]}
    mixed = {**CLAIM, "arm": {"task_type": "instruction"}, "than": {"task_type": "preference"}}
    told = refusal(write(grid=grid, hypotheses={"h": mixed}))
    assert told.startswith(
        "trial.yaml: hypotheses.h: auc is in nats per token of a response, nats per pair, which cannot"
    )
    load_study(write(grid=grid, hypotheses={"h": {**CLAIM, "arm": {"lr": 0.1}, "than": {"lr": 0.2}}}))
    load_study(write(grid=grid, hypotheses={"h": {**mixed, "metric": "bytes_up"}}))


def test_a_hypothesis_needs_its_metric_in_every_cell_and_a_map_in_one(write):
    grid = {"data.task_type": ["causal_lm", "classification"], "training.lr": [0.1, 0.2]}
    one = {**CLAIM, "metric": "final.validation.f1", "arm": {"lr": 0.1}, "than": {"lr": 0.2}}
    labelled = {**one, "arm": {"lr": 0.1, "task_type": "classification"}}
    drawn = {"m": {"x": "lr", "y": "task_type", "metric": "final.validation.f1"}}
    load_study(write(grid=grid, hypotheses={"h": labelled}, maps=drawn))
    told = refusal(write(grid=grid, hypotheses={"h": one}, maps=drawn))
    assert told == (
        "trial.yaml: hypotheses.h: metric: final.validation.f1 is not measured with data.task_type=causal_lm, whose scores "
        "are loss"
    )


def test_bad_settings_of_cells_are_told_once_with_the_cell(write):
    grid = {"federation.algorithm": ["fedavg", "fedprx"], "training.lr": [0.1, -1.0]}
    told = refusal(write(grid=grid, training={"batch_sise": 3}))
    assert "did you mean 'fedprox'" in told
    assert "(in 2 of 4 cells: fedprx, 0.1, ...)" in told
    assert "(in 2 of 4 cells: fedavg, -1, ...)" in told
    assert told.count("batch_sise") == 1


@pytest.mark.parametrize(
    ("study", "says"),
    [
        ({"grid": {"training.lr": 0.1}}, "must be a list of values"),
        ({"grid": {"training.lr": [0.1, 0.1]}}, "0.1 twice"),
        ({"grid": {"training.lr": []}}, "must be a list of values"),
        ({"grid": ["training.lr"]}, "grid must be a mapping"),
        ({"arms": {"a": {}, "b": {"training.batch_size": 8}}}, "a and b are the same experiment"),
        ({"arms": ["a"]}, "arms must be names"),
        (
            {"grid": {"seed": [1, 5]}},
            "seed stands in the grid or the arms, but a study runs every cell with the same seeds",
        ),
        ({"arms": {"a": {"seed": 1}, "b": {"training.lr": 0.1}}}, "give them as a list, like `seeds: [1, 5]`"),
        ({"grid": {"logging": {"results_dir": ["a", "b"]}}}, "logging.results_dir stands in the grid or the arms"),
        ({"arms": {"a": 3}}, "arms.a must be a mapping"),
        ({"hypotheses": ["h"]}, "hypotheses must be names"),
        ({"grid": {"training.lr": [i / 7 for i in range(1, 2002)]}}, "at most 2000"),
    ],
)
def test_bad_shapes_are_explained(write, study, says):
    assert says in refusal(write(**study))


def test_a_setting_that_varies_cannot_be_given_and_others_can(write):
    file = write(grid=GRID, seeds=[1, 2])
    assert "training.lr varies in this study" in refusal(file, "federated.learning_rate=0.3")
    assert "federation.algorithm.name varies" in refusal(file, "federation.algorithm=fedavg")
    assert "lists its seeds" in refusal(file, "seed=3")
    plan = load_study(file, ["federation.num_rounds=2", "seeds=1"])
    assert {c.experiment.federation.num_rounds for c in plan.configs.values()} == {2}
    assert plan.study.seeds == (0,)


def test_a_study_reads_back_from_its_folder(write, tmp_path):
    file = write(
        grid=GRID, seeds=2, hypotheses={"h": CLAIM}, maps={"m": {"x": "lr", "y": "algorithm"}}, limits=["small"]
    )
    study = load_study(file).study
    study.save(tmp_path)
    assert read_study(tmp_path) == study
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(UserError, match="corrupt"):
        read_study(tmp_path)
    with pytest.raises(UserError, match="not the folder of a study"):
        read_study(tmp_path / "other")


@pytest.mark.long
@pytest.mark.parametrize("name", list_studies())
def test_every_shipped_study_is_valid(name):
    assert load_study(name).study.question


def test_the_mapping_of_an_arm_replaces_that_of_the_file_and_its_keys_may_have_dots(write):
    model = {"lora": {"rank_pattern": {"q_proj": 2}}}
    arms = {"plain": {}, "first": {"model.lora.rank_pattern": {"layers.0.q_proj": 4}}}
    plan = load_study(write(model=model, arms=arms, seeds=[3]))
    found = [plan.configs[cell.runs[0]].experiment.model.lora.rank_pattern for cell in plan.study.cells]
    assert found == [{"q_proj": 2}, {"layers.0.q_proj": 4}]


@pytest.mark.parametrize("by", [".nan", ".inf"])
def test_a_difference_that_matters_is_a_finite_number(write, by):
    """With NaN every hypothesis was refuted."""

    def refuse(**asked):
        file = write(grid=GRID, **asked)
        file.write_text(file.read_text().replace('"HERE"', by))
        return refusal(file)

    for asked in ({"hypotheses": {"h": CLAIM | {"by": "HERE"}}}, {"best": {"b": {"axis": "algorithm", "by": "HERE"}}}):
        assert "by is the smallest difference that matters" in refuse(**asked)
    assert "than must be an arm or a finite number" in refuse(hypotheses={"h": CLAIM | {"than": "HERE"}})


def test_an_axis_is_a_name(write):
    assert "must name an axis; it is [1]" in refusal(write(grid=GRID, maps={"m": {"x": "lr", "y": [1]}}))
    assert "must name an axis; it is ['lr']" in refusal(write(grid=GRID, best={"b": {"axis": ["lr"], "by": 0.1}}))


def test_blocks_that_call_other_settings_by_the_same_name_are_refused(write):
    """The second of them was dropped without a word."""
    blocks = [{"federation.algorithm": [{"name": "fedprox", "mu": mu}]} for mu in (0.01, 1.0)]
    told = refusal(write(grid=blocks, seeds=1))
    assert "two blocks of the grid have a cell fedprox with different settings (federation.algorithm.mu)" in told


def test_a_study_whose_name_makes_no_folder_asks_for_one(write):
    """Its folder was that of all results."""
    file = write(name="Ωμέγα", grid=GRID)
    assert "give experiment_name=NAME" in refusal(file)
    assert load_study(file, ["experiment_name=omega"]).folder.name == "omega"
