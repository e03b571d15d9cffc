"""pipeline(), sentence-transformers and accelerate with an attached model, unchanged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, inputs, tiny

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.host import base_parameters
from featherweight.core.state import state
from featherweight.interop import load_base


def test_text_classification(bert: Path) -> None:
    from transformers import pipeline

    model = load_base(bert, fw.Classification(labels=("bad", "good"))).eval()
    texts = ["the cat is good", "a slow dog"]
    plain = pipeline("text-classification", model=model, tokenizer=model.tokenizer, top_k=None)(texts)
    fw.attach(model, fw.LoRA(rank=2))
    disturb(model, 0.5)
    found = pipeline("text-classification", model=model, tokenizer=model.tokenizer, top_k=None)(texts)
    with torch.no_grad():
        wanted = model(**model.tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    for row, was, want in zip(found, plain, wanted, strict=True):
        scores = {x["label"]: x["score"] for x in row}
        assert scores["good"] == pytest.approx(float(want[1]), abs=1e-5)
        assert abs(scores["good"] - {x["label"]: x["score"] for x in was}["good"]) > 1e-4


def test_text_generation(stories: Path) -> None:
    from transformers import GenerationConfig, pipeline

    model = load_base(stories, fw.CausalLM()).eval()
    torch.manual_seed(0)
    fw.attach(model, fw.LoRA(rank=2, targets="linear"))
    disturb(model)
    how = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=model.config.pad_token_id)
    writer = pipeline("text-generation", model=model, tokenizer=model.tokenizer)

    def written() -> list[int]:
        return writer("Once upon a time", generation_config=how, return_tensors=True)[0]["generated_token_ids"]

    ids = model.tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert list(written()) == ids[0].tolist()
    with fw.switch(model, None):
        assert list(written()) != ids[0].tolist()


@pytest.mark.parametrize("at", ["root", "transformer"])
def test_sentence_transformers(bert: Path, tmp_path: Path, at: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses, modules

    trunk = modules.Transformer(str(bert))
    encoder: Any = SentenceTransformer(modules=[trunk, modules.Pooling(32)], device="cpu")
    texts = ["the cat sat on a mat", "a dog ran fast"]
    before = encoder.encode(texts)
    target = encoder if at == "root" else next(m for m in encoder.modules() if type(m).__name__ == "BertModel")
    fw.attach(target, fw.LoRA(rank=2), head=False)
    assert (encoder.encode(texts) == before).all()
    disturb(encoder)
    batch = [encoder.preprocess(texts), encoder.preprocess(texts[::-1])]
    encoder.train()
    params = [p for p in encoder.parameters() if p.requires_grad]
    start = [p.clone() for p in params]
    losses.CosineSimilarityLoss(encoder)(batch, torch.tensor([0.9, 0.1])).backward()
    torch.optim.SGD(params, lr=10.0).step()
    assert len(params) == 8
    assert all(not torch.equal(a, b) for a, b in zip(params, start, strict=True))
    encoder.eval()
    assert abs(encoder.encode(texts) - before).max() > 1e-6
    inner = next(m for m in encoder.modules() if type(m).__name__ == "BertModel")
    inner.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.fixture(autouse=True)
def no_state_of_accelerate() -> Iterator[None]:
    """accelerate keeps one state a process, of whichever test was first (a Trainer's, say): each begins without."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_in_bf16(tmp_path: Path) -> None:
    """Attach, then prepare: autocast and the fp32 adapters agree, and the adapters train."""
    from accelerate import Accelerator

    model = fw.attach(tiny("llama"), fw.LoRA(rank=2, targets="linear"))
    disturb(model)
    base = {n: p.clone() for n, p in base_parameters(model)}
    before = {k: t.clone() for k, t in state(model, "default").items()}
    batch = inputs("llama")
    with torch.no_grad():
        plain = model(**batch).logits
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    prepared, optimizer = accelerator.prepare(
        model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    )
    with torch.no_grad():
        half = prepared(**batch).logits
    assert not torch.equal(half, plain)
    assert (half - plain).abs().max() <= 0.03 * plain.abs().max()
    accelerator.backward(prepared(**batch, labels=batch["input_ids"]).loss)
    optimizer.step()
    model = accelerator.unwrap_model(prepared)
    assert all(not torch.equal(t, before[k]) for k, t in state(model, "default").items())
    assert all(torch.equal(p, base[n]) for n, p in base_parameters(model))
    fw.save(model, tmp_path)
    again = fw.load(tiny("llama"), tmp_path)
    assert all(torch.equal(t, state(model, "default")[k]) for k, t in state(again, "default").items())


def test_attach_after_prepare_is_never_ignored() -> None:
    """Below the prepared root an adapter works; on the root itself, whose forward was replaced, attach refuses."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare(tiny("llama"))
    with torch.no_grad():
        plain = model(**inputs("llama")).logits
    fw.attach(model, fw.LoRA(rank=2))
    disturb(model)
    with torch.no_grad():
        assert (model(**inputs("llama")).logits - plain).abs().max() > 1e-3
    lone = accelerator.prepare(torch.nn.Linear(4, 4))
    with pytest.raises(InputError, match="attach first, then prepare"):
        fw.attach(lone, fw.LoRA(rank=2, targets=lambda path, module: True))


def test_dispatched_modules_see_the_adapter() -> None:
    """accelerate's dispatch keeps each module's old bound forward: attach must reach through it."""
    from accelerate import dispatch_model

    model = dispatch_model(tiny("llama"), {"": "cpu"}, main_device="cpu", force_hooks=True)
    with torch.no_grad():
        plain = model(**inputs("llama")).logits
    fw.attach(model, fw.LoRA(rank=2))
    disturb(model)
    with torch.no_grad():
        found = model(**inputs("llama")).logits
    assert (found - plain).abs().max() > 1e-3
    fw.detach(model)
    with torch.no_grad():
        assert torch.equal(model(**inputs("llama")).logits, plain)
