"""The step that is planned of each task is the step that training makes: the same bytes, counted with real tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.utils._pytree import tree_iter

import featherweight as fw
from featherweight.cli.schema import tasks
from featherweight.core.errors import InputError
from featherweight.plan import traced
from featherweight.plan.live import Live
from featherweight.plan.plan import planned, subject
from featherweight.plan.training import training_step
from featherweight.tasks import Task
from featherweight.train.settings import settings

SHAPE: dict[str, Any] = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32,
                         "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
LLAMA, BERT = hf.LlamaConfig(**SHAPE), hf.BertConfig(**SHAPE)
T5 = hf.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
LENGTH = 24


class Real(Live):
    """Counts what is alive of real tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self.take(leaf)
        return out


def config_for(task: Task) -> Any:
    """That of a model which the task can be trained on."""
    masked = task.auto in ("AutoModelForMaskedLM", "AutoModel") or "LM" not in task.auto
    return T5 if "Seq2Seq" in task.auto else BERT if masked else LLAMA


def bytes_of_a_step(config: Any, about: Any, chosen: Any) -> int:
    """At the peak of a real step."""
    form = config.to_dict() | about.task.model_options() | {"pad_token_id": 0}
    model = getattr(hf, about.task.auto).from_config(type(config).from_dict(form))
    fw.attach(model, fw.LoRA())
    live, step = Real(), training_step(about.task, chosen, about.batch(chosen))
    with live, traced.places(model, live) as marks:
        traced.count(model, live)
        step(model, live, marks)
    return live.peak


def ours() -> list[str]:
    return [name for name, made in tasks().items() if made.__module__.startswith("featherweight.tasks")]


@pytest.mark.parametrize("name", ours())
def test_a_planned_step_is_the_step_that_is_made(name: str) -> None:
    task: Any = tasks()[name]()
    config, chosen = config_for(task), settings({"batch": 3, "length": LENGTH})
    about = subject(config, chosen, task=task)
    made = planned(about, fw.LoRA(), None, chosen)
    assert made.train_bytes == bytes_of_a_step(config, about, chosen)
    assert made.peaks["generate" if task.generates else "predict"] > made.memory["weights"]
    assert made.forward_flops > 0


def test_choices_cost_their_own_tokens_and_one_pass_of_the_encoder() -> None:
    """By hand: the encoder's products at 3 x 24 tokens, the decoder's at 3 x (1 + 4 x (6 - 1))."""
    chosen = settings({"batch": 3, "length": LENGTH})
    batch = subject(T5, chosen, task=fw.Seq2SeqChoices()).batch(chosen)
    assert batch["input_ids"].shape == (3, 24)
    assert batch["choices"].shape == (3, 4, 6)
    d, inner, ff, vocab, layers = 32, 4 * 8, 48, 99, 2
    attention, mlp = 4 * d * inner, 2 * d * ff
    told = 3 * (1 + 4 * (6 - 1))  # the first token once for all choices, then each choice without its last
    encoder = layers * 3 * 24 * (attention + mlp + 2 * 24 * inner)
    crossed = layers * 3 * 24 * 2 * d * inner  # keys and values of the encoder's states, once
    decoder = layers * told * (attention + 2 * d * inner + mlp) + told * d * vocab
    looked = layers * (3 * 1 * 1 + 12 * 5 * 6 + (3 * 1 + 12 * 5) * 24) * 2 * inner
    made = fw.plan(T5, None, task=fw.Seq2SeqChoices(), batch=3, length=LENGTH)
    assert made.forward_flops == 2 * (encoder + crossed + decoder + looked)


def test_hidden_tokens_alone_carry_the_loss_of_a_masked_model() -> None:
    whole, few = (fw.plan(BERT, fw.LoRA(), task=fw.MaskedLM(rate=rate), batch=8, length=60) for rate in (0.9, 0.1))
    assert whole.memory["logits and loss"] > few.memory["logits and loss"]


def test_a_recipe_plans_its_own_task_method_and_settings() -> None:
    made = fw.plan(T5, recipe="tfew", length=LENGTH)
    assert (made.task, made.method, made.batch) == (fw.Seq2SeqChoices(), fw.IA3(), 8)
    assert fw.plan(LLAMA, recipe="tfew", length=LENGTH, batch=3).task == fw.Choices()
    own = fw.plan(T5, fw.IA3(), task=fw.Seq2SeqChoices(), batch=8, length=LENGTH, optimizer="adafactor")
    assert made.memory == own.memory
    adam = fw.plan(T5, fw.IA3(), task=fw.Seq2SeqChoices(), batch=8, length=LENGTH)
    assert made.memory["optimizer states"] != adam.memory["optimizer states"]


def test_labels_come_from_the_config_where_no_data_say() -> None:
    three = hf.BertConfig(**SHAPE, num_labels=3)
    for kind in (fw.Classification, fw.TokenClassification, fw.MultiLabel):
        assert len(fw.plan(three, fw.LoRA(), task=kind(), batch=2, length=8).task.labels) == 3


def test_a_task_of_another_kind_of_model_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no model for the task"):
        fw.plan(LLAMA, fw.LoRA(), task=fw.MaskedChoices(), length=8)
    with pytest.raises(InputError, match="templates word the rows of data"):
        fw.plan(T5, fw.LoRA(), template="rte")
    with pytest.raises(InputError, match="no tokenizer"):
        fw.plan(BERT, fw.LoRA(), data=[{"text": "a", "label": 0}, {"text": "b", "label": 1}])


def test_rows_that_train_nothing_are_refused_as_in_training(data_dir: Path) -> None:
    base = data_dir / "stories260k" / "hf"
    rows = [{"sub_label": "Peru", "obj_label": "extraordinarily", "template": "[X] is [Y] ."}]
    with pytest.raises(InputError, match="no row trains anything"):
        fw.plan(base, fw.LoRA(), task=fw.CausalProbing(), data=rows)
