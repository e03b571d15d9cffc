"""Distillation as training: each recipe is the sum it says, the teacher stays, what cannot be compared is refused."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from support.distilling import YES_NO, batch, bert, llama, lm_batch, loss_of, terms_of
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, mse_loss

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.pair import Pair
from featherweight.distill.task import Distilled

RECIPES = [fw.KD(), fw.KD(divergence="reverse"), fw.KD(divergence="jsd", beta=0.3, alpha=1.0), fw.DistilBERT(),
           fw.TinyBERT("layers"), fw.TinyBERT("prediction"), fw.MiniLM(), fw.MiniLM(version=2)]  # fmt: skip


def test_distilbert_is_five_two_one() -> None:
    teacher = bert()
    student = fw.student(teacher, layers=2)
    given = batch()
    labels = given.pop("labels")
    with torch.no_grad():
        s, t = (m(**given, output_hidden_states=True) for m in (student, teacher))
    soft = 4 * kl_div((s.logits / 2).log_softmax(-1), (t.logits / 2).softmax(-1), reduction="sum")
    mask = given["attention_mask"]
    apart = 1 - cosine_similarity(s.hidden_states[-1], t.hidden_states[-1], dim=-1)
    cosine = ((apart * mask).sum(1) / mask.sum(1)).sum()
    wanted = 5 * soft + 2 * cross_entropy(s.logits, labels, reduction="sum") + cosine
    assert loss_of(student, teacher, fw.DistilBERT()).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_tinybert_by_hand() -> None:
    """Four layers to two: g(m) = 2 m; scores behind the mask are left out."""
    teacher = bert()
    student = fw.student(teacher, layers=2)
    given = batch()
    del given["labels"]
    seen = []
    for model in (student, teacher):
        raw: list[torch.Tensor] = []
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            own.register_forward_pre_hook(lambda m, args, kw, raw=raw: raw.append(score(m, args[0])), with_kwargs=True)
        with torch.no_grad():
            seen.append((raw, model(**given, output_hidden_states=True).hidden_states))
    (raw_s, h_s), (raw_t, h_t) = seen
    total = torch.zeros(())
    for r, n in enumerate((6, 4, 2)):
        total += mse_loss(h_s[0][r, :n], h_t[0][r, :n])
        for m in (1, 2):
            total += mse_loss(h_s[m][r, :n], h_t[2 * m][r, :n])
            total += mse_loss(raw_s[m - 1][r, :, :n, :n], raw_t[2 * m - 1][r, :, :n, :n])
    student, teacher = deepcopy(student), deepcopy(teacher)
    assert loss_of(student, teacher, fw.TinyBERT("layers")).item() == pytest.approx(total.item(), rel=1e-5)


def score(module: Any, x: torch.Tensor) -> torch.Tensor:
    q, k = (f(x).unflatten(-1, (2, 16)).transpose(1, 2) for f in (module.query, module.key))
    return q @ k.transpose(-1, -2) / 4


MAPS = [(12, 4, [2, 5, 8, 11]), (12, 6, [1, 3, 5, 7, 9, 11]), (24, 6, [3, 7, 11, 15, 19, 23])]


@pytest.mark.parametrize(("teacher", "student", "wanted"), MAPS)
def test_tinybert_map(teacher: int, student: int, wanted: list[int]) -> None:
    assert [j for _, j in fw.TinyBERT("layers").layers(student, teacher)] == wanted
    with pytest.raises(InputError, match="divisor of 12; got 5"):
        fw.TinyBERT("layers").layers(5, 12)


def test_minilm_by_hand() -> None:
    """The last layer's maps, as eager attention gives them, and its values' relations."""
    teacher = bert(attn_implementation="eager")
    student = fw.student(teacher, layers=2)
    given = batch()
    del given["labels"]
    seen = []
    for model in (student, teacher):
        value: list[torch.Tensor] = []
        hook = model.bert.encoder.layer[-1].attention.self.value.register_forward_hook(
            lambda m, a, y, v=value: v.append(y)
        )
        with torch.no_grad():
            made = model(**given, output_attentions=True).attentions[-1]
        seen.append((made, value[0].unflatten(-1, (2, 16)).transpose(1, 2)))
        hook.remove()
    (a_s, v_s), (a_t, v_t) = seen
    total = torch.zeros(())
    for r, n in enumerate((6, 4, 2)):
        rel_s, rel_t = ((v[r, :, :n] @ v[r, :, :n].transpose(1, 2) / 4).softmax(-1) for v in (v_s, v_t))
        for p, q in ((a_t[r, :, :n, :n], a_s[r, :, :n, :n]), (rel_t, rel_s)):
            total += (p * (p.log() - q.log())).sum() / (2 * n)
    assert loss_of(student, teacher, fw.MiniLM()).item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_a_copy_of_the_teacher_has_only_label_loss(recipe: Any) -> None:
    teacher = bert()
    found, view, _ = terms_of(deepcopy(teacher), teacher, recipe)
    entropy = -(view.teacher.logits.softmax(-1) * view.teacher.logits.log_softmax(-1)).sum(-1)
    for name, term in found.items():
        if name != "label":
            rest = term.values - entropy if name == "prediction" else term.values
            assert rest.abs().max() < 1e-5, name


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_padding_changes_nothing(recipe: Any) -> None:
    teacher, student = bert(), fw.student(bert(), layers=2)
    plain, padded = (loss_of(student, teacher, recipe, batch(pad=n)) for n in (0, 3))
    assert padded.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-6)
    assert plain.item() > 1e-3


@pytest.mark.parametrize("recipe", [fw.KD(), fw.DistilBERT(), fw.MiniLM(version=2)], ids=repr)
def test_a_language_model_and_its_padding(recipe: Any) -> None:
    teacher, task = llama(), fw.CausalLM()
    student = fw.student(teacher, layers=2)
    plain, padded = (loss_of(student, teacher, recipe, lm_batch(n), task) for n in (0, 3))
    assert padded.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-6)
    rows = [{k: v[i : i + 1] for k, v in lm_batch().items()} for i in range(3)]
    parts = sum(loss_of(student, teacher, recipe, row, task).item() for row in rows)
    assert parts == pytest.approx(plain.item(), rel=1e-5)  # accumulation: a batch is the sum of its rows


def test_relations_of_a_causal_classifier_hide_the_future() -> None:
    """GPT-2 with a task head: its tokens see only those before them, whatever the task; BERT's see all."""
    import transformers as hf

    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = hf.GPT2Config(vocab_size=24, n_embd=32, n_layer=4, n_head=2, n_positions=64, pad_token_id=0,
                               bos_token_id=1, eos_token_id=1)  # fmt: skip
        teacher = hf.GPT2ForSequenceClassification(config).eval()
    student = fw.student(teacher, layers=2)
    for recipe in (fw.MiniLM(), fw.MiniLM(version=2)):  # version 1 proves its maps against GPT-2's own
        _, view, _ = Distilled(YES_NO, recipe, "", Pair(teacher)).terms(student, batch())
        assert torch.equal(view.keys[0], torch.ones(6, 6).tril().bool())
    _, view, _ = Distilled(YES_NO, fw.MiniLM(), "", Pair(bert())).terms(fw.student(bert()), batch())
    assert view.keys.shape == (3, 1, 6)


def test_logits_of_trained_positions_alone() -> None:
    teacher = llama()
    student = fw.student(teacher, layers=2)
    given = lm_batch()
    with torch.no_grad():
        s, t = (m(given["input_ids"], given["attention_mask"]).logits[:, :-1] for m in (student, teacher))
    kept = given["labels"][:, 1:] != -100
    wanted = 4 * kl_div((s[kept] / 2).log_softmax(-1), (t[kept] / 2).softmax(-1), reduction="sum")
    made = loss_of(student, teacher, fw.KD(alpha=1.0), given, fw.CausalLM())
    assert made.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("recipe", [fw.DistilBERT(), fw.TinyBERT("layers"), fw.MiniLM()], ids=repr)
def test_training_lowers_the_loss_and_leaves_the_teacher(recipe: Any, tokenizer: Any, rows: Any) -> None:
    teacher = bert().train()
    teacher.tokenizer = tokenizer
    before = deepcopy(teacher.state_dict())
    student = fw.student(teacher, layers=2)
    run = fw.distill(student, teacher, rows, recipe, YES_NO, steps=12, batch=8, lr=1e-3, log=1, threads=1)
    assert run.steps == 12
    losses = [line["loss"] for line in run.history]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert teacher.training
    assert student.task == YES_NO


def test_an_adapter_only_student_saves_and_resumes(tokenizer: Any, rows: Any, tmp_path: Any) -> None:
    teacher = bert()
    teacher.tokenizer = tokenizer

    def made(output: Any, steps: int, **values: Any) -> Any:
        student = fw.student(teacher, layers=2)
        fw.distill(student, teacher, rows, fw.KD(), YES_NO, method=fw.LoRA(rank=2), output=output, steps=4, batch=8,
                   checkpoint_every=2, threads=1, **values)  # fmt: skip
        return student

    whole = made(tmp_path / "a", 4)
    for folder in (tmp_path / "a" / "checkpoints").glob("step-4"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = made(tmp_path / "a", 4, resume=True)
    one, other = (whole(**{k: v for k, v in batch().items() if k != "labels"}).logits for whole in (whole, again))
    assert torch.equal(one, other)

    other_teacher = bert()
    other_teacher.classifier.weight.data += 1
    student = fw.student(teacher, layers=2)
    with pytest.raises(InputError, match="task"):
        fw.distill(student, other_teacher, rows, fw.KD(), YES_NO, method=fw.LoRA(rank=2), output=tmp_path / "a",
                   steps=4, batch=8, checkpoint_every=2, threads=1, resume=True, tokenizer=tokenizer)  # fmt: skip


def test_a_saved_student_is_a_model_like_any(tokenizer: Any, rows: Any, tmp_path: Any) -> None:
    """The base and its adapter load from two folders, with the task itself on record."""
    teacher = bert()
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    student.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    student.name_or_path = str(tmp_path / "base")
    fw.distill(student, teacher, rows, fw.KD(), YES_NO, method=fw.LoRA(rank=2), output=tmp_path / "lora", steps=2,
               batch=8, threads=1)  # fmt: skip
    loaded = fw.load_model(tmp_path / "lora")
    assert loaded.task == YES_NO
    given = {k: v for k, v in batch().items() if k != "labels"}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**given).logits, student(**given).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tokenizer: Any, rows: Any) -> None:
    """bf16 arithmetic, and bf16 weights: the maps are proven all the same, and the loss is fp32."""
    teacher = bert().to(dtype)
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    assert student.dtype == dtype
    wanted = loss_of(fw.student(bert(), layers=2), bert(), fw.MiniLM()).item()
    found = loss_of(student, teacher, fw.MiniLM())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, rel=0.05)
    run = fw.distill(student, teacher, rows, fw.MiniLM(), YES_NO, steps=2, batch=8, threads=1, precision="bf16")
    assert run.steps == 2


def test_two_stages_are_two_runs(tokenizer: Any, rows: Any) -> None:
    """The second goes on with what the first trained; merged, the student is a plain model."""
    teacher = bert()
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    for stage in ("layers", "prediction"):
        fw.distill(student, teacher, rows, fw.TinyBERT(stage), YES_NO, steps=2, batch=8, threads=1)
    given = {k: v for k, v in batch().items() if k != "labels"}
    trained = student(**given).logits
    plain = fw.merge(student)
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert torch.allclose(plain(**given).logits, trained, atol=1e-5)
    assert not torch.allclose(trained, fw.student(teacher, layers=2)(**given).logits, atol=1e-3)


def test_a_quantized_teacher_teaches(tokenizer: Any, rows: Any) -> None:
    teacher = bert()
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    fw.quantize(teacher, fw.Absmax())
    run = fw.distill(student, teacher, rows, fw.MiniLM(version=2), YES_NO, steps=2, batch=8, threads=1)
    assert run.steps == 2


@pytest.mark.parametrize(
    ("student", "recipe", "said"),
    [
        ({"vocab_size": 30}, fw.KD(), "expected 24; got 30; .*teacher wrote"),
        ({"num_attention_heads": 4}, fw.MiniLM(), "2 heads; got 4; .*version=2"),
        ({"num_labels": 3}, fw.KD(), "labels of student and teacher"),
        ({"id2label": {0: "yes", 1: "no"}}, fw.KD(), "not the same in one order"),
        ({"num_hidden_layers": 3}, fw.TinyBERT("layers"), "divisor of 4; got 3 layers"),
    ],
)  # fmt: skip
def test_unlike_models_are_refused(student: dict[str, Any], recipe: Any, said: str, rows: Any) -> None:
    teacher = bert(id2label={0: "no", 1: "yes"})
    with pytest.raises(InputError, match=said):
        fw.distill(bert(**{"id2label": {0: "no", 1: "yes"}} | student), teacher, rows, recipe, YES_NO)


def test_other_refusals(rows: Any, tokenizer: Any) -> None:
    teacher, student = bert(), fw.student(bert(), layers=2)
    with pytest.raises(InputError, match="the student is the teacher"):
        fw.distill(teacher, teacher, rows)
    with pytest.raises(InputError, match="no distribution to soften"):
        fw.distill(student, teacher, rows, fw.KD(), fw.Regression())
    with pytest.raises(InputError, match="there is no teacher"):
        Distilled().loss(student, batch())
    teacher.tokenizer, student.tokenizer = tokenizer, deepcopy(tokenizer)
    student.tokenizer.add_tokens(["new"])
    with pytest.raises(InputError, match=r"different tokenizers.*25 and 24 tokens"):
        fw.distill(student, teacher, rows, fw.KD(), YES_NO)
    for bad in ({"divergence": "k"}, {"alpha": 2.0}):
        with pytest.raises(InputError, match="recipe"):
            fw.KD(**bad)
    with pytest.raises(InputError, match=r"recipe\.stage"):
        fw.TinyBERT("both")
    with pytest.raises(InputError, match=r"recipe\.version"):
        fw.MiniLM(version=3)
