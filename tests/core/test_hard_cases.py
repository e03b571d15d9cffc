"""What else was found hard: tables of positions by row, recomputed vision models, idle adapters in DDP."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, logits, tiny

import featherweight as fw


@pytest.mark.parametrize(
    ("arch", "table"), [("gpt2", "wpe"), ("bert", "position_embeddings"), ("opt", "embed_positions")]
)
def test_rows_of_a_table_that_is_looked_up_once_for_all_rows(arch: str, table: str) -> None:
    """Positions have batch 1: each row gets its own adapter's all the same, forward and backward."""
    model = tiny(arch)
    for name, rank in (("two", 2), ("three", 3)):
        fw.attach(model, fw.LoRA(rank=rank, targets=table), name, head=False)
        disturb(model, scale=0.3, seed=rank)
    batch, rows = inputs(arch, rows=3), ["two", None, "three"]
    fw.switch(model, rows=rows, train=True)
    together = model(**batch).logits
    together.square().sum().backward()
    got = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, row in enumerate(rows):
        fw.switch(model, row, **({} if row is None else {"train": True}))
        one = model(**{k: v[i : i + 1] for k, v in batch.items()}).logits
        torch.testing.assert_close(together[i], one[0], atol=1e-5, rtol=1e-5)
        if row is not None:
            one.square().sum().backward()
    assert len(got) == 4
    for key, p in model.named_parameters():
        if key in got:
            torch.testing.assert_close(got[key], p.grad, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize(("arch", "table"), [("bart", "embed_positions"), ("opt", "embed_positions"), ("gpt2", "wpe")])
def test_tables_of_positions_that_are_called_in_ways_of_their_own(arch: str, table: str) -> None:
    """With an offset, and by keyword: what runs is what is merged."""
    model = tiny(arch)
    before = logits(model, inputs(arch))
    fw.attach(model, fw.LoRA(rank=2, targets=table), head=False)
    disturb(model, scale=0.3)
    attached = logits(model, inputs(arch))
    assert not torch.allclose(attached, before, atol=1e-3)
    torch.testing.assert_close(logits(fw.merge(model), inputs(arch)), attached, atol=1e-5, rtol=1e-5)


def test_a_vision_model_is_recomputed_reentrantly_with_a_hook_on_its_patches() -> None:
    """Pixels require no grad, so that the graph would be cut: transformers' hook goes on the patch embedding, asked for
    or not, as the model is known to hold adapters; gradients are those without recomputing.
    """
    grads: list[dict[str, Any]] = []
    for recompute, hook in ((False, False), (True, True), (True, False)):
        model = tiny("vit")
        torch.manual_seed(0)
        fw.attach(model, fw.LoRA(rank=2, targets="attention"), head=False)
        disturb(model.train())
        if recompute:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        if hook:
            model.enable_input_require_grads()
        model(**inputs("vit")).logits.square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    for key, g in grads[0].items():
        assert g.abs().max() > 0
        for other in grads[1:]:
            torch.testing.assert_close(other[key], g, atol=1e-6, rtol=1e-5)


def test_distributed_training_takes_no_notice_of_adapters_that_are_off(tmp_path: Path) -> None:
    """It raises in the second step where a parameter that requires grad had none in the first."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = tiny("llama")
        fw.attach(model, fw.LoRA(rank=2), "idle")
        fw.attach(model, fw.LoRA(rank=3), "busy")
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            wrapped(**inputs("llama")).logits.square().sum().backward()
        assert {k.split("adapters.")[1].split(".")[0] for k, p in model.named_parameters() if p.grad is not None} == {
            "busy"
        }
    finally:
        dist.destroy_process_group()


def test_logits_are_unmoved_by_what_is_off() -> None:
    """A stack of three, all but one switched off, is that one."""
    model = tiny("llama")
    for name in ("a", "b", "c"):
        fw.attach(model, fw.LoRA(rank=2), name, stack=True)
    disturb(model)
    fw.switch(model, "b")
    alone = logits(model, inputs("llama"))
    fw.detach(model, "a")
    fw.detach(model, "c")
    assert torch.equal(logits(model, inputs("llama")), alone)
