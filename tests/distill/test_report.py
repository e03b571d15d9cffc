"""The report: every number by hand or by an outsider, and what cannot be reported refused."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from scipy.stats import binomtest
from support.distilling import YES_NO, bert, llama

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.report import picture
from featherweight.distill.report.compared import calibration_error, difference, mean_difference, share
from featherweight.distill.report.cost import latencies, parameters, ratio, stored


@pytest.fixture
def teacher(tokenizer: Any) -> Any:
    made = bert()
    made.tokenizer, made.task = tokenizer, YES_NO
    made.config.id2label = {0: "no", 1: "yes"}
    return made


def report(student: Any, teacher: Any, rows: Any, **given: Any) -> Any:
    return fw.distill_report(student, teacher, rows, rounds=2, **given)


def test_calibration_by_hand() -> None:
    """Two bins: (0.5, 1] holds .6 right, .8 wrong, .9 right: |2/3 - 23/30| · 3/4; [0, .5] holds .3 wrong: .3 · 1/4."""
    sure, right = torch.tensor([0.6, 0.8, 0.9, 0.3]), torch.tensor([True, False, True, False])
    assert calibration_error(sure, right, 2) == pytest.approx(abs(2 / 3 - 2.3 / 3) * 3 / 4 + 0.3 / 4, rel=1e-6)
    assert calibration_error(torch.ones(5), torch.ones(5, dtype=torch.bool)) == 0
    torch.manual_seed(0)
    sure, right = torch.rand(500), torch.rand(500) < 0.7
    total = 0.0
    for low in range(15):
        inside = [(s, r) for s, r in zip(sure.tolist(), right.tolist(), strict=True) if low / 15 < s <= (low + 1) / 15]
        total += abs(sum(r for _, r in inside) - sum(s for s, _ in inside)) / 500
    assert calibration_error(sure, right) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 10), (912, 1000)])
def test_shares_are_wilson_s(hits: int, n: int) -> None:
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert share(hits, n)[1:] == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_paired_difference_by_hand() -> None:
    """b = 6, c = 2 of n = 20: middle 4/22; √(9 - 16/22) / 22 · 1.96 around it."""
    first = torch.tensor([True] * 6 + [False] * 2 + [True] * 8 + [False] * 4)
    second = torch.tensor([False] * 6 + [True] * 2 + [True] * 8 + [False] * 4)
    found = difference(first, second)
    around = 1.959964 * math.sqrt(9 - 16 / 22) / 22
    assert found == pytest.approx((0.2, 4 / 22 - around, 4 / 22 + around), rel=1e-6)
    assert difference(second, first).value == -found.value
    same = difference(first, first)
    assert same.value == 0
    assert -same.low == same.high > 0  # equal answers to few rows do not show that two models are equal


def test_intervals_cover() -> None:
    """Of 1,000 pairs with known difference about 950 intervals hold it."""
    torch.manual_seed(0)
    held = 0
    for _ in range(1000):
        both = torch.rand(60)
        first, second = both < 0.8, both.roll(0) < 0.7
        second = second ^ (torch.rand(60) < 0.1)
        true = 0.8 - (0.7 * 0.9 + 0.3 * 0.1)
        found = difference(first, second)
        held += found.low <= true <= found.high
    assert 925 <= held <= 985


def test_mean_difference_by_hand() -> None:
    found = mean_difference(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 2.0]))
    assert found == pytest.approx((1.0, 1 - 1.959964 / 3**0.5, 1 + 1.959964 / 3**0.5), rel=1e-6)


def test_published_counts() -> None:
    import transformers as hf

    with torch.device("meta"):
        base, gpt2 = hf.BertModel(hf.BertConfig()), hf.GPT2LMHeadModel(hf.GPT2Config())
    tables = (30522 + 512 + 2) * 768
    assert parameters(base) == (109_482_240 - tables, tables)
    tables = (50257 + 1024) * 768
    assert parameters(gpt2) == (124_439_808 - tables, tables)  # the tied head is the embedding


@pytest.mark.parametrize("quantized", [False, True])
def test_bytes_are_those_of_the_file(quantized: bool, teacher: Any, tmp_path: Path) -> None:
    if quantized:
        fw.quantize(teacher, fw.NF4(block=32))
    teacher.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        written = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118  # it has no iterator
    assert stored(teacher) == written
    before = parameters(teacher)
    fw.attach(teacher, fw.LoRA(rank=2), head=False)
    own = sum(p.numel() for p in teacher.parameters() if p.requires_grad)
    assert parameters(teacher) == (before[0] + own, before[1])
    assert stored(teacher) == written + 4 * own


def test_a_copy_keeps_everything(teacher: Any, rows: Any) -> None:
    copy = deepcopy(teacher)
    copy.tokenizer, copy.task = teacher.tokenizer, YES_NO
    found = report(copy, teacher, rows, control=copy)
    assert (found.agreement.value, found.kl, found.lost.value, found.gained.value) == (1, 0, 0, 0)
    assert found.kept(found.student) == 100
    assert found.student.scores == found.teacher.scores
    assert found.saved.value == 0


def test_agreement_and_scores_by_hand(teacher: Any, rows: Any) -> None:
    student = fw.student(teacher, layers=1)
    found = report(student, teacher, rows, batch=5)
    given = teacher.tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    given.pop("token_type_ids", None)
    with torch.no_grad():
        p, q = (model(**given).logits.double().softmax(-1) for model in (teacher, student))
    labels = torch.tensor([row["label"] == "yes" for row in rows]).long()
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    assert found.agreement.value == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    right = [(x.argmax(-1) == labels).double() for x in (p, q)]
    assert found.lost.value == pytest.approx(float((right[1] - right[0]).mean()))
    assert found.teacher.scores["accuracy"] == pytest.approx(float(right[0].mean()))
    assert found.kept(found.student) == pytest.approx(100 * float(right[1].mean() / right[0].mean()))
    by_name = {c.name: c for c in found.classes}
    for number, name in enumerate(("no", "yes")):
        assert by_name[name].rows == int((labels == number).sum())
        assert by_name[name].student == pytest.approx(float(right[1][labels == number].mean()))
    assert [c.difference.value for c in found.classes] == sorted(c.difference.value for c in found.classes)
    assert fw.evaluate(student, rows, YES_NO)["accuracy"] == found.student.scores["accuracy"]


def test_a_language_model(tokenizer: Any, rows: Any) -> None:
    teacher = llama()
    teacher.tokenizer = tokenizer
    texts = [{"text": row["text"]} for row in rows]
    student = fw.student(teacher, layers=2)
    found = report(student, teacher, texts, task=fw.CausalLM())
    assert found.metric == "loss"
    scored = {name: fw.evaluate(m, texts, fw.CausalLM()).loss for name, m in (("t", teacher), ("s", student))}
    assert found.student.scores["loss"] == pytest.approx(scored["s"], rel=1e-5)
    assert found.kept(found.student) == pytest.approx(100 * math.exp(scored["t"] - scored["s"]), rel=1e-4)
    assert found.units == sum(len(row["text"].split()) for row in rows)  # every token but the first, and the end
    assert found.classes == ()


def test_speeds_are_ratios_of_neighbors(teacher: Any, rows: Any) -> None:
    student = fw.student(teacher, layers=1)
    batch = dict(teacher.tokenizer([row["text"] for row in rows[:4]], padding=True, return_tensors="pt"))
    order: list[str] = []
    for name, model in (("t", teacher), ("s", student)):
        model.register_forward_pre_hook(lambda *a, name=name, **k: order.append(name))
    times = latencies({"t": teacher, "s": student}, batch, YES_NO, rounds=3)
    assert {name: len(t) for name, t in times.items()} == {"t": 3, "s": 3}
    assert "".join(order) == "tssttsstts"  # two rounds to warm up, turned around each time
    assert ratio([2.0, 4.0, 6.0], [1.0, 1.0, 2.0]) == pytest.approx((3.0, 2.0, 4.0))


def test_what_it_says_and_draws(teacher: Any, rows: Any, tmp_path: Path) -> None:
    student, control = fw.student(teacher, layers=2), fw.student(teacher, layers=2)
    found = report(student, teacher, rows, control=control)
    said = str(found)
    for words in ("labels alone", "times as fast", "24 answers in 24 rows of train", "ECE, 15 bins",
                  "would by chance", "rows that were trained on", "24 answers: the intervals say"):  # fmt: skip
        assert words in said, words
    assert max(map(len, said.splitlines())) <= 130
    json.dumps(found.to_dict(), allow_nan=False)
    assert picture(found, tmp_path / "a" / "r.png").read_bytes().startswith(b"\x89PNG")
    first, again = picture(found, tmp_path / "a.svg").read_text(), picture(found, tmp_path / "b.svg").read_text()
    assert first == again
    with pytest.raises(InputError, match=r"unknown kind of picture; expected \.png or \.svg"):
        picture(found, tmp_path / "r.gif")


def test_what_cannot_be_reported(teacher: Any, tokenizer: Any, rows: Any) -> None:
    import transformers as hf

    student = fw.student(teacher, layers=1)
    with pytest.raises(InputError, match="nothing to compare with"):
        report(student, teacher, [{"text": row["text"]} for row in rows])
    with pytest.raises(InputError, match="too few rounds"):
        fw.distill_report(student, teacher, rows, rounds=1)
    scores = hf.BertForSequenceClassification(hf.BertConfig(**{**teacher.config.to_dict(), "num_labels": 1}))
    scores.tokenizer = tokenizer
    with pytest.raises(InputError, match="no distribution that a student could agree with"):
        report(scores, scores, [{"text": row["text"], "score": 0.5} for row in rows], task=fw.Regression())
    student.to("meta")
    with pytest.raises(InputError, match=r"on several devices.*teacher on cpu, student on meta"):
        report(student, teacher, rows)
