"""The step of training that is traced: the same calls in the same order as `train.step`, on a batch of one shape."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core import state as core
from featherweight.core.switch import switch_of
from featherweight.kernels import fuse
from featherweight.plan.live import Live
from featherweight.plan.traced import BACKWARD, BATCH, GRADIENTS, LOSS, OPTIMIZER
from featherweight.tasks import Task, token_loss
from featherweight.tasks.modes import inner
from featherweight.train.optimizers import optimizer, parameters
from featherweight.train.setup import recompute
from featherweight.train.step import HALVES

FOLLOWED = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of configs: something follows the head


def training_step(
    task: Task, batch: int, length: int, update: str, precision: str, checkpointing: bool
) -> Callable[[nn.Module, Live, dict[str, Any]], None]:
    """What `traced.step` runs: one step on `batch` rows of `length` tokens that all carry loss."""

    def run(model: nn.Module, live: Live, marks: dict[str, Any]) -> None:
        if checkpointing:
            recompute(model)
        fuse(model)
        model.train()
        switch = switch_of(model)
        trained = [(switch.attached[n].method, core.adapters(model, n)) for n in switch.active if switch.trains(n)]
        rule = optimizer(update, trained, None, 0.0)
        with live.tagged(OPTIMIZER):
            for p in parameters(rule):
                p.grad = torch.zeros_like(p)
            rule.step()
            rule.zero_grad(set_to_none=True)
        expect(model)
        with live.tagged(BATCH):
            rows = inputs(model, task, batch, length)
        handles = [
            p.register_post_accumulate_grad_hook(lambda p: live.retag(p.grad, GRADIENTS)) for p in parameters(rule)
        ]
        marks["resting"] = {k: float(v) for k, v in live.now.items() if v}
        live.restart()
        live.flops = 0
        live.tag = LOSS
        with arithmetic(precision):
            loss, _ = task.loss(model, rows)
        marks["forward"] = live.flops
        with live.tagged(BACKWARD):
            (loss / batch).backward()
        del loss
        for method, adapters in trained:
            if (penalty := method.penalty(adapters)) is not None:
                penalty.backward()
        nn.utils.clip_grad_norm_(parameters(rule), 1.0)
        with live.tagged(OPTIMIZER):
            rule.step()
        rule.zero_grad(set_to_none=True)
        for handle in handles:
            handle.remove()

    return run


def named(live: Live, p: Tensor) -> None:
    """Call a gradient one, once it is whole."""
    assert p.grad is not None
    live.retag(p.grad, GRADIENTS)


def arithmetic(precision: str) -> AbstractContextManager[Any]:
    half = HALVES.get(precision)
    return nullcontext() if half is None else torch.autocast("cpu", half)


def expect(model: nn.Module) -> None:
    """How the loss of tokens is taken, which training finds out by trying: known here from the config."""
    if getattr(inner(model), "get_output_embeddings", lambda: None)() is None:
        return
    config = getattr(model, "config", None)
    followed = any(getattr(config, name, None) for name in FOLLOWED)
    token_loss.ways[inner(model)] = "selected" if followed else "chunked"


def inputs(model: nn.Module, task: Task, batch: int, length: int) -> dict[str, Tensor]:
    """A batch of the task's shape."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    per_token = task.auto in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    return rows | {"labels": torch.zeros_like(ids) if per_token else torch.zeros(batch, dtype=torch.long)}
