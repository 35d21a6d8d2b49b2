"""`evaluation`, `metrics` and `detectors`: what is measured and judged."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model, field_validator, model_validator

from fedfault.config.sections.base import Count, Section
from fedfault.registry import list_switches, read_declarations


class Evaluation(Section):
    """What the global model is measured on after aggregation."""

    every: Count = Field(default=1, description="rounds between evaluations; the last round is always evaluated")
    max_blocks: Count = Field(
        default=64,
        description="blocks per topic, and per client for its own held-out set at most a quarter of that; of labelled "
        "examples as many as have the tokens of so many blocks",
    )
    general: str = Field(
        default="base_samples", description="base_samples, wikitext, a folder or file of text, or none"
    )
    general_blocks: Count = Field(
        default=128,
        description="blocks of the general text; beside conversations by default as many as have 8,192 tokens",
    )
    generate: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="of instruction data: prompts of each topic that models answer, and a quarter as many of each client; "
        "0: none",
    )
    max_new_tokens: Count = Field(default=32, description="tokens of an answer at most")
    temperature: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="of answers; 0: the likeliest tokens, above: drawn ones, by the same draws in every round",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="of answers that are drawn: tokens outside this much probability never are"
    )
    answer_pattern: str | None = Field(
        default=None,
        description="regular expression; exact match compares the last thing that it finds, or its first group, such as "
        "'#### (.*)'; by default the whole answer",
    )
    choices: list[list[str]] = Field(
        default=[],
        description="groups of possible answers, such as [[positive, negative], [yes, no]]: of a question whose true answer "
        "is in one, the likeliest of the group is the model's choice",
    )
    metric: Literal["accuracy", "f1", "pearson", "spearman"] | None = Field(
        default=None, description="of labels: what is shown first; by default accuracy, or pearson for scores"
    )
    target_score: float | None = Field(
        default=None, description="value of the metric whose first round is written down as time to target"
    )

    stop_at: Annotated[dict[str, float], Field(min_length=1, max_length=1)] | None = Field(
        default=None,
        description="{score: value}: the run ends after the first round whose validation set reaches it; the score is loss, "
        "or a metric of labels or of answers, such as {accuracy: 0.8}",
    )
    patience: Count | None = Field(
        default=None,
        description="evaluations in a row that are not better than the best so far, after which the run ends; of the score "
        "of stop_at, by default the validation loss",
    )

    @field_validator("choices")
    @classmethod
    def _once(cls, groups: list[list[str]]) -> list[list[str]]:
        every = [" ".join(answer.split()) for group in groups for answer in group]
        if twice := sorted({answer for answer in every if every.count(answer) > 1}):
            raise ValueError(f"has {twice[0]!r} more than once; an answer is in one group")
        if any(len(group) < 2 for group in groups) or "" in every:
            raise ValueError("needs two answers in each group at least, of which none is empty")
        return groups

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as e:
            raise ValueError(f"is not a regular expression: {e}") from e
        return pattern


def _switches() -> dict[str, Any]:
    """A switch for every probe of the folder, as fields of pydantic's `create_model`."""
    probes = sorted(read_declarations("probe").items(), key=lambda probe: probe[1].facts.get("order", math.inf))
    return {
        name: (bool, Field(default=own.facts.get("on", True), description=own.summary.removesuffix(".")))
        for name, own in probes
    }


_Switches: Any = create_model("_Switches", __base__=Section, **_switches())


class Metrics(_Switches):  # type: ignore[misc] # its fields are the probes, which the folder says
    """What is measured of every round beside the losses; each can be switched off. `fedfault list probe` says what it is."""

    model_config = ConfigDict(extra="allow")  # the switches of plug-ins, which no class can have

    @model_validator(mode="before")
    @classmethod
    def _switch_plugins(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        more = list_switches()
        _Switches.model_validate({key: switch for key, switch in value.items() if key not in more})
        if wrong := [key for key in more if not isinstance(value.get(key, True), bool)]:
            raise ValueError(f"{wrong[0]} must be true or false; it is {value[wrong[0]]!r:.60}")
        return {**more, **value}


class Detectors(Section):
    """What watches the run for failures."""

    calibration: str = Field(
        default="packaged",
        description="where thresholds come from: packaged, none, a file that `fedfault calibrate` wrote, or auto: what is "
        "packaged or was made on this machine for the same model, data, algorithm and schedule, and if there is none, "
        "19 IID control runs that are trained before the run and kept",
    )
