"""What a model is evaluated with where nobody says: its class tells the task, its config the labels."""

import pytest
from support.models import tiny

import featherweight as fw
from featherweight.evaluate.setting import task_of, task_of_model


@pytest.mark.parametrize(("arch", "task"), [("llama", fw.CausalLM()), ("gpt2", fw.CausalLM()), ("t5", fw.Seq2Seq())])
def test_the_class_of_a_model_tells_its_task(arch: str, task: object) -> None:
    assert task_of_model(tiny(arch)) == task
    assert task_of_model(fw.attach(tiny(arch), fw.LoRA(rank=2))) == task


def test_a_saved_head_brings_its_labels_and_its_kind() -> None:
    model = tiny("bert")
    assert task_of(model, None) == fw.Classification(labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    model.config.problem_type = "multi_label_classification"
    assert isinstance(task_of(model, None), fw.MultiLabel)


def test_a_bare_encoder_has_no_task() -> None:
    with pytest.raises(fw.InputError, match="no task for this model"):
        task_of(tiny("bert").bert, None)
