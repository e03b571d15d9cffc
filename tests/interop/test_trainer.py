"""HF Trainer and TRL's SFTTrainer with an attached model, unchanged: train, save, resume, best checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.models import inputs, logits, tiny

import featherweight as fw
from featherweight.core.host import base_parameters
from featherweight.core.state import state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler:UserWarning"),
]
METHODS = [fw.LoRA(rank=2, dropout=0.1), fw.IA3(), fw.BitFit(), fw.Full()]


def rows(count: int = 8) -> list[dict[str, Any]]:
    ids = torch.randint(3, 99, (count, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": i % 3} for i, x in enumerate(ids)]


def trainer(model: Any, folder: Path, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
               "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1, "logging_steps": 100}  # fmt: skip
    return Trainer(model=model, args=TrainingArguments(output_dir=str(folder), **options | settings),
                   train_dataset=rows(), eval_dataset=rows(4))  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_train_save_resume(method: Any, tmp_path: Path) -> None:
    base = {n: p.clone() for n, p in base_parameters(tiny("bert"))}
    torch.manual_seed(3)
    model = fw.attach(tiny("bert"), method)
    start = {k: t.clone() for k, t in state(model, "default").items()}
    trainer(model, tmp_path).train()
    assert any(not torch.equal(t, start[k]) for k, t in state(model, "default").items())
    assert all(torch.equal(p, base[n]) for n, p in base_parameters(model))
    checkpoint = tmp_path / "checkpoint-2"
    assert not set(load_file(checkpoint / "model.safetensors")) & set(base)
    torch.manual_seed(99)
    resumed = fw.attach(tiny("bert"), method)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(t, state(model, "default")[k]) for k, t in state(resumed, "default").items())
    assert torch.equal(
        logits(fw.load(tiny("bert"), tmp_path / "checkpoint-4"), inputs("bert")), logits(model.eval(), inputs("bert"))
    )


def test_the_best_checkpoint_comes_back(tmp_path: Path) -> None:
    model = fw.attach(tiny("bert"), fw.LoRA(rank=2))
    run = trainer(model, tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, learning_rate=0.5)
    run.train()
    best = Path(run.state.best_model_checkpoint)
    kept = load_file(best / "model.safetensors")
    assert kept
    assert all(torch.equal(model.state_dict()[k], t) for k, t in kept.items())
    run.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "model.safetensors").exists()
    assert torch.equal(
        logits(fw.load(tiny("bert"), tmp_path / "final"), inputs("bert")), logits(model.eval(), inputs("bert"))
    )


def test_sft(stories: Path, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from featherweight.interop import load_base

    model = fw.attach(load_base(stories, fw.CausalLM()), fw.LoRA(rank=2, targets="linear"))
    before = {k: t.clone() for k, t in state(model, "default").items()}
    data = Dataset.from_list([{"text": "Once upon a time there was a cat."}, {"text": "The dog ran to the park."}])
    args = SFTConfig(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
                     bf16=False, disable_tqdm=True, max_length=32, learning_rate=1e-2,
                     gradient_checkpointing=True)  # fmt: skip
    run = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=model.tokenizer)
    run.train()
    assert any(not torch.equal(t, before[k]) for k, t in state(model, "default").items())
    run.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "model.safetensors").exists()
    loaded = fw.load(load_base(stories, fw.CausalLM()), tmp_path / "final")
    assert all(torch.equal(t, state(model, "default")[k]) for k, t in state(loaded, "default").items())
