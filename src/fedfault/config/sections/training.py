"""`training`: what a client does in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedfault.config.sections.base import Count, Positive, Section, Single


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


class Personalise(Section):
    """After the last round every client trains its own model on, on its own data, and is scored on what it held back."""

    steps: Count = Field(description="optimizer steps of every client, in batches of training.batch_size")
    lr: Annotated[Positive, Single] | None = Field(default=None, description="learning rate; by default training.lr")
    alone: bool = Field(
        default=False,
        description="also a model that each client trains alone from the start, in as many steps as in all of its rounds "
        "and these",
    )


class Training(Section):
    """What each client does in a round."""

    local_epochs: Count | None = Field(
        default=None, description="passes over the client's own data in a round; 1 without local_steps"
    )
    local_steps: Count | None = Field(
        default=None, description="optimizer steps in a round, whatever the client's size"
    )
    batch_size: Count = Field(default=8, description="blocks in a step")
    lr: Annotated[Positive, Single] = Field(default=5e-4, description="learning rate")
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
    weight_decay: Annotated[float, Field(ge=0), Single] = Field(default=0.0, description="of AdamW")
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.999], description="of AdamW: how long it remembers gradients, and their squares"
    )
    lr_ratio: Annotated[Positive, Single] = Field(
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
