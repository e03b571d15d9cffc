"""extract: exact at full rank, best at any rank, honest about what it leaves out."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import base_modules
from featherweight.core.site import kind_of
from featherweight.core.switch import switch_of

ARCHITECTURES = ["bert", "gpt2", "llama", "t5", "neox"]


def tuned(arch: str, everything: bool = False, rank: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """A copy whose linear and embedding weights (or everything) moved; by changes of a given rank where asked."""
    model = tiny(arch, dtype)
    chance = torch.Generator().manual_seed(8)
    seen: set[int] = set()
    for _, module in base_modules(model):
        for name, p in module._parameters.items():
            if (
                p is None
                or id(p) in seen
                or not (everything or (name == "weight" and kind_of(module) in ("linear", "embedding")))
            ):
                continue
            seen.add(id(p))
            step = 0.05 * torch.randn(p.shape, generator=chance)
            if rank and p.dim() == 2:
                step = (
                    0.05
                    * torch.randn(p.shape[0], rank, generator=chance)
                    @ torch.randn(rank, p.shape[1], generator=chance)
                )
            p.data += step.to(dtype)
    return model


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_full_rank_is_the_tuned_model(arch: str) -> None:
    model, base = tuned(arch), tiny(arch)
    before = {k: p.clone() for k, p in base.named_parameters()}
    found = fw.extract(model, base, rank=99)
    wanted = logits(model, inputs(arch))
    torch.testing.assert_close(logits(base, inputs(arch)), wanted, atol=1e-5, rtol=1e-5)
    assert found.left == []
    assert found.kept == pytest.approx(1)
    assert fw.trainable(base).trainable == 0
    with fw.switch(base, None):
        assert torch.equal(logits(base, inputs(arch)), logits(tiny(arch), inputs(arch)))
    assert all(torch.equal(p, before[k]) for k, p in base.named_parameters() if k in before)
    merged = dict(fw.merge(base).named_parameters())
    for k, p in model.named_parameters():
        torch.testing.assert_close(merged[k], p, atol=1e-5, rtol=1e-5)


def test_a_change_of_low_rank_is_found_at_that_rank() -> None:
    model, base = tuned("llama", rank=3), tiny("llama")
    found = fw.extract(model, base, rank=3)
    torch.testing.assert_close(logits(base, inputs("llama")), logits(model, inputs("llama")), atol=1e-5, rtol=1e-5)
    assert all(s.rank_for(0.9999) <= 3 for s in found.spectra)
    assert all(s.kept > 0.99999 for s in found.spectra)
    assert found.parameters == 3 * sum(sum(s.shape) for s in found.spectra)


def test_it_is_the_best_of_its_rank_by_hand() -> None:
    """diag(5, 3, 1): rank 2 leaves 1, and keeps 34 of 35."""
    one = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    other = copy.deepcopy(one)
    one[0].weight.data += torch.diag(torch.tensor([3.0, 5.0, 1.0]))
    found = fw.extract(one, other, rank=2)
    (s,) = found.spectra
    torch.testing.assert_close(s.values, torch.tensor([5.0, 3.0, 1.0]))
    assert s.kept == pytest.approx(34 / 35)
    assert (s.rank_for(0.7), s.rank_for(0.9), s.rank_for(0.98)) == (1, 2, 3)
    assert s.bars() == "█▅▂"
    delta = fw.merge(other)[0].weight - one[0].weight
    torch.testing.assert_close(delta, torch.diag(torch.tensor([0.0, 0.0, -1.0])), atol=1e-5, rtol=0)


def test_what_a_lora_cannot_hold_is_reported_and_the_head_comes_along() -> None:
    model, base = tuned("bert", everything=True), tiny("bert")
    found = fw.extract(model, base, rank=99)
    left = {t.name for t in found.left}
    assert found.head
    assert not [k for k in left if k.startswith("classifier")]
    assert {k for k, p in model.named_parameters() if p.dim() == 1 and not k.startswith("classifier")} == left
    worst = next(t for t in found.left if t.name == "bert.pooler.dense.bias")
    own = tiny("bert").bert.pooler.dense.bias
    step = model.bert.pooler.dense.bias.detach() - own.detach()
    assert worst.relative == pytest.approx(float(step.norm() / own.detach().norm()), rel=1e-5)
    for p, k in ((p, k) for k, p in base.named_parameters() if "adapters" in k and "classifier" in k):
        assert torch.equal(p, model.get_parameter(f"classifier.{k.rpartition('.')[2]}"))
    # with its biases and norms put right by hand, it is the tuned model
    for k in left:
        base.get_parameter(k).data.copy_(model.get_parameter(k))
    torch.testing.assert_close(logits(base, inputs("bert")), logits(model, inputs("bert")), atol=1e-5, rtol=1e-5)


def test_more_rank_is_nearer_and_the_measure_says_so() -> None:
    batch = inputs("llama") | {"labels": inputs("llama")["input_ids"]}
    found = [fw.extract(tuned("llama"), tiny("llama"), rank=r, batches=[batch]) for r in (1, 8, 32)]
    near = [f.measured.difference for f in found]
    assert near[0] > near[1] > near[2]
    assert near[2] < 1e-5 < found[0].measured.base_difference
    assert found[2].measured.agreement == 1.0
    assert found[0].kept < found[1].kept < found[2].kept
    model, base = tuned("llama"), tiny("llama")
    with torch.no_grad():
        assert found[0].measured.tuned_loss == pytest.approx(float(model(**batch).loss), rel=1e-5)
        assert found[0].measured.base_loss == pytest.approx(float(base(**batch).loss), rel=1e-5)
    assert found[2].measured.loss == pytest.approx(found[2].measured.tuned_loss, rel=1e-4)
    assert fw.extract(tuned("llama"), tiny("llama"), batches=[inputs("llama")]).measured.loss is None


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft says so of gpt2's head,
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")  # and this, as not all of it is Conv1D
@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama"])
def test_it_saves_as_a_lora_that_peft_reads(arch: str, tmp_path: Path) -> None:
    model, base = tuned(arch, everything=arch == "bert"), tiny(arch)
    fw.extract(model, base, rank=5)
    out = logits(base, inputs(arch))
    fw.save(base, tmp_path)
    assert torch.equal(logits(fw.load(tiny(arch), tmp_path), inputs(arch)), out)
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(tiny(arch), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs(arch)).logits, out, atol=1e-5, rtol=1e-5)


def test_folders(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), pad_token="b"
    )
    for name, model in (("tuned", tuned("llama")), ("base", tiny("llama"))):
        model.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    found = fw.extract(tmp_path / "tuned", tmp_path / "base", rank=32)
    wanted = logits(tuned("llama"), inputs("llama"))
    torch.testing.assert_close(logits(found.model, inputs("llama")), wanted, atol=1e-5, rtol=1e-5)


def test_half_precision() -> None:
    half = fw.extract(tuned("llama", dtype=torch.bfloat16), tiny("llama", torch.bfloat16), rank=32)
    wanted = logits(tuned("llama", dtype=torch.bfloat16), inputs("llama"))
    assert (logits(half.model, inputs("llama")) - wanted).abs().max() < 0.04 * wanted.abs().max()
    assert "kept 100.0%" in repr(half)


def test_bad_input() -> None:
    model = tuned("llama")
    with pytest.raises(fw.InputError, match="no weight differs"):
        fw.extract(tiny("llama"), tiny("llama"))
    with pytest.raises(fw.InputError, match="rank"):
        fw.extract(model, tiny("llama"), rank=0)
    with pytest.raises(fw.InputError, match="another shape"):
        fw.extract(model, tiny("bert"))
    with pytest.raises(fw.InputError, match="cannot be both"):
        fw.extract(model, model)
    with pytest.raises(fw.InputError, match="merge"):
        fw.extract(fw.attach(tuned("llama"), fw.LoRA(rank=2)), tiny("llama"))
    with pytest.raises(fw.InputError, match="no row"):
        fw.extract(model, tiny("llama"), batches=[])
    base = fw.attach(tiny("llama"), fw.LoRA(rank=2))
    with pytest.raises(fw.InputError, match="attached already"):
        fw.extract(model, base)
    assert list(switch_of(base).attached) == ["default"]
