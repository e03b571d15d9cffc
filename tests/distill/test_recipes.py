"""Recipes over other tasks and models: masked and causal language models, rotary attention, encoder-decoders,
widths."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from support.distilling import SIZE, YES_NO, bart, batch, bert, given, llama, lm_batch, loss_of, terms_of
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, mse_loss

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.projection import NAME, Projections

LENGTHS = (6, 4, 2)


def masked_batch() -> dict[str, torch.Tensor]:
    """As MaskedLM encodes: masks at every token that may be hidden, labels with the tokens themselves."""
    made = batch()
    real = made["attention_mask"].bool()
    ids = made["input_ids"]
    return {**made, "input_ids": ids.masked_fill(real, SIZE - 1), "labels": ids.masked_fill(~real, -100)}


def test_distilbert_over_masked_language_modelling_is_five_two_one() -> None:
    """5 CE over every attended token + 2 MLM over the hidden ones + 1 cosine over attended ones, each a mean a row."""
    teacher, task = bert(masked=True), fw.MaskedLM(rate=0.4)
    student = fw.student(teacher, layers=2)
    for hidden_only in (False, True):
        found, _, units = terms_of(student, teacher, fw.DistilBERT(hidden_only=hidden_only), masked_batch(), task)
        total = loss_of(student, teacher, fw.DistilBERT(hidden_only=hidden_only), masked_batch(), task).item()
        ids, targets = task.pose(student, masked_batch())
        with torch.no_grad():
            s, t = (m(**ids, output_hidden_states=True) for m in (student, teacher))
        wanted = 0.0
        for r, n in enumerate(LENGTHS):
            hidden = targets[r] != -100
            where = hidden if hidden_only else torch.arange(6) < n
            p, q = ((x.logits[r][where] / 2) for x in (t, s))
            soft = 4 * kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
            label = cross_entropy(s.logits[r][hidden], targets[r][hidden])
            cosine = 1 - cosine_similarity(s.hidden_states[-1][r, :n], t.hidden_states[-1][r, :n], dim=-1).mean()
            row = (5 * soft + 2 * label + cosine).item()
            weighted = sum(term.weight * term.values[r].item() for term in found.values())
            assert weighted == pytest.approx(row, rel=1e-5)
            wanted += int(hidden.sum()) * row
        assert units.tolist() == [2, 2, 1]
        assert total == pytest.approx(wanted, rel=1e-5)


def test_masked_language_models_train(tokenizer: Any) -> None:
    teacher = bert(masked=True)
    teacher.tokenizer = tokenizer
    student = fw.student(teacher, layers=2)
    texts = [{"text": "good cheap food near the river"}, {"text": "bad staff cold dull pub area price"}] * 8
    how: dict[str, Any] = {"steps": 30, "batch": 8, "lr": 2e-3, "log": 1, "threads": 1}
    run = fw.distill(student, teacher, texts, fw.DistilBERT(), fw.MaskedLM(), **how)
    losses = [line["loss"] for line in run.history]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert student.task == fw.MaskedLM()


def test_distilgpt2_is_distilbert_over_the_next_token(rows: Any) -> None:
    teacher, task = llama(), fw.CausalLM()
    student = fw.student(teacher, layers=2)
    made = lm_batch()
    with torch.no_grad():
        s, t = (m(**given(**made), output_hidden_states=True) for m in (student, teacher))
    wanted = 0.0
    for r, n in enumerate(LENGTHS):
        q, p = (x.logits[r, : n - 1] / 2 for x in (s, t))
        soft = 4 * kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
        label = cross_entropy(s.logits[r, : n - 1], made["labels"][r, 1:n])
        cosine = 1 - cosine_similarity(s.hidden_states[-1][r, :n], t.hidden_states[-1][r, :n], dim=-1).mean()
        wanted += (n - 1) * (5 * soft + 2 * label + cosine).item()
    assert loss_of(student, teacher, fw.DistilGPT2(), made, task).item() == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(InputError, match=r"another task.*AutoModelForCausalLM"):
        fw.distill(fw.student(bert()), bert(), rows, fw.DistilGPT2(), YES_NO)


# Attention after rotation


def turned(x: torch.Tensor, model: Any) -> torch.Tensor:
    """Rotary positions by hand: pairs (x_i, x_{i + d/2}) turned by t θ^(-2i/d)."""
    d, n = x.shape[-1], x.shape[-2]
    rates = model.config.rope_parameters["rope_theta"] ** (-torch.arange(0, d, 2) / d)
    angles = torch.arange(n)[:, None] * rates
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def scores_by_hand(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """(2, n, n) of each block of a Llama with 2 heads and 1 key head."""
    found: list[torch.Tensor] = []
    hooks = []
    for block in model.model.layers:
        own = block.self_attn

        def keep(module: Any, args: Any, kwargs: Any) -> None:
            x = kwargs["hidden_states"][0]
            q = turned(module.q_proj(x).unflatten(-1, (2, 16)).transpose(0, 1), model)
            k = turned(module.k_proj(x).unflatten(-1, (1, 16)).transpose(0, 1), model)
            found.append(q @ k.transpose(-1, -2) / 4)

        hooks.append(own.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


def test_tinybert_on_a_rotary_model() -> None:
    """Scores are those after the rotation, of grouped heads, over the keys before each query."""
    teacher, task, made = llama(), fw.CausalLM(), lm_batch()
    student = fw.student(teacher, layers=2)
    found, _, _ = terms_of(student, teacher, fw.TinyBERT("layers"), made, task)
    for r, n in enumerate(LENGTHS):
        ids = made["input_ids"][r : r + 1, :n]
        mine, theirs = scores_by_hand(student, ids), scores_by_hand(teacher, ids)
        past = torch.ones(n, n).tril().bool()
        for i in (0, 1):
            apart = ((mine[i] - theirs[2 * i + 1]) ** 2).mean(0)
            wanted = torch.stack([apart[q][past[q]].mean() for q in range(n)]).mean()
            assert found[f"attention {i}"].values[r].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_minilm_on_a_rotary_model() -> None:
    """Version 1's maps are those of eager attention."""
    teacher, task, made = llama(attn_implementation="eager"), fw.CausalLM(), lm_batch()
    student = fw.student(teacher, layers=2)
    found, _, _ = terms_of(student, teacher, fw.MiniLM(), made, task)
    with torch.no_grad():
        s, t = (m(**given(**made), output_attentions=True).attentions[-1] for m in (student, teacher))
    for r, n in enumerate(LENGTHS):
        a_s, a_t = s[r, :, :n, :n], t[r, :, :n, :n]
        wanted = (a_t * (a_t.clamp(min=1e-30).log() - a_s.clamp(min=1e-30).log())).sum() / (2 * n)
        assert found["attention"].values[r].item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ["Qwen3", "GPTNeoX", "Phi", "Gemma"])
def test_maps_of_other_models_are_their_own(arch: str, attention: str) -> None:
    """Norms on queries and keys, partial rotation, fused projections, another scale: each is proven against eager."""
    import transformers as hf

    size = {"vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0,
            "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
    more = {} if arch in ("GPTNeoX", "Phi") else {"head_dim": 16, "num_key_value_heads": 2}
    config = getattr(hf, f"{arch}Config")(**size, **more, attn_implementation=attention)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        teacher = getattr(hf, f"{arch}ForCausalLM")(config).eval()
    student = fw.student(teacher, layers=1)
    for recipe in (fw.MiniLM(), fw.TinyBERT("layers")):
        assert loss_of(student, teacher, recipe, lm_batch(), fw.CausalLM()).isfinite()  # proven, or refused
    assert teacher.config._attn_implementation == attention
    assert type(teacher.base_model.layers[0].__dict__.get("config", teacher.config)) is type(teacher.config)


def test_what_is_added_to_scores_is_refused() -> None:
    import transformers as hf

    teacher = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=SIZE, hidden_size=32, n_layer=2, n_head=2, pad_token_id=0))
    with pytest.raises(InputError, match=r"cannot be made of this model's queries.*version=2"):
        loss_of(fw.student(teacher), teacher, fw.MiniLM(), lm_batch(), fw.CausalLM())


# Encoder and decoder


def pair_batch() -> dict[str, torch.Tensor]:
    """Three texts of 6, 4 and 2 tokens and answers of 3, 2 and 1."""
    made = batch()
    labels = torch.tensor([[5, 6, 1], [7, 1, -100], [1, -100, -100]])
    return {**made, "labels": labels}


def test_distilbert_on_an_encoder_and_a_decoder() -> None:
    """The cosine is the mean of both stacks', each over its own tokens."""
    teacher = bart()
    student = fw.student(teacher, layers=2)
    made = pair_batch()
    found, _, units = terms_of(student, teacher, fw.DistilBERT(), made, fw.Seq2Seq())
    assert units.tolist() == [3, 2, 1]
    ids, targets = fw.Seq2Seq().pose(student, made)
    with torch.no_grad():
        s, t = (m(**ids, output_hidden_states=True) for m in (student, teacher))
    for r, (n, k) in enumerate(zip(LENGTHS, (3, 2, 1), strict=True)):
        sides = [(s.encoder_hidden_states[-1][r, :n], t.encoder_hidden_states[-1][r, :n]),
                 (s.decoder_hidden_states[-1][r, :k], t.decoder_hidden_states[-1][r, :k])]  # fmt: skip
        cosine = sum(1 - cosine_similarity(a, b, dim=-1).mean().item() for a, b in sides) / 2
        q, p = (x.logits[r, :k] / 2 for x in (s, t))
        soft = 4 * kl_div(q.log_softmax(-1), p.softmax(-1), reduction="batchmean")
        assert found["cosine"].values[r].item() == pytest.approx(cosine, rel=1e-4)
        assert found["soft"].values[r].item() == pytest.approx(soft.item(), rel=1e-4)
        label = cross_entropy(s.logits[r, :k], targets[r, :k])
        assert found["label"].values[r].item() == pytest.approx(label.item(), rel=1e-4)
    same, _, _ = terms_of(deepcopy(teacher), teacher, fw.DistilBERT(), made, fw.Seq2Seq())
    assert same["cosine"].values.abs().max() < 1e-6


@pytest.mark.parametrize("recipe", [fw.MiniLM(version=2), fw.TinyBERT("layers")], ids=repr)
def test_layers_of_two_stacks_are_refused(recipe: Any) -> None:
    rows = [{"prompt": "name", "completion": "food"}]
    with pytest.raises(InputError, match=r"encoder and a decoder.*DistilBERT"):
        fw.distill(fw.student(bart(), layers=2), bart(), rows, recipe, fw.Seq2Seq())


# Widths


def narrow() -> Any:
    return bert(hidden_size=16, intermediate_size=24, num_hidden_layers=2)


def test_tinybert_with_a_projection_by_hand() -> None:
    teacher, student = bert(), narrow()
    fw.attach(student, fw.Full())
    fw.attach(student, Projections((0, 1, 2), 16, 32), NAME, head=False, stack=True)
    found, _, _ = terms_of(student, teacher, fw.TinyBERT("layers"))
    W = {k.rsplit("_", 1)[1]: p for k, p in student.named_parameters() if ".W_" in k}
    assert torch.allclose(W["0"] @ W["0"].T, torch.eye(16), atol=1e-5)
    with torch.no_grad():
        s, t = (m(**given(), output_hidden_states=True).hidden_states for m in (student, teacher))
        for name, i in (("embedding", 0), ("hidden 0", 1), ("hidden 1", 2)):
            for r, n in enumerate(LENGTHS):
                wanted = mse_loss(s[i][r, :n] @ W[str(i)], t[2 * i][r, :n])
                assert found[name].values[r].item() == pytest.approx(wanted.item(), rel=1e-5)
    loss_of(student, teacher, fw.TinyBERT("layers")).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in W.values())


@pytest.mark.parametrize("recipe", [fw.TinyBERT("layers"), fw.DistilBERT()], ids=repr)
def test_projections_train_resume_and_are_gone(recipe: Any, tokenizer: Any, rows: Any, tmp_path: Any) -> None:
    """They are in the checkpoints, not in the student or its folder; a resumed run ends where the whole one did."""
    from safetensors import safe_open

    teacher = bert()
    teacher.tokenizer = tokenizer

    def made(**values: Any) -> Any:
        student = narrow()
        student.save_pretrained(tmp_path / "base")
        student.name_or_path = str(tmp_path / "base")
        fw.distill(student, teacher, rows, recipe, YES_NO, output=tmp_path / "out", steps=4, batch=8, lr=1e-2,
                   checkpoint_every=2, threads=1, **values)  # fmt: skip
        return student

    def kept(step: int) -> dict[str, torch.Tensor]:
        with safe_open(tmp_path / "out" / "checkpoints" / f"step-{step}" / "adapter.safetensors", "pt") as file:
            return {k: file.get_tensor(k) for k in file.keys() if k.startswith(NAME)}  # noqa: SIM118

    whole = made()
    first, last = kept(2), kept(4)
    assert first.keys() == last.keys()
    assert len(first) == (3 if recipe.lifted(2) == (0, 1, 2) else 1)
    assert all(not torch.equal(first[k], last[k]) for k in first)
    assert not any("W_" in k for k in whole.state_dict())
    assert not (tmp_path / "out" / NAME).exists()
    for file in (tmp_path / "out" / "checkpoints" / "step-4").iterdir():
        file.unlink()
    (tmp_path / "out" / "checkpoints" / "step-4").rmdir()
    again = made(resume=True)
    with torch.no_grad():
        one, other = (m(**given()).logits for m in (whole, again))
    assert torch.equal(one, other)
    loaded = fw.load_model(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**given()).logits, one)


def test_a_projected_student_is_plain_once_merged(tokenizer: Any, rows: Any, tmp_path: Any) -> None:
    import transformers as hf

    teacher = bert()
    teacher.tokenizer = tokenizer
    student = narrow()
    fw.distill(student, teacher, rows, fw.TinyBERT("layers"), YES_NO, steps=2, batch=8, threads=1)
    fw.merge(student).save_pretrained(tmp_path)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        one, other = (m.eval()(**given()).logits for m in (student, loaded))
    assert torch.equal(one, other)


def test_nothing_is_left_on_a_student_whose_run_is_refused(tokenizer: Any) -> None:
    teacher, student = bert(), narrow()
    teacher.tokenizer = tokenizer
    before = set(student.state_dict())
    rows = [{"text": "name", "label": "no"}, {"text": "food", "label": "maybe"}]
    with pytest.raises(InputError, match="maybe"):
        fw.distill(student, teacher, rows, fw.TinyBERT("layers"), YES_NO, steps=1)
    assert set(student.state_dict()) == before
    assert type(student.bert.encoder.layer[0].intermediate.dense) is torch.nn.Linear
