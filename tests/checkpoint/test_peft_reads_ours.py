"""Our files read by peft: no missing and no unexpected key, no warning, the same logits, the same step of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import ARCHITECTURES, disturb, inputs, logits, tiny
from torch import nn

from featherweight.checkpoint.files import read_json
from featherweight.checkpoint.save import save
from featherweight.core.attach import attach
from featherweight.methods import IA3, BitFit, LayerNorm, LoRA

Judge = Callable[[Any, Path], Any]
METHODS: dict[str, Any] = {
    "lora": LoRA(rank=4),
    "lora-linear": LoRA(rank=2, alpha=3, targets="linear", dropout=0.1),
    "lora-rs-patterns": LoRA(
        rank=4, targets="attention", rank_pattern={"0.*": 3}, alpha_pattern={"1.*": 5}, rank_stabilized=True
    ),
    "lora-gaussian-mlp": LoRA(rank=3, alpha=1, targets=("up", "down"), init="gaussian"),
    "lora-predicate": LoRA(rank=2, targets=lambda path, module: "1." in path),
    "ia3": IA3(),
    "ia3-outputs": IA3(targets=("query", "value"), feedforward=()),
    "norm": LayerNorm(),
}
# peft says of every LN_TUNING that it does not know the layer's sizes, and of every tied head that it may diverge
pytestmark = [
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
]


def made(arch: str, method: Any, task: str = "", head: bool | str = "auto") -> Any:
    torch.manual_seed(7)
    model = attach(tiny(arch, task=task), method, head=head)
    disturb(model)
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_same_logits(method: Any, arch: str, tmp_path: Path, judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    model = made(arch, method)
    save(model, tmp_path)
    theirs = judge(tiny(arch), tmp_path)
    assert not [r for r in caplog.records if r.name.startswith("peft")]
    assert (logits(model, inputs(arch)) - logits(tiny(arch), inputs(arch))).abs().max() > 1e-3
    far = float((logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max())
    assert far <= (1e-5 if arch == "t5" else 1e-6)  # T5's unscaled attention magnifies rounding: fp64 tells
    assert (logits(model.double(), inputs(arch)) - logits(theirs.double(), inputs(arch))).abs().max() <= 1e-10


@pytest.mark.parametrize(("arch", "task"), [("bert", ""), ("roberta", ""), ("gpt2", "classify"), ("llama", "classify")])
@pytest.mark.parametrize("head", [True, False])
def test_heads(arch: str, task: str, head: bool, tmp_path: Path, judge: Judge) -> None:
    model = made(arch, LoRA(rank=2), task, head)
    save(model, tmp_path)
    theirs = judge(tiny(arch, task=task), tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["task_type"] == ("SEQ_CLS" if head else None)
    assert (logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max() <= 1e-6


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_language_model_head(arch: str, tmp_path: Path, judge: Judge) -> None:
    model = made(arch, LoRA(rank=2), head=True)
    save(model, tmp_path)
    assert read_json(tmp_path / "adapter_config.json")["modules_to_save"] == ["lm_head"]
    theirs = judge(tiny(arch), tmp_path)
    assert (logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max() <= 1e-6


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_embeddings(arch: str, tmp_path: Path, judge: Judge) -> None:
    model = made(arch, LoRA(rank=2, targets=("embedding", "query")))
    save(model, tmp_path)
    theirs = judge(tiny(arch), tmp_path)
    assert (logits(model, inputs(arch)) - logits(theirs, inputs(arch))).abs().max() <= 1e-6


class Toy(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 2), stride=2, padding=1, dilation=1)
        self.out = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv(x)).mean((2, 3)))


def toy() -> Toy:
    torch.manual_seed(2)
    return Toy().eval()


@pytest.mark.parametrize("stabilized", [False, True])
def test_convolutions(tmp_path: Path, judge: Judge, stabilized: bool) -> None:
    model = attach(toy(), LoRA(rank=2, targets=("conv", "out"), rank_stabilized=stabilized), head=False)
    disturb(model)
    save(model, tmp_path)
    theirs = judge(toy(), tmp_path)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert (model(x) - toy()(x)).abs().max() > 1e-3
        assert (model(x) - theirs(x)).abs().max() <= 1e-6


@pytest.mark.parametrize(("arch", "method"), [
    ("bert", LoRA(rank=4)), ("roberta", LoRA(rank=4, rank_stabilized=True)), ("llama", LoRA(rank=4, targets="linear")),
    ("gpt2", LoRA(rank=4, targets="linear")), ("t5", LoRA(rank=3)), ("neox", LoRA(rank=2, targets=("output", "mlp"))),
    ("phi3", LoRA(rank=2, targets=("output", "down"))), ("bert", IA3()), ("llama", IA3()), ("t5", IA3()),
    ("llama", LayerNorm()),
    ("bert", LayerNorm()), ("gpt2", LayerNorm()),
], ids=str)  # fmt: skip
def test_one_step_of_training(arch: str, method: Any, tmp_path: Path, judge: Judge) -> None:
    """From one checkpoint, one batch and one SGD step: the same parameters."""
    from peft import PeftModel, get_peft_model_state_dict

    from featherweight.checkpoint.entry import packed
    from featherweight.checkpoint.save import table
    from featherweight.core.state import state

    model = made(arch, method)
    save(model, tmp_path)
    before = {k: t.clone() for k, t in packed(table(model, "default"), state(model, "default")).items()}
    theirs = PeftModel.from_pretrained(tiny(arch), str(tmp_path), is_trainable=True).eval()
    for each in (model, theirs):
        params = [p for p in each.parameters() if p.requires_grad]
        each(**inputs(arch)).logits.square().mean().backward()
        torch.optim.SGD(params, lr=0.1).step()
    ours, peers = packed(table(model, "default"), state(model, "default")), get_peft_model_state_dict(theirs)
    assert sorted(ours) == sorted(peers)
    assert max(float((ours[k] - before[k]).abs().max()) for k in ours) > 1e-5
    assert all((ours[k] - peers[k]).abs().max() <= 1e-6 for k in ours)


def test_peft_refuses_what_it_lacks(tmp_path: Path) -> None:
    from peft import PeftModel

    save(made("bert", BitFit()), tmp_path)
    with pytest.raises(KeyError, match="FEATHERWEIGHT_BITFIT"):
        PeftModel.from_pretrained(tiny("bert"), str(tmp_path))
