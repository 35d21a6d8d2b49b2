"""`data`: the corpus, the kind of task, and how texts are dealt out to clients."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fedfault.config.sections.base import Component, Count, Section

METRICS = {  # data.task_type -> its metrics; the first is the default
    "classification": ("accuracy", "f1"),
    "regression": ("pearson", "spearman"),
    "preference": ("reward_accuracy", "reward_margin"),
}

RANGES = {  # score -> the least and the largest value; of all others 0 and 1
    "loss": (0.0, math.inf),
    "pearson": (-1.0, 1.0),
    "spearman": (-1.0, 1.0),
    "reward_margin": (-math.inf, math.inf),
}

SPOKEN = ("instruction", "preference")  # task types that learn from conversations


class Data(Section):
    """The corpus and how clients share it."""

    dataset: Component = Field(
        default=Component(name="registers"), description="the corpus by name; its options stand beside the name"
    )
    path: str | None = Field(
        default=None,
        description="folder or file to read instead of the corpus's own place; on the Hub: "
        "`hf://datasets/ORG/NAME[@REVISION][/FOLDER or FILE]`",
    )
    task_type: Literal["causal_lm", "instruction", "preference", "classification", "regression"] = Field(
        default="causal_lm",
        description="what the model learns: the next token, the responses of conversations, which of two responses is the "
        "better one, a text's topic as its label, or a text's score",
    )
    num_labels: Count | None = Field(
        default=None, description="classes that the data must have; by default as many as there are"
    )
    label_names: list[str] | None = Field(
        default=None,
        min_length=2,
        description="the classes in their order, of which the data may have some; by default all topics of the data",
    )
    text_columns: list[str] | None = Field(
        default=None, description="columns read as text; by default the corpus decides"
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="columns that hold conversations, such as {prompt: query, completion: reply}; by default by their names",
    )
    topic_column: str | None = Field(default=None, description="column read as topic; by default the corpus decides")
    group_column: str | None = Field(default=None, description="column read as group, for the natural partition")
    max_samples: Count | None = Field(default=None, description="documents used for training, drawn at random")
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.1, description="share of each client's documents it is tested on"
    )
    partition: Component = Field(default=Component(name="iid"), description="how documents are dealt out to clients")
    secret_copies: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="how often a made-up secret of its own is planted in each client's running text; the probe exposure "
        "says how well models know them; 0: never",
    )

    @field_validator("label_names")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if twice := sorted({name for name in names or [] if (names or []).count(name) > 1}):
            raise ValueError(f"has {', '.join(twice)} more than once; every class has one number")
        return names
