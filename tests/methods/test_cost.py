"""What an adapter costs in the forward pass, counted: bottlenecks lengthen the path, prompts and prefixes use up
positions, what is merged costs nothing."""

from typing import Any

import pytest
import torch
from support.models import tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featherweight as fw
from featherweight.core.errors import InputError

ROWS, LENGTH = 2, 12


def work(model: Any) -> int:
    """Floating-point operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(ROWS, LENGTH, dtype=torch.long))
    return int(counter.get_total_flops())


def depth(model: Any) -> int:
    """How many linear layers run one after another."""
    ran: list[nn.Module] = []
    linear = [m for m in model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in linear]
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    for hook in hooks:
        hook.remove()
    return len(ran)


CASES = {"houlsby": (fw.Houlsby(bottleneck=4), 2), "lin": (fw.Lin(bottleneck=4), 1),
         "pfeiffer": (fw.Pfeiffer(bottleneck=4), 1)}  # fmt: skip


@pytest.mark.parametrize(("method", "each"), CASES.values(), ids=CASES)
def test_a_bottleneck_adds_two_products_in_series(method: Any, each: int) -> None:
    """2 d b multiplications and additions down and as many up, for every token of every block."""
    base = tiny("gpt2")
    d, blocks = base.config.n_embd, base.config.n_layer
    model = fw.attach(tiny("gpt2"), method, head=False)
    assert work(model) - work(base) == blocks * each * ROWS * LENGTH * 2 * (2 * d * 4)
    assert depth(model) - depth(base) == blocks * each * 2


def test_merged_lora_and_ia3_add_nothing() -> None:
    for method in (fw.LoRA(targets="linear"), fw.IA3()):
        model = fw.attach(tiny("gpt2"), method, head=False)
        assert work(model) >= work(tiny("gpt2"))
        fw.merge(model)
        assert work(model) == work(tiny("gpt2"))
        assert depth(model) == depth(tiny("gpt2"))


def test_virtual_tokens_take_positions_of_the_input() -> None:
    limit = tiny("gpt2").config.n_positions
    whole = torch.ones(1, limit, dtype=torch.long)
    for method in (fw.LoRA(), fw.Houlsby()):
        assert fw.attach(tiny("gpt2"), method, head=False)(input_ids=whole).logits.shape[1] == limit
    for method in (fw.Prompt(tokens=5), fw.Prefix(tokens=5)):
        model = fw.attach(tiny("gpt2"), method, head=False)
        assert model(input_ids=whole[:, 5:]).logits.shape[1] == limit - 5
        with pytest.raises(InputError, match=f"at most {limit}; got {limit + 1}: {limit - 4} of the row and 5 virtual"):
            model(input_ids=whole[:, 4:])


def test_a_prompt_is_computed_as_so_many_more_tokens() -> None:
    rows = work(fw.attach(tiny("gpt2"), fw.Prompt(tokens=LENGTH), head=False))
    assert 1.8 < rows / work(tiny("gpt2")) < 2.6
