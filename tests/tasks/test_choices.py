"""Rank classification: one pass per text equals every text with every choice; T-Few's loss; training, adapters."""

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.load import load
from featherweight.data.rows import examples
from featherweight.data.types import Example

ROWS = [
    Example("f:1", "Lily went to the", label=1, choices=("park.", "big red park with a dog", "sky")),
    Example("f:2", "Once upon a time, there was a girl named", label=0, choices=("Lily", "a cat and his friend")),
    Example("f:3", "Tom", label=2, choices=("was sad.", "ran.", "liked to play", "saw it and said no")),
]


@pytest.fixture(scope="module")
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0,
                      decoder_start_token_id=0, eos_token_id=2, dropout_rate=0.0)  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.shared.weight)
    return model


def fresh(model):
    from copy import deepcopy

    return deepcopy(model)


def every_pair(task, model, rows):
    """log p of each choice's tokens, one model call per text and choice, without pads and without a cache."""
    found = []
    for row in rows:
        for choice in row.choices:
            ids, y = torch.tensor([row.input_ids]), torch.tensor([choice])
            if task.auto == "AutoModelForCausalLM":
                logits = model(input_ids=torch.cat([ids, y], 1)[:, :-1]).logits[:, -y.shape[1] :]
            else:
                logits = model(input_ids=ids, labels=y).logits
            found.append(logits.log_softmax(-1).gather(-1, y[..., None])[0, :, 0])
    return found


def model_of(kind, stories, t5):
    return (fw.Choices(), fresh(stories)) if kind == "decoder" else (fw.Seq2SeqChoices(), fresh(t5))


METHODS = {
    "none": None, "lora": fw.LoRA(rank=2), "ia3": fw.IA3(), "prompt": fw.Prompt(tokens=3),
    "prefix": fw.Prefix(tokens=3),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_shared_texts_score_what_every_pair_scores(kind, method, stories, t5, stories_tokenizer):
    task, model = model_of(kind, stories, t5)
    if METHODS[method] is not None:
        fw.attach(model, METHODS[method], "a")
        for p in model.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p, 0.5, 0.5)
    rows = task.encode_all(ROWS, stories_tokenizer, None)
    for kind, bound in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model.to(kind).eval()
        with torch.no_grad():
            log_p, log_not, real = task.tokens(model, collate(rows, 0).tensors)
            wanted = torch.cat(every_pair(task, model, rows))
        assert real.sum() == len(wanted)
        assert ((log_p[real] - wanted).abs() / wanted.abs().clamp_min(1)).max() < bound
    assert (log_not[real] - torch.log1p(-wanted.exp())).abs().max() < 1e-8


def many(seed=0):
    """Rows of 2, 40 and 7 choices of 1 to 9 tokens, behind texts of 1 to 20."""
    from featherweight.data.types import Encoded

    noise = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(3, 500, (n,), generator=noise).tolist()

    return [Encoded(f"f:{n}", ids(length), 0, None, choices=[ids(1 + i % 9) for i in range(n)])
            for n, length in ((2, 20), (40, 1), (7, 9))]  # fmt: skip


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("room", [1, 200, 1 << 15])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_many_choices_in_pieces_score_what_every_pair_scores(kind, room, padding, stories, t5, monkeypatch):
    """However many fit at once, and on whichever side the texts are padded."""
    from featherweight.tasks import shared_context

    monkeypatch.setattr(shared_context, "COPIED", room)
    task, model = model_of(kind, stories, t5)
    rows, model = many(), model.double()
    batch = collate(rows, 0).tensors
    if padding == "left":
        order = batch["attention_mask"].argsort(dim=1, stable=True)
        batch |= {name: batch[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    calls = []
    hook = (model.get_decoder() if kind == "encoder-decoder" else model.model).register_forward_hook(
        lambda *_: calls.append(1)
    )
    with torch.no_grad():
        log_p, _, real = task.tokens(model, batch)
        hook.remove()
        wanted = torch.cat(every_pair(task, model, rows))
    assert real.any(2).sum(1).tolist() == [2, 40, 7]
    assert (log_p[real] - wanted).abs().max() < 1e-11
    longer = sum(len(choice) > 1 for row in rows for choice in row.choices)
    assert len(calls) == {1: 1 + longer, 1 << 15: 2}.get(room, len(calls))  # one token comes from the text's own pass
    ranked = task.scores(log_p, real)
    best = [torch.stack([w.mean() for w in row]).argmax() for row in by_row(wanted, rows)]
    assert ranked.argmax(1).tolist() == [int(b) for b in best]


def by_row(scores, rows):
    """The flat scores of all tokens, choice by choice."""
    flat = iter(scores.split([len(c) for row in rows for c in row.choices]))
    return [[next(flat) for _ in row.choices] for row in rows]


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_loss_and_gradient_are_those_of_the_published_sum(kind, stories, t5, stories_tokenizer):
    task, model = model_of(kind, stories, t5)
    fw.attach(model, fw.IA3(), "a")
    model.eval()
    rows = task.encode_all(ROWS, stories_tokenizer, None)
    trained = [p for p in model.parameters() if p.requires_grad]
    loss, units = task.loss(model, collate(rows, 0).tensors)
    found = torch.autograd.grad(loss, trained)
    scores, wanted = iter(every_pair(task, model, rows)), 0
    for row in rows:
        log_p = [next(scores) for _ in row.choices]
        wrong = torch.cat([s for i, s in enumerate(log_p) if i != row.labels])
        beta = torch.stack([s.mean() for s in log_p])
        language, unlikely = -log_p[row.labels].mean(), -torch.log1p(-wrong.exp()).mean()
        wanted = wanted + language + unlikely - beta[row.labels] + beta.logsumexp(0)
    assert int(units) == len(rows)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), abs=1e-4)
    for a, b in zip(found, torch.autograd.grad(wanted, trained), strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp_min(1)


def test_pairs_and_shared_texts_agree_where_there_is_no_cache(stories, stories_tokenizer):
    """Recomputed activations leave no cache: the same losses come from joined rows."""
    model, task = fresh(stories), fw.Choices()
    fw.attach(model, fw.LoRA(rank=2), "a")
    batch = collate(task.encode_all(ROWS, stories_tokenizer, None), 0).tensors
    shared = task.loss(model.eval(), batch)[0]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    joined = task.loss(model.train(), batch)[0]
    assert float(joined.detach()) == pytest.approx(float(shared.detach()), rel=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama", "neox", "phi3", "opt", "bloom"])
def test_families_of_decoders(arch):
    from support.models import tiny

    model, task = tiny(arch).eval(), fw.Choices()
    ids = torch.tensor([[3, 4, 5, 6, 1], [2, 5, 3, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
             "choices": torch.tensor([[[1, 2, 3], [4, -100, -100]], [[5, 6, -100], [2, 2, 1]]])}  # fmt: skip
    with torch.no_grad():
        log_p, _, real = task.tokens(model, batch)
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            y = batch["choices"][i, j][real[i, j]][None]
            x = torch.cat([ids[i : i + 1, : (5, 3)[i]], y], 1)
            own = model(input_ids=x[:, :-1]).logits[:, -y.shape[1] :].log_softmax(-1).gather(-1, y[..., None])
            assert (own.flatten() - log_p[i, j][real[i, j]]).abs().max() < 1e-5


def test_scores_of_whole_choices_and_of_chosen_losses(stories, stories_tokenizer):
    batch = collate(fw.Choices().encode_all(ROWS, stories_tokenizer, None), 0).tensors
    with torch.no_grad():
        log_p, log_not, real = fw.Choices().tokens(stories, batch)
        summed = fw.Choices(per_token=False).scores(log_p, real)
        assert torch.equal(summed[0], log_p[0].where(real[0], 0).sum(1).where(real[0].any(1), -torch.inf))
        one = {n: fw.Choices(**{"language": 0, "unlikelihood": 0, "normalized": 0, n: 2}).loss(stories, batch)[0]
               for n in ("language", "unlikelihood", "normalized")}  # fmt: skip
        assert float(sum(one.values()) / 2) == pytest.approx(float(fw.Choices().loss(stories, batch)[0]), abs=1e-4)
    assert log_not[real].isfinite().all()


def rows_of(n):
    """The animal named last decides, which is not what an untrained model says."""
    choices = ["happy", "sad"]
    return [{"prompt": f"{i} " * (i % 3) + ("dog", "cat")[i % 2], "choices": choices, "answer": choices[1 - i % 2]}
            for i in range(n)]  # fmt: skip


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_training_evaluating_and_predicting(kind, stories, t5, stories_tokenizer, tmp_path):
    task, model = model_of(kind, stories, t5)
    before = fw.evaluate(model, rows_of(12), task, tokenizer=stories_tokenizer)
    fw.train(model, rows_of(12), task, method=fw.LoRA(rank=4), tokenizer=stories_tokenizer, output=tmp_path / "out",
             lr=1e-2, steps=30, batch=6)  # fmt: skip
    after = fw.evaluate(model, rows_of(12), task, tokenizer=stories_tokenizer)
    assert after["accuracy"] == 1.0 > before["accuracy"]
    assert after.loss < before.loss / 2
    questions = [{k: v for k, v in row.items() if k != "answer"} for row in rows_of(4)]
    answers = fw.predict(model, questions, task, tokenizer=stories_tokenizer)
    assert [a["label"] for a in answers] == [1, 0, 1, 0]
    assert all(sum(a["probabilities"]) == pytest.approx(1) for a in answers)


def test_a_file_of_choices_is_read_by_its_columns(tmp_path):
    import json

    path = tmp_path / "rows.jsonl"
    rows = [
        {"input": "a?", "choices": ["x", "y"], "label": 1},
        {"input": "b?", "choices": ["u", "v", "w"], "label": "w"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    data = load(path)
    assert data.shape.name == "choices"
    made = examples(data.train, data.shape)
    assert [(e.text, e.choices, e.label) for e in made] == [("a?", ("x", "y"), 1), ("b?", ("u", "v", "w"), 2)]


def test_hellaswag_of_t_few_is_read_as_it_is(data_dir):
    data = load(data_dir / "tfew_fewshot/h-swag/20_shot/42_seed.jsonl")
    assert data.shape.name == "choices"
    assert {len(e.choices) for e in examples(data.train, data.shape)} == {4}


def test_bad_rows_are_named_together(tmp_path):
    import json

    rows = [
        {"prompt": "a", "choices": ["x", "y"], "label": 2},
        {"prompt": "", "choices": ["x", "y"], "label": 0},
        {"prompt": "a", "choices": ["x"], "label": 0},
        {"prompt": "a", "choices": ["x", "x"], "label": 0},
        {"prompt": "a", "choices": "xy", "label": 0},
        {"prompt": "a", "choices": ["x", "y"], "label": None},
        {"prompt": "a", "choices": ["x", "y"], "label": "z"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError) as error:
        load(path)
    lines = str(error.value).splitlines()
    assert [line.split("rows.jsonl:")[1].split(";")[0] for line in lines] == [
        "1:label: no such choice", "2:prompt: empty text", "3:choices: nothing to choose from",
        "4:choices: nothing to choose from", "5:choices: not a list of choices", "6:label: missing answer",
        "7:label: no such choice",
    ]  # fmt: skip


def test_the_other_kind_of_model_is_refused(stories, t5, stories_tokenizer):
    with pytest.raises(InputError, match=r"another kind of model.*take Seq2SeqChoices"):
        fw.evaluate(fresh(t5), ROWS, fw.Choices(), tokenizer=stories_tokenizer)
    with pytest.raises(InputError, match=r"another kind of model.*take Choices"):
        fw.evaluate(fresh(stories), ROWS, fw.Seq2SeqChoices(), tokenizer=stories_tokenizer)


def test_texts_are_cut_from_their_start_and_choices_last(stories_tokenizer):
    long = Example("f:9", "a dog and a cat went to the big old house and", label=0, choices=("saw it", "ran far away"))
    whole = fw.Choices().encode(long, stories_tokenizer, None)
    cut = fw.Choices().encode(long, stories_tokenizer, 16)
    assert cut.choices == whole.choices
    assert len(cut.input_ids) + max(map(len, cut.choices)) == 16
    assert cut.truncated == len(whole.input_ids) - len(cut.input_ids) > 0
    assert cut.input_ids == [*whole.input_ids[:1], *whole.input_ids[1 + cut.truncated :]]
    same = Example("f:10", "a", label=0, choices=("once upon a time x", "once upon a time y"))
    with pytest.raises(InputError, match=r"f:10: choices that the model cannot tell apart"):
        fw.Choices().encode(same, stories_tokenizer, 2)
