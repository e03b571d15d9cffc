"""transformers' model over bitsandbytes layers in its own Trainer: trains, evaluates in between, saves, resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.core.state import state

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning"),
]
KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


def loaded(stories: Path, kind: str) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(stories, quantization_config=BitsAndBytesConfig(**KINDS[kind]))


def trainer(model: Any, folder: Path) -> Any:
    from transformers import Trainer, TrainingArguments

    g = torch.Generator().manual_seed(0)
    rows = [{"input_ids": x, "labels": x} for x in torch.randint(3, 400, (8, 12), generator=g)]
    args = TrainingArguments(output_dir=str(folder), max_steps=4, save_steps=2, eval_steps=1, eval_strategy="steps",
                             per_device_train_batch_size=2, learning_rate=1e-2, report_to=[], use_cpu=True, seed=1,
                             disable_tqdm=True, logging_steps=1)  # fmt: skip
    return Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_train_evaluate_save_resume(stories: Path, kind: str, tmp_path: Path) -> None:
    base = loaded(stories, kind)
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        trainer(base, tmp_path)
    codes = {n: t.clone() for n, t in base.state_dict().items()}
    torch.manual_seed(0)
    model = fw.attach(base, fw.LoRA(rank=2, targets="linear"))
    start = {k: t.clone() for k, t in state(model, "default").items()}
    run = trainer(model, tmp_path)
    run.train()
    losses = [row["loss"] for row in run.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    moved = [k for k, t in state(model, "default").items() if not torch.equal(t, start[k])]
    assert len(moved) == len(start)  # of every layer, though Trainer evaluated after every step
    assert all(torch.equal(t, codes[n]) for n, t in model.state_dict().items() if n in codes)
    assert not set(load_file(tmp_path / "checkpoint-2" / "model.safetensors")) & set(codes)
    torch.manual_seed(9)
    again = fw.attach(loaded(stories, kind), fw.LoRA(rank=2, targets="linear"))
    trainer(again, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, tensor in state(model, "default").items():
        assert torch.equal(state(again, "default")[key], tensor), key


def test_an_adapter_goes_from_their_layers_to_ours(stories: Path, tmp_path: Path) -> None:
    base = loaded(stories, "nf4")
    base.save_pretrained(tmp_path / "base")
    model = fw.attach(base, fw.LoRA(rank=2, targets="linear"))
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.1)
    ids = torch.arange(3, 20)[None]
    out = model.eval()(ids).logits
    fw.save(model, tmp_path / "fr")
    mine = fw.load_base(tmp_path / "base", tokenizer=fw.load_base(stories).tokenizer)
    fw.load(mine, tmp_path / "fr")
    torch.testing.assert_close(mine.eval()(ids).logits, out, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_knows_its_live_base_again_and_serves_rows(stories: Path, kind: str, tmp_path: Path) -> None:
    model = fw.attach(loaded(stories, kind), fw.LoRA(rank=2, targets="linear"))
    counts = fw.trainable(loaded(stories, kind))
    assert (counts.total, counts.codes) == (260_032, 226_560)
    assert fw.trainable(model).total == 260_032 + fw.trainable(model).trainable
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.1)
    fw.save(model, tmp_path)
    again, ids = loaded(stories, kind), torch.arange(3, 20)[None]
    fw.load(again, tmp_path)
    out = again.eval()(ids).logits
    assert torch.equal(out, model.eval()(ids).logits)
    with fw.switch(again, None):
        base = again(ids).logits
    with fw.switch(again, rows=["default", None]):
        both = again(ids.expand(2, -1)).logits
    torch.testing.assert_close(both, torch.cat([out, base]), rtol=1e-4, atol=1e-4)
    assert again.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 20)


@pytest.mark.parametrize("targets", ["linear", "query"])
def test_a_merged_model_is_saved_as_what_it_is(stories: Path, targets: str, tmp_path: Path) -> None:
    """All of it plain, or plain where the adapters were and bitsandbytes elsewhere: transformers loads either."""
    from transformers import AutoModelForCausalLM

    model = fw.attach(loaded(stories, "nf4"), fw.LoRA(rank=2, targets=targets))
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_(std=0.1)
    ids = torch.arange(3, 20)[None]
    fw.merge(model).train().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    block = again.model.layers[0]
    assert type(block.self_attn.q_proj) is torch.nn.Linear
    assert (type(block.mlp.up_proj) is torch.nn.Linear) == (targets == "linear")
    assert (getattr(again.config, "quantization_config", None) is None) == (targets == "linear")
    assert torch.equal(again(ids).logits, model(ids).logits)
