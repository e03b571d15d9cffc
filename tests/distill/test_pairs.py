"""Two models that are compared: their vocabularies, quantized ones on either side, rows without labels."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from support.distilling import SIZE, YES_NO, batch, bert, given, llama, lm_batch, loss_of, terms_of, words

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.types import Example
from featherweight.distill.check import shared_words
from featherweight.distill.task import Distilled

HOW: dict[str, Any] = {"steps": 4, "batch": 8, "threads": 1, "lr": 1e-2, "log": 1}


def padded(extra: int, **config: Any) -> Any:
    """The tiny Llama with rows of its vocabulary that no token has."""
    made = llama(vocab_size=SIZE + extra, **config)
    made.tokenizer = words()
    return made


def test_a_padded_vocabulary_is_cut_to_the_tokens_both_know(tokenizer: Any) -> None:
    """What stands in the padding of either changes no loss between them."""
    teacher, student = padded(8), padded(2, num_hidden_layers=2)
    assert shared_words(student, teacher) == SIZE
    found = []
    for noise in (0.0, 7.0):
        for model in (teacher, student):
            model.lm_head.weight.data[SIZE:] += noise
        found.append(terms_of(student, teacher, fw.KD(alpha=1.0), lm_batch(), fw.CausalLM(), words=SIZE)[0]["soft"])
    assert torch.equal(found[0].values, found[1].values)
    assert terms_of(student, teacher, fw.KD(), lm_batch(), fw.CausalLM(), words=SIZE)[1].logits()[0].shape[-1] == SIZE
    run = fw.distill(student, teacher, [{"text": "good cheap food"}, {"text": "bad pub"}] * 4, fw.KD(), **HOW)
    assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_a_copy_of_the_teacher_with_more_padding_has_no_loss() -> None:
    teacher = padded(0)
    student = deepcopy(teacher)
    student.resize_token_embeddings(SIZE + 8)
    assert loss_of(student, teacher, fw.KD(alpha=1.0), lm_batch(), fw.CausalLM(), words=SIZE).item() < 1e-6


def test_other_tokens_at_the_same_ids_are_refused(tokenizer: Any) -> None:
    """Equal sizes prove nothing: the maps are compared, and a token that differs is named."""
    from tokenizers import Tokenizer

    teacher, student = padded(0), padded(0, num_hidden_layers=2)
    form = tokenizer.backend_tokenizer.to_str()
    swapped = form.replace('"river":', '"RIVER":').replace('"city":', '"river":').replace('"RIVER":', '"city":')
    assert swapped != form
    core = Tokenizer.from_str(swapped)
    student.tokenizer = type(tokenizer)(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    with pytest.raises(InputError, match=r"different tokenizers.*'(river|city)' is \d+ and \d+.*fw.student.*fw.gen"):
        fw.distill(student, teacher, [{"text": "good"}] * 4, **HOW)


def test_sizes_that_differ_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(InputError, match=r"different size; expected 24; got 30; .*tokenizer"):
        fw.distill(llama(vocab_size=30), llama(), [{"text": "good"}] * 4, **HOW)


def test_rows_without_labels_have_soft_terms_alone(tokenizer: Any, rows: Any) -> None:
    teacher = bert(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    teacher.tokenizer = tokenizer
    bare = [{"text": row["text"]} for row in rows]

    def trained(data: Any, recipe: Any) -> Any:
        student = fw.student(teacher, layers=2)
        fw.distill(student, teacher, data, recipe, fw.Classification(), **HOW)
        with torch.no_grad():
            return student(**given()).logits, student.task

    blank = {**batch(), "labels": torch.full((3,), -100)}
    found, _, _ = terms_of(fw.student(teacher, layers=2), teacher, fw.KD(), blank)
    assert found["label"].values.tolist() == [0, 0, 0]
    without, task = trained(bare, fw.KD(alpha=1.0))
    labelled, _ = trained(rows, fw.KD(alpha=1.0))
    assert torch.equal(without, labelled)
    assert task == YES_NO
    for train in (bare, [{**row, "label": ""} for row in bare]):
        splits = {"train": train, "valid": rows[:8]}
        run = fw.distill(fw.student(teacher, layers=2), teacher, splits, fw.KD(), YES_NO, **HOW)
        assert 0 <= run.scores["accuracy"] <= 1


def test_nobody_knows_the_labels() -> None:
    with pytest.raises(InputError, match="r0: neither rows nor teacher say what the labels are"):
        Distilled(fw.Classification(), fw.KD()).fit([Example("r0", text="good")])


# Numbers of few bits


@pytest.mark.parametrize("scheme", [fw.Absmax(), fw.NF4(block=16), fw.LLMInt8()], ids=repr)
@pytest.mark.parametrize("recipe", [fw.KD(), fw.TinyBERT("layers"), fw.MiniLM()], ids=repr)
def test_a_quantized_teacher_teaches_all_that_it_shows(scheme: Any, recipe: Any, tokenizer: Any) -> None:
    """Its terms are those of the same values in floating point."""
    teacher = bert()
    student = fw.student(teacher, layers=2)
    fw.quantize(teacher, scheme)
    codes = {k: v.clone() for k, v in teacher.state_dict().items()}
    found = loss_of(student, teacher, recipe)
    if not isinstance(scheme, fw.LLMInt8):
        decoded = loss_of(student, fw.dequantize(deepcopy(teacher)), recipe)
        assert found.item() == pytest.approx(decoded.item(), rel=1e-4)
    assert found.isfinite()
    assert all(torch.equal(v, codes[k]) for k, v in teacher.state_dict().items())


def test_a_quantized_student_learns_by_lora(tokenizer: Any, rows: Any) -> None:
    """QLoRA with a teacher: codes stay, and the student comes nearer."""
    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    student = fw.student(teacher, layers=2)
    fw.quantize(student, fw.NF4(block=16))
    codes = {k: v.clone() for k, v in student.state_dict().items()}
    before = loss_of(student, teacher, fw.KD(alpha=1.0)).item()
    fw.distill(student, teacher, rows, fw.KD(alpha=1.0), method=fw.LoRA(rank=4), **HOW | {"steps": 30})
    assert loss_of(student, teacher, fw.KD(alpha=1.0)).item() < before
    assert all(torch.equal(v, codes[k]) for k, v in student.state_dict().items() if k in codes)


def test_a_student_trained_for_its_codes(tokenizer: Any, rows: Any) -> None:
    """QAT with a teacher: converted, the student answers as it did while it trained."""
    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    student = fw.student(teacher, layers=2)
    how = HOW | {"steps": 30, "lr": 1e-3}
    run = fw.distill(student, teacher, rows, fw.DistilBERT(), method=fw.QAT(fw.Absmax(bits=4)), **how)
    losses = [line["loss"] for line in run.history]
    assert sum(losses[-5:]) < sum(losses[:5])
    with torch.no_grad():
        trained = student(**given()).logits
        fw.convert(student)
        assert torch.allclose(student(**given()).logits, trained, atol=1e-5)


def test_the_quantized_base_teaches_its_adapter(tokenizer: Any, rows: Any) -> None:
    """One model of codes in memory: its base teaches, its adapter learns."""
    model = bert()
    model.tokenizer, model.task = tokenizer, YES_NO
    fw.quantize(model, fw.NF4(block=16))
    plain = deepcopy(model)
    fw.attach(model, fw.LoRA(rank=2))
    own, _, _ = terms_of(model, model, fw.MiniLM(), names=())
    apart, _, _ = terms_of(model, plain, fw.MiniLM())
    assert all(torch.equal(own[n].values, apart[n].values) for n in own)


def test_the_noise_of_a_quantized_teacher_is_said_once(tokenizer: Any, rows: Any) -> None:
    """KL between the plain model's and the codes' answers, by hand; the teacher is quantized afterwards."""
    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    plain = deepcopy(teacher)
    found = fw.quantized_teacher(teacher, fw.Absmax(bits=4), rows)
    assert type(teacher.bert.encoder.layer[0].intermediate.dense).__name__ == "QuantLinear"
    total = 0.0
    for row in rows:
        ids = tokenizer(row["text"], return_tensors="pt")
        with torch.no_grad():
            p, q = (m.eval()(**ids).logits[0].double().softmax(-1) for m in (plain, teacher))
        total += (p * (p / q).log()).sum().item()
    assert found.kl == pytest.approx(total / len(rows), rel=1e-3)
    assert found.units == len(rows)
    assert "nats a unit" in str(found)
    coarse = found.kl
    assert fw.quantized_teacher(plain, fw.Absmax(bits=8), rows).kl < coarse / 10
    scored = [{"text": "a", "score": 1.0}]
    with pytest.raises(InputError, match="no distribution"):
        fw.quantized_teacher(bert(num_labels=1), fw.Absmax(), scored, fw.Regression(), tokenizer=tokenizer)
