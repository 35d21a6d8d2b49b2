"""The experiment as frozen, typed sections: what a YAML file may say. Unknown keys and wrong types are refused."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from fedfault.records import RIGHT
from fedfault.registry import list_switches, read_declarations

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]


METRICS = {  # data.task_type -> its metrics; the first is the default
    "classification": ("accuracy", "f1"),
    "regression": ("pearson", "spearman"),
    "preference": ("reward_accuracy", "reward_margin"),
}
SPOKEN = ("instruction", "preference")  # task types that learn from conversations


class Section(BaseModel):
    """Frozen; strict about types (an int may stand for a float); refuses unknown keys, NaN and infinities."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Component(BaseModel):
    """A registered component by name; its other keys are the keyword-only options of its builder."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str = Field(description="name of the component; its options stand beside it")

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Lora(Section):
    """LoRA: W + s B A on the target modules, where s is alpha / r_max (Hu et al., arXiv 2106.09685)."""

    r_max: Count = Field(default=8, description="rank of the factors")
    r_min: Count = Field(default=1, description="smallest rank that a scheduler may assign")
    alpha: Positive = Field(default=16.0, description="scale of the update, see scaling")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="on the input of the adapters, in training"
    )
    target_modules: list[str] | str | None = Field(
        default=None,
        description="names or their ends in a list, all-linear, or a regular expression of whole names; by default as PEFT "
        "has them",
    )
    scaling: Literal["alpha/r", "alpha/sqrt(r)"] = Field(
        default="alpha/r", description="of the update, where r is r_max; alpha/sqrt(r) is rsLoRA (arXiv 2312.03732)"
    )
    init: Literal["uniform", "gaussian", "pissa", "olora"] = Field(
        default="uniform",
        description="where factors start: A at random and B zero, or the largest components of W (PiSSA, arXiv 2404.02948) "
        "or the first of its QR (OLoRA, arXiv 2406.01775), of which the rest is then frozen in its place",
    )
    rank_pattern: dict[str, Count] = Field(
        default={}, description="ranks of some modules, {name or end or regular expression: rank}; r_max for the others"
    )
    alpha_pattern: dict[str, Positive] = Field(default={}, description="alpha of some modules alike")

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and re.fullmatch(r"[\w.]+", value) else value  # no pattern: a name

    @model_validator(mode="after")
    def _ordered(self) -> Lora:
        if self.r_min > self.r_max:
            raise ValueError(f"r_min {self.r_min} is above r_max {self.r_max}; ranks need 1 <= r_min <= r_max")
        return self


class Partial(Section):
    """What `trainable: partial` trains in full, a copy per client."""

    last_blocks: Annotated[int, Field(ge=0)] = Field(default=1, description="how many transformer blocks, from the top")
    modules: list[str] = Field(
        default=[], description="further modules by name or name ending, e.g. model.norm, lm_head"
    )


class Model(Section):
    """The backbone and what of it is trained."""

    name: str = Field(
        default="micro", description="micro (packaged), a Hub id (ORG/NAME or ORG/NAME@REVISION), or a folder"
    )
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="of the linear layers of the frozen backbone, by bitsandbytes"
    )
    trainable: Literal["lora", "partial"] = Field(default="lora", description="adapters, or some layers in full")
    lora: Lora = Lora()
    partial: Partial = Partial()
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=64, description="tokens in a block; of a conversation 512 by default"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the frozen backbone; auto: what this machine multiplies faster"
    )
    chat_template: str = Field(
        default="auto",
        description="of instruction data: auto (the tokenizer's own, else alpaca), alpaca, chatml, or a Jinja file",
    )

    @model_validator(mode="after")
    def _started(self) -> Model:
        if self.lora.init in ("pissa", "olora") and self.quantization != "none":
            raise ValueError(
                f"lora.init={self.lora.init} leaves the rest of every weight to the base, which quantization="
                f"{self.quantization} would round anew; use quantization=none or init=uniform"
            )
        return self


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

    @field_validator("label_names")
    @classmethod
    def _once(cls, names: list[str] | None) -> list[str] | None:
        if twice := sorted({name for name in names or [] if (names or []).count(name) > 1}):
            raise ValueError(f"has {', '.join(twice)} more than once; every class has one number")
        return names


class Asynchronous(Section):
    """A server that takes updates in as they come, on the simulated clock; null: rounds wait for their cohort."""

    name: Literal["fedbuff", "fedasync"] = Field(
        description="fedbuff: adds the mean change of a buffer of updates (arXiv 2106.06639); fedasync: mixes each model in "
        "(arXiv 1903.03934)"
    )
    buffer: Count | None = Field(
        default=None,
        description="updates that make a round; by default half of the clients at work for fedbuff, and 1 for fedasync",
    )
    rate: Fraction | None = Field(
        default=None, description="of the server: by default 1 for fedbuff, and 0.6 for fedasync, which mixes by it"
    )
    staleness: Literal["constant", "polynomial", "hinge"] = Field(
        default="polynomial",
        description="what an update counts whose model was s rounds old: 1, (1 + s)^-exponent, or 1 up to s = grace and "
        "then 1 / (slope (s - grace) + 1)",
    )
    exponent: Positive = Field(default=0.5, description="of polynomial")
    slope: Positive = Field(default=10.0, description="of hinge")
    grace: Annotated[int, Field(ge=0)] = Field(default=4, description="of hinge, in rounds")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fitting(self) -> Asynchronous:
        if self.name == "fedasync" and self.buffer not in (None, 1):
            raise ValueError(
                f"buffer={self.buffer} is fedbuff's: fedasync takes every update in by itself; leave it out"
            )
        unused = {"polynomial": ("slope", "grace"), "hinge": ("exponent",), "constant": ("exponent", "slope", "grace")}
        if given := [key for key in unused[self.staleness] if key in self.model_fields_set]:
            fields = type(self).model_fields
            if wrong := [key for key in given if getattr(self, key) != fields[key].default]:
                raise ValueError(f"{wrong[0]} is not used with staleness={self.staleness}; leave it out")
        return self

    def count_updates(self, at_work: int) -> int:
        """Updates that make a round when so many clients are at work at once."""
        return 1 if self.name == "fedasync" else self.buffer or max(1, at_work // 2)


class Federation(Section):
    """Who trains when, and what the server does."""

    total_clients: Count = Field(default=10, description="clients in the federation")
    clients_per_round: Count | None = Field(
        default=None, description="clients drawn in a round; with asynchronous those that are at work at once"
    )
    participation_rate: Fraction | None = Field(
        default=None, description="the same as a share; by default all take part"
    )
    num_rounds: Count = Field(default=12, description="rounds of the run")
    centralised: bool = Field(
        default=False,
        description="all training data in one place: one client has them, and as many steps as the clients of a round would",
    )
    asynchronous: Asynchronous | None = Field(
        default=None, description="by name: how updates are taken in as they come; null: rounds wait for their cohort"
    )
    algorithm: Component = Field(
        default=Component(name="fedavg"), description="by name; its options stand beside the name"
    )
    aggregation: Component = Field(default=Component(name="fedit"), description="how LoRA adapters become one")
    scheduler: Component = Field(default=Component(name="fixed"), description="which rank each client trains with")
    weighting: Literal["tokens", "samples", "uniform"] = Field(default="tokens", description="of clients in the mean")
    selection: Component = Field(
        default=Component(name="uniform"),
        description="who takes part: uniform, where the mean over rounds counts large clients for less than their weight; "
        "size, with the mean corrected for it, which is unbiased; or by what clients report, which is biased",
    )
    bad_updates: Literal["drop", "stop"] = Field(
        default="drop", description="what becomes of a client whose update is not finite, and of the run"
    )
    on_failure: Literal["continue", "stop", "rollback", "cluster"] = Field(
        default="continue",
        description="at an alarm: go on, stop, go back to the best round with a remedy, or, at one of drift or fairness, "
        "with a model for each cluster of clients",
    )

    @model_validator(mode="after")
    def _one_participation(self) -> Federation:
        if self.clients_per_round is not None and self.participation_rate is not None:
            raise ValueError("give clients_per_round or participation_rate, not both")
        if self.clients_per_round is not None and self.clients_per_round > self.total_clients:
            raise ValueError(
                f"clients_per_round {self.clients_per_round} is more than total_clients {self.total_clients}"
            )
        return self

    @property
    def cohort_size(self) -> int:
        """Clients that train in a round: at least one."""
        if self.clients_per_round is not None:
            return self.clients_per_round
        return max(1, round((self.participation_rate or 1.0) * self.total_clients))

    @property
    def updates_per_round(self) -> int:
        """Updates that the server takes in in a round, if all arrive."""
        return self.cohort_size if self.asynchronous is None else self.asynchronous.count_updates(self.cohort_size)


class Preference(Section):
    """How the better of two responses is learned: against the frozen base as the reference."""

    loss: Literal["dpo", "ipo"] = Field(
        default="dpo",
        description="of a pair: DPO (arXiv 2305.18290), or IPO (arXiv 2310.12036) per token of a response",
    )
    beta: Positive = Field(default=0.1, description="how much leaving the reference costs; for IPO its tau")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="share of pairs that DPO takes to be the wrong way round"
    )

    @model_validator(mode="after")
    def _smoothed(self) -> Preference:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing is DPO's, but loss=ipo; leave it out")
        return self


class Training(Section):
    """What each client does in a round."""

    local_epochs: Count | None = Field(
        default=None, description="passes over the client's own data in a round; 1 without local_steps"
    )
    local_steps: Count | None = Field(
        default=None, description="optimizer steps in a round, whatever the client's size"
    )
    batch_size: Count = Field(default=8, description="blocks in a step")
    lr: Positive = Field(default=5e-4, description="learning rate")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="of the clients; it starts anew every round"
    )
    max_grad_norm: Positive | None = Field(
        default=1.0, description="clips each client's gradient; null switches it off"
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the rounds over which lr rises linearly"
    )
    lr_schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        default="constant", description="how lr falls over the rounds, after the warm-up, to min_lr in the last one"
    )
    min_lr: Positive | None = Field(default=None, description="of the last round; needed where lr falls")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.0, description="of AdamW")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.999], description="of AdamW: how long it remembers gradients, and their squares"
    )
    lr_ratio: Positive = Field(
        default=1.0, description="learning rate of LoRA's B to that of A, which is lr (LoRA+, arXiv 2402.12354)"
    )
    gradient_accumulation: Count = Field(
        default=1, description="batches of batch_size that a step takes one after another; their gradients are one"
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep of every block only what enters it, and compute the rest again for the gradient: less memory, a "
        "third more time",
    )
    loss_on: Literal["completion", "all"] = Field(
        default="completion", description="of instruction data: the responses alone, or prompts too"
    )
    preference: Preference = Preference()
    clients_per_pass: Count | Literal["auto"] = Field(
        default="auto",
        description="clients trained in one batch, side by side; auto: what a CPU's cache or a GPU's free memory holds",
    )
    activation_cache_mb: Annotated[int, Field(ge=0)] = Field(
        default=1024, description="memory for activations below the first trainable layer; 0 switches the cache off"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        return self

    @model_validator(mode="after")
    def _falling_rate(self) -> Training:
        if self.lr_schedule != "constant" and self.min_lr is None:
            raise ValueError(f"lr_schedule={self.lr_schedule} needs min_lr, the learning rate of the last round")
        if self.lr_schedule == "constant" and self.min_lr is not None:
            raise ValueError(
                f"min_lr={self.min_lr:g} is the end of a schedule, but lr_schedule is constant; leave it out"
            )
        if self.min_lr is not None and self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr:g} is above lr={self.lr:g}, from which it falls")
        if self.optimizer == "sgd" and (self.weight_decay or self.betas != [0.9, 0.999]):
            raise ValueError("weight_decay and betas are AdamW's, but optimizer=sgd; leave them out")
        return self


class Tier(Section):
    """Hardware profiles, as a list or by name: clients 0, 1, ... have the first until its count is used up, then the next.

    As a mapping from names to the rest, other files and the command line can change them key by key.
    """

    name: str = Field(description="of the tier")
    count: Annotated[int, Field(ge=0)] = Field(description="clients that have it; all tiers add up to total_clients")
    compute_factor: Positive = Field(default=1.0, description="speed; with 0.5 training takes twice as long")
    memory_mb: Positive | None = Field(
        default=None, description="limits the rank of its clients; by default there is no limit"
    )
    bandwidth_up_mbps: Positive | None = Field(
        default=None, description="megabits a second to the server; by default uploads take no time"
    )
    bandwidth_down_mbps: Positive | None = Field(
        default=None, description="from the server; by default downloads take no time"
    )
    quantization: Literal["none", "8bit", "4bit"] | None = Field(
        default=None, description="of the backbone that its clients train on; by default model.quantization"
    )


class Privacy(Section):
    """Differential privacy of clients or of their examples, by noise; off without a unit. docs/privacy.md."""

    unit: Literal["client", "example"] | None = Field(
        default=None,
        description="what the models are to hide: whole clients, or single examples of them; null: nothing",
    )
    epsilon: Positive | None = Field(default=None, description="of all rounds together; the noise is solved for")
    noise_multiplier: Annotated[float, Field(ge=0.3, le=1000)] | None = Field(
        default=None, description="standard deviation of the noise over clip, in the place of epsilon"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="probability with which epsilon may not hold; below one over the number of units"
    )
    clip: Positive = Field(
        default=1.0, description="largest norm of what one unit contributes: a client's change, an example's gradient"
    )
    adaptive_clip: Fraction | None = Field(
        default=None, description="share of the clients whose changes should be within the clip, which follows it"
    )
    sampling: Literal["poisson", "fixed"] = Field(
        default="poisson",
        description="of clients for a round, or of examples for a step: each by itself, or always as many",
    )
    canaries: Annotated[int, Field(ge=0)] = Field(
        default=200, description="made-up clients, by which epsilon is bounded from below; 0: no audit"
    )
    secret: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="what the noise follows from; by default of the operating system, and kept in the manifest alone",
    )

    @model_validator(mode="after")
    def _about_a_unit(self) -> Privacy:
        given = self.model_fields_set - {"unit", "secret"}
        if self.unit is None:
            if wrong := sorted(name for name in given if getattr(self, name) != type(self).model_fields[name].default):
                raise ValueError(f"{wrong[0]} is set, but unit is not: give unit=client or unit=example")
            return self
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give epsilon or noise_multiplier, one of them")
        if self.delta is None:
            raise ValueError("needs delta, below one over the number of clients or examples that are to be hidden")
        if self.unit == "example" and self.adaptive_clip is not None:
            raise ValueError("adaptive_clip is of unit=client; leave it out")
        return self


class Deadline(Section):
    """When a round's updates are due, in simulated seconds, and what becomes of clients that are late."""

    enabled: bool = Field(default=True, description="false switches it off, whatever else it says")
    seconds: Positive | None = Field(
        default=None, description="after the start of a round, communication included; null: none"
    )
    straggler_policy: Literal["drop", "wait", "use_partial"] = Field(
        default="drop",
        description="drop: nothing of a late client counts; wait: for all; use_partial: it stops in time to send the steps "
        "that it has done",
    )

    @property
    def limit(self) -> float | None:
        """Seconds, or None for no deadline."""
        return self.seconds if self.enabled else None


class AttackSettings(Component):
    """What hostile clients do, one after another: `attacks: [{name: sign_flip, by: 2}]`; none by default."""

    by: Count | list[Annotated[int, Field(ge=0)]] = Field(
        default=1, description="how many clients, drawn by the seed, the same ones for every attack; or their ids"
    )
    from_round: Count = Field(default=1, description="first round in which they attack")


class Clock(Section):
    """Where the simulated seconds of training come from. `clock: measured` is short for `clock: {mode: measured}`."""

    mode: Literal["modelled", "measured"] = Field(
        default="modelled",
        description="modelled: floating-point operations over `flops`, the same in every run; measured: what a token took "
        "in the last round here",
    )
    flops: Positive = Field(
        default=1e11, description="operations a second at compute_factor 1 when modelled: about two cores of a laptop"
    )
    trace: str | None = Field(
        default=None,
        description="CSV file of round, client, available, bandwidth: who comes and goes, and how fast; or diurnal: made-up "
        "days and nights, most clients being there at midnight, when the run begins",
    )
    day: Positive = Field(default=86400.0, description="simulated seconds of a day of the trace diurnal")


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
    general_blocks: Count = Field(default=128, description="blocks of the general text")
    generate: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="of instruction data: prompts of each topic that models answer, and a quarter as many of each client; "
        "0: none",
    )
    max_new_tokens: Count = Field(default=32, description="tokens of an answer at most")
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
        if not e.generate and (
            e.choices or e.answer_pattern is not None or (spoken and getattr(self.metrics, "generation", False))
        ):
            what = "metrics.generation" if e.answer_pattern is None else "evaluation.answer_pattern"
            what = "evaluation.choices" if e.choices else what
            raise ValueError(f"{what} is about answers, and none are made: set evaluation.generate=N, or leave it out")
        return self

    @model_validator(mode="after")
    def _known_score(self) -> Experiment:
        task = self.data.task_type
        answers = RIGHT if self.evaluation.generate else ()
        known = ("loss", *METRICS.get(task, ()), *answers)
        if wrong := [name for name in self.evaluation.stop_at or {} if name not in known]:
            hint = (
                "; set evaluation.generate=N, so that answers are scored" if wrong[0] in RIGHT and not answers else ""
            )
            raise ValueError(
                f"evaluation.stop_at names the score {wrong[0]}, which this run does not have (data.task_type={task}); it "
                f"has {', '.join(known)}{hint}"
            )
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
