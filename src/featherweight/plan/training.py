"""The step of training that is traced: the same calls in the same order as `train.step`, on a batch of one shape."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core import state as core
from featherweight.core.switch import switch_of
from featherweight.kernels import fuse
from featherweight.plan.live import Live
from featherweight.plan.traced import BACKWARD, BATCH, GRADIENTS, LOSS, OPTIMIZER, Job
from featherweight.tasks import Task, token_loss
from featherweight.tasks.modes import inner
from featherweight.train.optimizers import optimizer, parameters
from featherweight.train.settings import Settings
from featherweight.train.setup import recompute
from featherweight.train.step import HALVES

FOLLOWED = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # of configs: something follows the head


def training_step(task: Task, chosen: Settings, batch: Mapping[str, Tensor]) -> Job:
    """One step on a batch."""

    def run(model: nn.Module, live: Live, marks: dict[str, Any]) -> None:
        if chosen.checkpointing:
            recompute(model)
        fuse(model)
        model.train()
        trained, rule = readied(model, chosen, live)
        rows = placed(batch, live)
        marks["resting"] = {k: float(v) for k, v in live.now.items() if v}
        live.restart()
        live.flops, live.tag = 0, LOSS
        with arithmetic(chosen.precision):
            loss, _ = task.loss(model, rows)
        marks["forward"] = live.flops
        with live.tagged(BACKWARD), naming(parameters(rule), live):
            (loss / chosen.batch).backward()
            del loss
            for method, adapters in trained:
                if (penalty := method.penalty(adapters)) is not None:
                    penalty.backward()
        nn.utils.clip_grad_norm_(parameters(rule), 1.0)
        with live.tagged(OPTIMIZER):
            rule.step()
        rule.zero_grad(set_to_none=True)

    return run


def readied(model: nn.Module, chosen: Settings, live: Live) -> tuple[list[Any], torch.optim.Optimizer]:
    """(methods with their adapters, the optimizer): as between two steps, its states made and no gradient there."""
    switch = switch_of(model)
    trained = [(switch.attached[n].method, core.adapters(model, n)) for n in switch.active if switch.trains(n)]
    rule = optimizer(chosen.optimizer, trained, None, 0.0)
    with live.tagged(OPTIMIZER):
        for p in parameters(rule):
            p.grad = torch.zeros_like(p)
        rule.step()
        rule.zero_grad(set_to_none=True)
    if chosen.paged:  # their place is elsewhere
        live.forget(t for state in rule.state.values() for t in state.values() if isinstance(t, Tensor))
    expect(model)
    return trained, rule


@contextmanager
def naming(trained: list[nn.Parameter], live: Live) -> Iterator[None]:
    """Call each gradient one, once it is whole."""

    def name(p: Tensor) -> None:
        assert p.grad is not None
        live.retag(p.grad, GRADIENTS)

    handles = [p.register_post_accumulate_grad_hook(name) for p in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def placed(batch: Mapping[str, Tensor], live: Live) -> dict[str, Tensor]:
    """A batch of its own, counted."""
    with live.tagged(BATCH):
        return {name: tensor.clone() for name, tensor in batch.items()}
