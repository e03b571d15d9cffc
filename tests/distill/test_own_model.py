"""Students that are adapters: of a smaller base, of a shorter one, and of the teacher's own base."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from support.distilling import YES_NO, batch, bert, given, llama, lm_batch, prompts, terms_of

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.switch import switch_of
from featherweight.distill.pair import Pair
from featherweight.distill.task import Distilled

RUN: dict[str, Any] = {"steps": 6, "batch": 8, "threads": 1, "lr": 1e-2}


def taught(tokenizer: Any, method: Any, name: str = "tuned") -> Any:
    """A model with an adapter that makes a difference."""
    model = bert()
    model.tokenizer, model.task = tokenizer, YES_NO
    with torch.random.fork_rng():
        torch.manual_seed(3)
        fw.attach(model, method, name)
        for p in model.parameters():
            if p.requires_grad:
                p.data.add_(0.3 * torch.randn_like(p))
    return model


def answers(model: Any) -> torch.Tensor:
    """(3, 2) probabilities."""
    with torch.no_grad():
        return model.eval()(**given()).logits.softmax(-1)


def tensors(model: Any, name: str | None = None) -> dict[str, torch.Tensor]:
    """Copies of the base's tensors, or of one adapter's."""
    own = f".adapters.{name}." if name else ".adapters."
    return {k: v.clone() for k, v in model.named_parameters() if (own in k) == bool(name)}


def test_the_bare_base_teaches_its_adapter(tokenizer: Any) -> None:
    """Teacher and student are one model: what the teacher shows is what a copy without the adapter shows."""
    model = taught(tokenizer, fw.LoRA(rank=2))
    plain = deepcopy(model)
    fw.detach(plain)
    for recipe in (fw.KD(), fw.DistilBERT(), fw.TinyBERT("layers"), fw.MiniLM(), fw.MiniLM(version=2)):
        own, _, _ = terms_of(model, model, recipe, names=())
        apart, _, _ = terms_of(model, plain, recipe)
        assert own.keys() == apart.keys()
        for name in own:
            assert torch.equal(own[name].values, apart[name].values), name
    assert switch_of(model).active == ("tuned",)


def test_the_teacher_has_no_dropout_and_no_gradient_where_the_student_has() -> None:
    model = bert(hidden_dropout_prob=0.5)
    fw.attach(model, fw.LoRA(rank=2))
    model.train()
    task = Distilled(YES_NO, fw.KD(alpha=1.0), "", Pair(model, ()))
    views = [task.terms(model, batch())[1] for _ in range(2)]
    assert torch.equal(views[0].teacher.logits, views[1].teacher.logits)
    assert not torch.equal(views[0].student.logits, views[1].student.logits)
    assert not views[0].teacher.logits.requires_grad
    assert views[0].student.logits.requires_grad
    assert all(m.training for m in model.modules())
    task.loss(model, batch())[0].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_an_untrained_adapter_is_its_base() -> None:
    """Identity law: nothing to learn from the base before the first step."""
    model = bert()
    fw.attach(model, fw.LoRA(rank=2), head=False)
    found, _, _ = terms_of(model, model, fw.KD(), names=())
    assert found["soft"].values.abs().max() < 1e-7


@pytest.mark.parametrize("tuned", [fw.LoRA(rank=4), fw.Houlsby(), fw.Prefix(tokens=3)], ids=repr)
def test_a_tuned_adapter_back_into_the_base(tuned: Any, tokenizer: Any, rows: Any) -> None:
    """Also of methods that cannot be merged: all weights learn what the adapter does, and merge into a plain model."""
    model = taught(tokenizer, tuned)
    before, adapter, wanted = tensors(model), tensors(model, "tuned"), answers(model)
    run = fw.distill(model, "tuned", rows, fw.KD(alpha=1.0), method=fw.Full(), name="inside", log=1,
                     **{**RUN, "steps": 40, "lr": 1e-3})  # fmt: skip
    losses = [line["loss"] for line in run.history]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    assert all(torch.equal(v, before[k]) for k, v in tensors(model).items())
    assert all(torch.equal(v, adapter[k]) for k, v in tensors(model, "tuned").items())
    plain = fw.merge(model)
    assert type(plain).__name__ == "BertForSequenceClassification"
    assert not any("adapters" in k for k in plain.state_dict())
    apart = (answers(plain) - wanted).abs().max()
    assert apart < 0.5 * (answers(bert()) - wanted).abs().max()


def test_into_a_smaller_adapter(tokenizer: Any, rows: Any) -> None:
    model = taught(tokenizer, fw.LoRA(rank=8))
    before, wanted, base = tensors(model, "tuned"), answers(model), answers(bert())
    fw.distill(model, "tuned", rows, fw.KD(alpha=1.0), method=fw.LoRA(rank=1), name="small", **{**RUN, "steps": 40})
    assert (answers(model) - wanted).abs().max() < 0.5 * (base - wanted).abs().max()
    assert all(torch.equal(v, before[k]) for k, v in tensors(model, "tuned").items())
    small, large = ({k: v.numel() for k, v in tensors(model, n).items() if "lora" in k} for n in ("small", "tuned"))
    assert sum(small.values()) * 8 == sum(large.values())


def test_several_adapters_teach_together(tokenizer: Any) -> None:
    """A stack of two, and its student a third."""
    model = taught(tokenizer, fw.LoRA(rank=2))
    fw.attach(model, fw.IA3(), "scaled", stack=True)
    with torch.no_grad():
        stacked = model(**given()).logits
    fw.attach(model, fw.LoRA(rank=2), "student")
    _, view, _ = terms_of(model, model, fw.KD(), names=("tuned", "scaled"))
    assert torch.equal(view.teacher.logits, stacked)


def test_a_run_with_its_own_teacher_resumes(tokenizer: Any, rows: Any, tmp_path: Any) -> None:
    def made(**values: Any) -> Any:
        model = taught(tokenizer, fw.LoRA(rank=4))
        fw.distill(model, "tuned", rows, fw.KD(), method=fw.LoRA(rank=2, dropout=0.1), name="small",
                   output=tmp_path / "a", checkpoint_every=2, **{**RUN, "steps": 4}, **values)  # fmt: skip
        return answers(model)

    whole = made()
    for file in (tmp_path / "a" / "checkpoints" / "step-4").iterdir():
        file.unlink()
    (tmp_path / "a" / "checkpoints" / "step-4").rmdir()
    assert torch.equal(made(resume=True), whole)
    other = taught(tokenizer, fw.LoRA(rank=4))
    for name, p in other.named_parameters():
        if "lora_B" in name:
            p.data += 1
    with pytest.raises(InputError, match="task"):
        fw.distill(other, "tuned", rows, fw.KD(), method=fw.LoRA(rank=2, dropout=0.1), name="small",
                   output=tmp_path / "a", checkpoint_every=2, resume=True, **{**RUN, "steps": 4})  # fmt: skip


@pytest.mark.parametrize("recipe", [fw.DistilBERT(), fw.TinyBERT("layers"), fw.MiniLM()], ids=repr)
def test_lora_on_fewer_layers(recipe: Any, tokenizer: Any, rows: Any) -> None:
    """The same base with fewer layers, its weights frozen."""
    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    student = fw.student(teacher, layers=2)
    before = {k: v.clone() for k, v in student.named_parameters()}
    run = fw.distill(student, teacher, rows, recipe, method=fw.LoRA(rank=4), log=1, **RUN)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert all(torch.equal(v, before[k]) for k, v in student.named_parameters() if k in before)
    assert run.trainable < 0.2 * run.total


def test_lora_on_a_smaller_base(tokenizer: Any, rows: Any) -> None:
    """Another model of the same tokenizer, narrower and with fewer heads."""
    teacher, student = bert(), bert(hidden_size=16, num_attention_heads=1, num_hidden_layers=2)
    for model in (teacher, student):
        model.tokenizer, model.task = tokenizer, YES_NO
    for recipe in (fw.KD(), fw.MiniLM(version=2)):
        name = type(recipe).__name__
        run = fw.distill(student, teacher, rows, recipe, log=1, method=fw.LoRA(rank=2), name=name, **RUN)
        assert run.history[-1]["loss"] < run.history[0]["loss"]


def test_wrong_names(tokenizer: Any, rows: Any) -> None:
    model = taught(tokenizer, fw.LoRA(rank=2))
    with pytest.raises(InputError, match=r"no adapter of this name teaches.*'tune'.*did you mean 'tuned'"):
        fw.distill(model, "tune", rows, method=fw.LoRA(rank=2), name="small")
    with pytest.raises(InputError, match=r"its own teacher.*'tuned'"):
        fw.distill(model, "tuned", rows)
    with pytest.raises(InputError, match=r"the student is the teacher.*their names"):
        fw.distill(model, model, rows)


# Context distillation


def test_the_teacher_reads_the_context_and_the_student_does_not(tokenizer: Any) -> None:
    """What is compared is the teacher's answer behind context and prompt, token by token."""
    from featherweight.data.load import load
    from featherweight.data.rows import examples
    from featherweight.distill.context import edit_of

    model, task = llama(), fw.CausalLM()
    data = load(prompts())
    edit = edit_of(task, examples(data.train, data.shape), tokenizer, "staff slow tasty dull\n")
    assert (edit.at, edit.removed) == (0, 0)
    assert tokenizer.decode(edit.added) == "staff slow tasty dull"
    fw.attach(model, fw.LoRA(rank=2))
    rows = lm_batch()
    rows["labels"][:, :1] = -100  # the first token is the prompt
    _, view, _ = terms_of(model, model, fw.KD(), rows, task, names=(), context=edit)
    for row, n in enumerate((6, 4, 2)):
        ids = torch.tensor([[*edit.added, *rows["input_ids"][row, :n].tolist()]])
        with torch.no_grad(), fw.switch(model, None):
            alone = model(ids).logits[0]
        start = sum((6, 4, 2)[:row]) - row
        assert torch.allclose(view.teacher.logits[start : start + n - 1], alone[4 : 3 + n], atol=1e-5)


def test_a_context_goes_into_an_adapter(tokenizer: Any) -> None:
    """Trained, the student without the context is nearer to its base with it than it was."""
    model = llama()
    model.tokenizer = tokenizer
    context = "cheap river city pub inn\n"
    run = fw.distill(model, None, prompts(), fw.KD(alpha=1.0, temperature=1.0), context=context, log=1,
                     method=fw.LoRA(rank=4), **{**RUN, "steps": 40})  # fmt: skip
    losses = [line["loss"] for line in run.history]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_a_system_text_is_the_context_of_a_conversation(tokenizer: Any) -> None:
    """Also where the template has a system text of its own, which it takes the place of."""
    from featherweight.data.types import Example
    from featherweight.distill.context import edit_of

    words = deepcopy(tokenizer)
    words.chat_template = (
        "{% if messages[0]['role'] != 'system' %}name food{% endif %}"
        "{% for m in messages %} {{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    talks = [Example(f"rows[{i}]", messages=({"role": "user", "content": q}, {"role": "assistant", "content": "good"}))
             for i, q in enumerate(("area price", "near", "river city pub"))]  # fmt: skip
    edit = edit_of(fw.CausalLM(), talks, words, "be warm")
    assert edit.removed == 2
    assert words.decode(edit.added) == "<unk> warm"
    with pytest.raises(InputError, match="take no context"):
        edit_of(YES_NO, [Example("rows[0]", text="name")], words, "be warm")


def test_a_context_has_tokens_of_its_own(tokenizer: Any) -> None:
    """Behind the opening token, and never joined to the prompt's first word."""
    from featherweight.data.types import Example, Turn
    from featherweight.distill.context import edit_of

    rows = [Example(f"r{i}", turns=(Turn(t, False), Turn(" good", True))) for i, t in enumerate(("name", "area"))]
    edit = edit_of(fw.CausalLM(), rows, tokenizer, "pub inn")
    assert (edit.at, edit.removed, edit.added) == (0, 0, tuple(tokenizer("pub inn")["input_ids"]))
    assert edit.row([3, 4]) == [*edit.added, 3, 4]


def test_a_system_text_that_runs_together_with_the_first_message(tokenizer: Any) -> None:
    from featherweight.data.types import Example
    from featherweight.distill.context import edit_of

    joined = deepcopy(tokenizer)
    joined.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    talks = [Example(f"r{i}", messages=({"role": "user", "content": q}, {"role": "assistant", "content": " good"}))
             for i, q in enumerate(("name", "area"))]  # fmt: skip
    with pytest.raises(InputError, match=r"r1.*not the same tokens.*line break"):
        edit_of(fw.CausalLM(), talks, joined, "pubs")


def test_a_context_that_nothing_reads(tokenizer: Any, rows: Any) -> None:
    model = llama(max_position_embeddings=8)
    model.tokenizer = tokenizer
    how: dict[str, Any] = {"method": fw.LoRA(rank=2), **RUN}
    with pytest.raises(InputError, match=r"relate to more.*DistilBERT"):
        fw.distill(model, None, prompts(), fw.MiniLM(version=2), context="good", **how)
    with pytest.raises(InputError, match=r"longer than the teacher reads; expected 8 tokens; got 5 and 6.*length=3"):
        fw.distill(model, None, prompts(), context="good cheap food near river\n", **how)
    with pytest.raises(InputError, match="the context is empty"):
        fw.distill(model, None, prompts(), context=" ", **how)
    classifier = bert()
    classifier.tokenizer = tokenizer
    with pytest.raises(InputError, match=r"take no context|does not read a context"):
        fw.distill(classifier, None, rows, context="good", task=YES_NO, **how)


def test_a_cached_context_is_the_context(tokenizer: Any, tmp_path: Any) -> None:
    """The teacher's outputs from disk train to the same bits as computed ones."""

    def losses(cache: Any) -> list[float]:
        model = llama()
        model.tokenizer = tokenizer
        run = fw.distill(model, None, prompts(), fw.KD(alpha=1.0), context="cheap inn\n", method=fw.LoRA(rank=2), log=1,
                         cache=cache, **RUN)  # fmt: skip
        return [line["loss"] for line in run.history]

    computed = losses(None)
    assert losses(tmp_path / "kept") == computed
    assert losses(tmp_path / "kept") == computed


def test_every_term_is_in_the_log(tokenizer: Any, rows: Any) -> None:
    """Raw and weighted, so that one which drowns the others is seen; they add up to the loss."""
    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    run = fw.distill(fw.student(teacher), teacher, rows, fw.DistilBERT(), log=1, accumulate=2, **RUN)
    for line in run.history:
        terms = line["terms"]
        assert list(terms) == ["soft", "label", "cosine"]
        assert sum(t["weighted"] for t in terms.values()) == pytest.approx(line["loss"], rel=1e-5)
        assert [round(t["weighted"] / t["raw"], 4) for t in terms.values()] == [5, 2, 1]


def test_what_each_term_pulls_at_the_start(tokenizer: Any, rows: Any, capsys: Any) -> None:
    """Norms of each weighted term's gradient, by backward of that term alone; said before the first step, which they
    do not change."""
    from featherweight.distill.balance import gradient_norms

    teacher = bert()
    teacher.tokenizer, teacher.task = tokenizer, YES_NO
    student = fw.attach(fw.student(teacher, layers=2), fw.LoRA(rank=2), head=False)
    task = Distilled(YES_NO, fw.DistilBERT(), "", Pair(teacher))
    found = gradient_norms(task, student, batch())
    assert list(found) == ["soft", "label", "cosine"]
    for name, norm in found.items():
        student.zero_grad()
        term = task.terms(student, batch())[0][name]
        (term.weight * term.values.mean()).backward()
        wanted = sum(p.grad.square().sum() for p in student.parameters() if p.grad is not None) ** 0.5
        assert norm == pytest.approx(float(wanted), rel=1e-5)

    def run(recipe: Any) -> Any:
        made = fw.student(teacher, layers=2)
        return fw.distill(made, teacher, rows, recipe, log=1, method=fw.LoRA(rank=2, dropout=0.2), **RUN)

    run(fw.DistilBERT())
    assert "gradient norms of the terms at the start: " in capsys.readouterr().err
    run(fw.MiniLM(version=2))
    assert "value" in capsys.readouterr().err
    run(fw.KD(alpha=1.0))
    assert "gradient norms" not in capsys.readouterr().err
