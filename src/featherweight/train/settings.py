"""Every setting of a run: one field, spelt the same in Python, in run.toml and as a flag."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featherweight.core.errors import InputError, Problem, did_you_mean


class Settings(BaseModel):
    """What a run does, beside its model, data, task and method. Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: float | None = Field(None, gt=0, description="Passes over the training rows (3 unless steps is given).")
    steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of epochs.")
    lr: float | None = Field(None, gt=0, description="Peak learning rate (default: the method's own).")
    head_lr: float | None = Field(None, gt=0, description="Peak rate of a task's head that trains (default: lr).")
    batch: int = Field(16, ge=1, description="Rows per optimizer step, over all ranks and micro-batches.")
    length: int | None = Field(None, ge=2, description="Most tokens per row; longer rows are cut (default: what the model takes).")  # fmt: skip  # noqa: E501
    seed: int = Field(0, ge=0, description="Order of the data and all noise derive from it.")
    accumulate: int = Field(1, ge=1, description="Micro-batches that each rank splits its share of a batch into.")
    clip: float | None = Field(1.0, gt=0, description="Largest norm of the whole gradient; none turns clipping off.")
    optimizer: Literal["adamw", "adafactor", "sgd"] = Field("adamw", description="The update rule.")
    paged: bool = Field(False, description="Optimizer states on disk (on a GPU: in the CPU's memory), equal updates.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="How the rate falls after warm-up.")
    warmup: float = Field(0.06, ge=0, description="Warm-up: below 1 a share of the run, from 1 on a number of steps.")
    decay: float = Field(0.0, ge=0, description="Weight decay of matrices (vectors, biases and norms have none).")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field("fp32", description="Arithmetic of the forward and backward pass.")  # fmt: skip  # noqa: E501
    checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    packing: bool = Field(False, description="Fill rows with several short examples (causal language models).")
    buckets: bool = Field(True, description="Cut each batch by length: less padding, the same gradient.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints (default: one epoch).")
    eval_every: int | None = Field(None, ge=1, description="Steps between evaluations (default: one epoch).")
    keep: int = Field(2, ge=1, description="Newest checkpoints kept, beside the best one.")
    patience: int | None = Field(None, ge=1, description="Stop after this many evaluations without a new best.")
    best: bool = Field(True, description="End with the best evaluated weights rather than the last ones.")
    resume: bool = Field(False, description="Go on from the newest good checkpoint of the output folder.")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where to run.")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: torch's own choice).")
    log: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl (the first and last have one too).")
    tensorboard: bool = Field(False, description="Write TensorBoard event files too (needs the extra 'trackers').")

    @model_validator(mode="after")
    def one_duration(self) -> "Settings":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


# What may differ between a run and its resumption: where it is computed and how often it is saved, not what.
FREE = frozenset({"resume", "keep", "checkpoint_every", "device", "threads", "tensorboard", "accumulate", "paged"})


def settings(values: Mapping[str, Any], where: str = "") -> Settings:
    """Settings from keywords, flags or a file's keys; everything wrong is one InputError.

    `where` is put before each key (`run.toml`). Raises InputError with a did-you-mean for each unknown key.
    """
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(*(problem(dict(e), where) for e in error.errors(include_url=False))) from None


def problem(error: Mapping[str, Any], where: str) -> Problem:
    """One of pydantic's errors in this project's words."""
    key = ".".join(map(str, error["loc"]))
    place = f"{where}:{key}" if where and key else key or where
    if error["type"] == "extra_forbidden":
        return Problem("unknown setting", place, got=repr(error["input"]), fix=did_you_mean(key, Settings.model_fields))
    if error["type"] == "value_error":
        return Problem(str(error["ctx"]["error"]), place)
    return Problem("wrong value", place, error["msg"].removeprefix("Input should be "), repr(error["input"]))
