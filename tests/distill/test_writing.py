"""Distillation on text that a model writes: GKD on the student's, sequence-level KD on the teacher's."""

from collections import Counter
from copy import deepcopy
from math import log
from typing import Any

import pytest
import torch
from support.distilling import bart, bert, llama, lm_batch, loss_of, prompts, terms_of

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.losses import generalized_jsd
from featherweight.distill.writing import by_student

HOW: dict[str, Any] = {"batch": 4, "lr": 1e-2, "threads": 1, "log": 1}


def asked() -> dict[str, torch.Tensor]:
    """Prompts of three and two tokens, answers of two."""
    ids = torch.tensor([[3, 4, 5, 6, 1], [7, 8, 9, 1, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([[-100, -100, -100, 6, 1], [-100, -100, 9, 1, -100]])}  # fmt: skip


def model(tokenizer: Any, **config: Any) -> Any:
    made = llama(**config)
    made.tokenizer = tokenizer
    return made


def test_divergence_worked_by_hand() -> None:
    """p = (1/2, 1/2), q = (3/4, 1/4), β = 1/4: m = (11/16, 5/16)."""
    z_t, z_s = torch.tensor([[0.0, 0.0]]), torch.tensor([[log(3.0), 0.0]])
    p_m = 0.5 * log(8 / 11) + 0.5 * log(8 / 5)
    q_m = 0.75 * log(12 / 11) + 0.25 * log(4 / 5)
    assert generalized_jsd(z_s, z_t, 0.25).item() == pytest.approx(0.25 * p_m + 0.75 * q_m, abs=1e-6)


def test_a_batch_by_the_student(tokenizer: Any) -> None:
    """Its prompts are the data's, its answers the student's, ended by the first end and trained alone."""
    student = model(tokenizer)
    torch.manual_seed(0)
    made = by_student(student, asked(), 6, do_sample=True)
    for row, prompt in enumerate(([3, 4, 5], [7, 8])):
        real = made["input_ids"][row][made["attention_mask"][row].bool()].tolist()
        trained = made["labels"][row][made["attention_mask"][row].bool()].tolist()
        assert real[: len(prompt)] == prompt
        answer = real[len(prompt) :]
        assert trained == [-100] * len(prompt) + answer
        assert 1 <= len(answer) <= 6
        assert answer.index(1) == len(answer) - 1 if 1 in answer else len(answer) == 6


def test_samples_follow_the_student_at_the_temperature(tokenizer: Any) -> None:
    """Next tokens of 4,000 draws against softmax(z / T), whatever the model's own generation config says."""
    student, T = model(tokenizer), 0.7
    student.generation_config.top_k = 1
    student.generation_config.repetition_penalty = 5.0
    ids = torch.tensor([[3, 4, 5, 9]]).expand(4000, -1)
    rows = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor([[-100, -100, -100, 9]]).expand(4000, -1)}  # fmt: skip
    torch.manual_seed(1)
    made = by_student(student, rows, 1, do_sample=True, temperature=T)
    drawn = Counter(made["input_ids"][:, 3].tolist())
    with torch.no_grad():
        p = (student(ids[:1, :3]).logits[0, -1] / T).softmax(-1)
    for token in range(24):
        share, wanted = drawn[token] / 4000, p[token].item()
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / 4000) ** 0.5 + 1e-3


def test_the_share_of_batches_that_the_student_writes(tokenizer: Any) -> None:
    """λ by counting; at 0 and 1 without exception."""
    student, teacher = model(tokenizer), model(tokenizer)
    for share in (0.0, 0.3, 1.0):
        recipe, written = fw.GKD(on_policy=share, max_new_tokens=1), 0
        torch.manual_seed(0)
        for _ in range(100):
            found = recipe.shown(asked(), _Writers(asked()))
            written += "by" in found
        assert written == {0.0: 0, 1.0: 100}.get(share, pytest.approx(30, abs=12))
    assert loss_of(student, teacher, fw.GKD(on_policy=0.0), asked(), fw.CausalLM()).item() == pytest.approx(0, abs=1e-5)


class _Writers:
    """Marks what it writes."""

    def __init__(self, batch: dict[str, torch.Tensor]):
        self.batch = batch

    def student(self, batch: Any, new: int, **options: Any) -> Any:
        assert (new, options) == (1, {"do_sample": True, "temperature": 0.9})
        return {**self.batch, "by": torch.ones(())}


def test_the_loss_on_what_it_wrote(tokenizer: Any) -> None:
    """Divergences at the written tokens, a mean an answer, weighed by the data's units; the teacher sees the same."""
    teacher = model(tokenizer)
    student = fw.student(teacher, layers=2)
    recipe = fw.GKD(on_policy=1.0, beta=0.3, temperature=0.8, max_new_tokens=5)
    torch.manual_seed(4)
    torch.rand(())  # what decides who writes
    made = by_student(student, asked(), 5, do_sample=True, temperature=0.8)
    torch.manual_seed(4)
    found, view, units = terms_of(student, teacher, recipe, asked(), fw.CausalLM())
    assert units.tolist() == [2, 2]
    with torch.no_grad():
        s, t = (m(made["input_ids"], made["attention_mask"]).logits[:, :-1] for m in (student, teacher))
    for row in (0, 1):
        kept = made["labels"][row, 1:] != -100
        p, q = (t[row][kept] / 0.8).softmax(-1), (s[row][kept] / 0.8).softmax(-1)
        m = 0.3 * p + 0.7 * q
        wanted = (0.3 * (p * (p / m).log()).sum(-1) + 0.7 * (q * (q / m).log()).sum(-1)).mean()
        assert found["soft"].values[row].item() == pytest.approx(wanted.item(), rel=1e-4)
    assert set(found) == {"soft"}
    assert view.student.logits.requires_grad


def test_dropout_is_off_while_it_writes_and_on_where_it_learns(tokenizer: Any) -> None:
    student = model(tokenizer, attention_dropout=0.9).train()
    greedy = [by_student(student, asked(), 5, do_sample=False)["input_ids"] for _ in range(2)]
    assert torch.equal(*greedy)
    assert torch.equal(greedy[0], by_student(student.eval(), asked(), 5, do_sample=False)["input_ids"])
    student.train()
    by_student(student, asked(), 5)
    assert all(m.training for m in student.modules())
    losses = [loss_of(student, model(tokenizer), fw.GKD(on_policy=0.0), asked(), fw.CausalLM()) for _ in range(2)]
    assert losses[0] != losses[1]


def test_no_gradient_flows_through_what_was_drawn(tokenizer: Any) -> None:
    """The gradient is that of the loss on the written text as data."""
    teacher = model(tokenizer)
    student = fw.student(teacher, layers=2)
    torch.manual_seed(4)
    torch.rand(())
    made = by_student(student, asked(), 5, do_sample=True, temperature=0.9)
    assert not any(t.requires_grad for t in made.values())
    torch.manual_seed(4)
    loss_of(student, teacher, fw.GKD(on_policy=1.0, max_new_tokens=5), asked(), fw.CausalLM()).backward()
    drawn = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    found, _, _ = terms_of(student, teacher, fw.GKD(on_policy=0.0), made, fw.CausalLM())
    (2 * found["soft"].values).sum().backward()  # two units a row in the data
    for name, p in student.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, drawn[name], atol=1e-6)


def test_runs_are_equal_by_seed_and_exact_on_resume(tokenizer: Any, tmp_path: Any) -> None:
    teacher = model(tokenizer)

    def made(output: Any, **values: Any) -> Any:
        student = fw.student(teacher, layers=2)
        fw.distill(student, teacher, prompts(), fw.GKD(max_new_tokens=6), method=fw.LoRA(rank=2, dropout=0.1), steps=6,
                   checkpoint_every=3, output=output, **HOW, **values)  # fmt: skip
        return student(input_ids=asked()["input_ids"]).logits

    one, same, other = made(tmp_path / "a"), made(tmp_path / "b"), made(tmp_path / "c", seed=1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    for file in (tmp_path / "b" / "checkpoints" / "step-6").iterdir():
        file.unlink()
    (tmp_path / "b" / "checkpoints" / "step-6").rmdir()
    assert torch.equal(made(tmp_path / "b", resume=True), one)


def test_training_brings_the_student_to_its_teacher(tokenizer: Any) -> None:
    teacher = model(tokenizer)
    student = fw.student(teacher, layers=2)
    rows = lm_batch()
    before = loss_of(student, teacher, fw.KD(alpha=1.0), rows, fw.CausalLM()).item()
    fw.distill(student, teacher, prompts(), fw.GKD(on_policy=1.0, max_new_tokens=8), steps=30, **HOW | {"lr": 3e-3})
    after = loss_of(student, teacher, fw.KD(alpha=1.0), rows, fw.CausalLM()).item()
    assert after < 0.8 * before


def test_a_row_without_a_prompt_keeps_its_first_token(tokenizer: Any) -> None:
    made = by_student(model(tokenizer), lm_batch(), 3, do_sample=False)
    assert made["input_ids"][:, 0].tolist() == lm_batch()["input_ids"][:, 0].tolist()
    assert made["labels"][:, 0].tolist() == [-100] * 3


def test_an_encoder_and_a_decoder_write(tokenizer: Any) -> None:
    teacher = bart()
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    rows = {**lm_batch(), "labels": torch.tensor([[5, 1], [6, 1], [1, -100]])}
    made = by_student(student, rows, 4, do_sample=False)
    out = student.generate(rows["input_ids"], attention_mask=rows["attention_mask"], max_new_tokens=4, do_sample=False)
    answers = [r[: r.index(1) + 1 if 1 in r else 4] for r in out[:, 1:].tolist()]
    assert made["labels"][made["labels"] != -100].tolist() == [token for answer in answers for token in answer]
    found, _, units = terms_of(student, teacher, fw.GKD(on_policy=1.0, max_new_tokens=4), rows, fw.Seq2Seq())
    assert units.tolist() == [2, 2, 1]
    assert found["soft"].values.shape == (3,)


def test_sequence_distillation_is_cross_entropy_on_the_teachers_text(tokenizer: Any) -> None:
    teacher = model(tokenizer)
    student = fw.student(teacher, layers=2)
    recipe = fw.SequenceKD(max_new_tokens=4, beams=3)
    found, _, _ = terms_of(student, teacher, recipe, asked(), fw.CausalLM())
    for row, prompt in enumerate(([3, 4, 5], [7, 8])):
        out = teacher.generate(torch.tensor([prompt]), max_new_tokens=4, num_beams=3, do_sample=False, pad_token_id=0)
        answer = out[0, len(prompt) :].tolist()
        answer = answer[: answer.index(1) + 1] if 1 in answer else answer
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            log_q = student(ids).logits[0].log_softmax(-1)
        wanted = -sum(log_q[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)) / len(answer)
        assert found["label"].values[row].item() == pytest.approx(wanted, rel=1e-4)


def test_the_base_writes_for_its_adapter(tokenizer: Any) -> None:
    """An adapter's own model as teacher: the text is that of the base."""
    student = model(tokenizer)
    plain = deepcopy(student)
    fw.attach(student, fw.LoRA(rank=2))
    for p in student.parameters():
        if p.requires_grad:
            p.data.add_(0.5)
    recipe = fw.SequenceKD(max_new_tokens=4, beams=1)
    _, own, _ = terms_of(student, student, recipe, asked(), fw.CausalLM(), names=())
    _, apart, _ = terms_of(student, plain, recipe, asked(), fw.CausalLM())
    assert torch.equal(own.asked, apart.asked)
    assert torch.equal(own.teacher.logits, apart.teacher.logits)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"on_policy": 1.5, "beta": -1.0}, r"(?s)recipe\.on_policy.*recipe\.beta"),
        ({"temperature": 0.0}, r"recipe\.temperature"),
        ({"max_new_tokens": 0}, r"recipe\.max_new_tokens"),
    ],
)
def test_bad_values(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fw.GKD(**given)
    if "max_new_tokens" in given:
        with pytest.raises(InputError, match=said):
            fw.SequenceKD(**given)


def test_what_cannot_write(tokenizer: Any, rows: Any) -> None:
    teacher = bert()
    with pytest.raises(InputError, match="no answers in words"):
        fw.distill(fw.student(teacher), teacher, rows, fw.GKD(), fw.Classification(labels=("no", "yes")))
    long = model(tokenizer, max_position_embeddings=4)
    with pytest.raises(InputError, match=r"no room for an answer.*below 4"):
        by_student(long, {**asked(), "labels": torch.full((2, 5), -100)}, 4)


@pytest.mark.parametrize("recipe", [fw.GKD(on_policy=1.0, max_new_tokens=4), fw.SequenceKD(max_new_tokens=4, beams=1)],
                         ids=repr)  # fmt: skip
def test_prompts_need_no_answers_where_a_model_writes_them_all(recipe: Any, tokenizer: Any) -> None:
    teacher = model(tokenizer)
    bare: list[dict[str, Any]] = [{"prompt": row["prompt"] + "\n"} for row in prompts()]
    told = [{"instruction": row["prompt"], "output": None} for row in prompts()]
    for rows in (bare, told):
        run = fw.distill(fw.student(teacher, layers=2), teacher, rows, recipe, steps=3, **HOW)
        assert run.steps == 3
    with pytest.raises(InputError, match="no answers to train on"):
        fw.distill(fw.student(teacher, layers=2), teacher, bare, fw.GKD(on_policy=0.5), steps=3, **HOW)
