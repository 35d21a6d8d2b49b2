"""The experiment as frozen, typed sections: what a YAML file may say. Unknown keys and wrong types are refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fedfault.config.sections.base import Count, Positive, Section
from fedfault.config.sections.data import METRICS, RANGES, SPOKEN, Data
from fedfault.config.sections.evaluation import Detectors, Evaluation, Metrics
from fedfault.config.sections.federation import Federation
from fedfault.config.sections.hardware import Clock, Deadline, Tier
from fedfault.config.sections.model import Model
from fedfault.config.sections.training import Personalise, Preference, Training
from fedfault.config.sections.trust import AttackSettings, Privacy
from fedfault.records import RIGHT


class Flower(Section):
    """`fedfault flower`: what the server of a federation of real nodes puts up with."""

    min_clients: Count = Field(default=1, description="usable updates without which a round changes nothing")
    deadline: Positive = Field(default=3600.0, description="seconds that a round waits for the nodes' answers")
    join_seconds: Positive = Field(default=600.0, description="seconds that the start waits for all clients to join")
    max_update_norm: Positive | None = Field(
        default=None, description="norm of the change of an adapter beyond which a client's update is left out"
    )


class Logging(Section):
    """Where results go."""

    results_dir: str = Field(default="results", description="the run goes to its folder experiment_name")
    keep_checkpoints: Count | Literal["all"] = Field(
        default=20,
        description="newest checkpoints that are kept, beside the best round's; `fedfault fork` starts from any of them",
    )
    trackers: list[Literal["trackio", "tensorboard", "wandb", "mlflow"]] = Field(
        default=[], description="experiment trackers that are told every round"
    )


class Experiment(Section):
    """The whole experiment."""

    experiment_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = Field(
        default="run", description="names the folder of the results"
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="every random choice of the run follows from it")
    device: str = Field(default="auto", description="auto (cuda, mps, cpu), or a torch device")
    plugins: list[str] = Field(
        default=[],
        description="files and modules with components of your own (docs/adding.md); FILE#HASH, as in the config.yaml of a "
        "run, takes only that very source",
    )
    model: Model = Model()
    data: Data = Data()
    federation: Federation = Federation()
    training: Training = Training()
    personalise: Personalise | None = Field(
        default=None,
        description="{steps, lr, alone}: every client trains its own model on after the last round; null: none does",
    )
    tiers: list[Tier] = Field(default=[], description="hardware profiles; by default all clients are alike")
    attacks: list[AttackSettings] = Field(default=[], description="what hostile clients do; by default there are none")
    deadline: Deadline = Deadline()
    clock: Clock = Clock()
    privacy: Privacy = Privacy()
    evaluation: Evaluation = Evaluation()
    metrics: Metrics = Field(default_factory=Metrics)
    detectors: Detectors = Detectors()
    flower: Flower = Flower()
    logging: Logging = Logging()

    @field_validator("tiers", mode="before")
    @classmethod
    def _tiers_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return [{"name": name, **rest} if isinstance(rest, dict) else rest for name, rest in value.items()]

    @field_validator("clock", mode="before")
    @classmethod
    def _mode_alone(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _two_rates(self) -> Experiment:
        if self.training.lr_ratio != 1 and self.model.trainable != "lora":
            raise ValueError(
                f"training.lr_ratio={self.training.lr_ratio:g} is about LoRA's factors, but model.trainable="
                f"{self.model.trainable} has none; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _fitting_metric(self) -> Experiment:
        task, metric = self.data.task_type, self.evaluation.metric
        if task in ("causal_lm", *SPOKEN):
            scored = () if task in METRICS else ("evaluation.metric", "evaluation.target_score")
            for key in ("data.num_labels", "data.label_names", *scored):
                section, _, name = key.partition(".")
                if getattr(getattr(self, section), name) is not None:
                    raise ValueError(
                        f"{key} is about labels, but data.task_type={task} has none; set "
                        "data.task_type=classification (or regression), or leave it out"
                    )
            if metric is not None:
                raise ValueError(
                    f"evaluation.metric={metric} is about labels, but data.task_type={task} has none; leave it out"
                )
        elif task == "regression" and self.data.label_names:
            raise ValueError("data.label_names names classes, but data.task_type=regression has scores; leave it out")
        elif metric is not None and metric not in METRICS[task]:
            raise ValueError(
                f"evaluation.metric={metric} does not fit data.task_type={task}, which is measured by "
                f"{' and '.join(METRICS[task])}"
            )
        return self

    @model_validator(mode="after")
    def _about_answers(self) -> Experiment:
        e, spoken = self.evaluation, self.data.task_type == "instruction"
        about = {
            "evaluation.choices": e.choices,
            "evaluation.answer_pattern": e.answer_pattern is not None,
            "evaluation.temperature": e.temperature,
            "metrics.generation": spoken and getattr(self.metrics, "generation", False),
        }
        if not e.generate and (what := next((key for key, value in about.items() if value), None)):
            raise ValueError(f"{what} is about answers, and none are made: set evaluation.generate=N, or leave it out")
        if e.top_p < 1 and not e.temperature:
            raise ValueError(
                f"evaluation.top_p={e.top_p:g} is about answers that are drawn; with evaluation.temperature=0 they are the "
                "likeliest tokens: set a temperature above 0, such as 1, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _known_score(self) -> Experiment:
        generate = self.evaluation.generate
        if wrong := [name for name in self.evaluation.stop_at or {} if name not in self.scores]:
            hint = (
                "; set evaluation.generate=N, so that answers are scored" if wrong[0] in RIGHT and not generate else ""
            )
            raise ValueError(
                f"evaluation.stop_at names the score {wrong[0]}, which this run does not have "
                f"(data.task_type={self.data.task_type}); it has {', '.join(self.scores)}{hint}"
            )
        return self

    @model_validator(mode="after")
    def _reachable_score(self) -> Experiment:
        e = self.evaluation
        aims = [
            (f"evaluation.stop_at={{{score}: {value:g}}}", score, value) for score, value in (e.stop_at or {}).items()
        ]
        if e.target_score is not None and self.metric is not None:
            aims.append((f"evaluation.target_score={e.target_score:g}", self.metric, e.target_score))
        for said, score, value in aims:
            low, high = RANGES.get(score, (0.0, 1.0))
            if not low <= value <= high:
                between = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} at least"
                percent = f"; {value:g} % are {value / 100:g}" if high < value <= 100 else ""
                raise ValueError(f"{said} is reached never or always: {score} is {between}{percent}")
        return self

    @model_validator(mode="after")
    def _about_conversations(self) -> Experiment:
        task = self.data.task_type
        if task != "instruction":
            usual = {"training.loss_on": "completion", "evaluation.generate": 0}
            usual |= {} if task in SPOKEN else {"model.chat_template": "auto"}
            for key, value in usual.items():
                section, _, name = key.partition(".")
                if (found := getattr(getattr(self, section), name)) != value:
                    raise ValueError(
                        f"{key}={found} is about conversations, but data.task_type={task} has none; leave it out, or set "
                        "data.task_type=instruction"
                        if task not in SPOKEN
                        else f"{key}={found} is about responses that are imitated, but data.task_type={task} compares them; "
                        "leave it out"
                    )
        if task != "preference" and self.training.preference != Preference():
            raise ValueError(f"training.preference is for data.task_type=preference, not {task}; leave it out")
        return self

    def describe(self) -> str:
        """Describe in one line what is trained, on what, by whom and for how long.

        >>> Experiment().describe()
        '12 rounds of fedavg, 10 of 10 clients in each; micro on registers, split by iid; seed 0'
        """
        federation, data = self.federation, self.data
        aggregation = federation.aggregation.name
        algorithm = federation.algorithm.name + ("" if aggregation == "fedit" else f" with {aggregation}")
        who = f"{federation.cohort_size} of {federation.total_clients} clients in each"
        if federation.asynchronous is not None:
            who = (
                f"{federation.updates_per_round} updates in each of {federation.cohort_size} of {federation.total_clients} "
                f"clients at work ({federation.asynchronous.name})"
            )
        what = "" if data.task_type == "causal_lm" else f" for {data.task_type}"
        return (
            f"{federation.num_rounds} rounds of {algorithm}, {'all data in one place' if federation.centralised else who}; "
            f"{self.model.name} on {data.dataset.name}{what}, split by {data.partition.name}; seed {self.seed}"
        )

    @property
    def metric(self) -> str | None:
        """The metric that is shown first; None for language models, which have their loss."""
        return self.evaluation.metric or next(iter(METRICS.get(self.data.task_type, ())), None)

    @property
    def scores(self) -> tuple[str, ...]:
        """What a model of this task is scored by: its loss, metrics of labels, and how right its answers are."""
        return ("loss", *METRICS.get(self.data.task_type, ()), *(RIGHT if self.evaluation.generate else ()))
