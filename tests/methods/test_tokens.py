"""Trainable tokens: replacement rows, tied heads, scaled tables, new tokens, and what stands on top or below."""

from typing import Any

import pytest
import torch
import transformers
from support.models import SIZE, disturb, inputs, logits, tiny

import featherweight as fw
from featherweight.core.state import adapters, state

KEY = "trainable_tokens_delta"


def lookup(model: Any, ids: list[int]) -> torch.Tensor:
    """What the input embedding gives for some tokens."""
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor([ids]))[0]


def test_by_hand() -> None:
    """Rows 3 and 1 of a table of 5 are (10, 20) and (30, 40); all others stay, and merging writes the two."""
    table = torch.nn.Embedding(5, 2)
    before = table.weight.clone()
    model = fw.attach(torch.nn.Sequential(table), fw.Tokens(tokens=(3, 1)))
    a: Any = table.adapters["default"]  # type: ignore[union-attr]
    assert torch.equal(a.trainable_tokens_delta, before[[3, 1]])
    a.trainable_tokens_delta.data = torch.tensor([[10.0, 20], [30, 40]])
    wanted = before.clone()
    wanted[[3, 1]] = torch.tensor([[10.0, 20], [30, 40]])
    assert torch.equal(model(torch.arange(5)), wanted)
    assert torch.equal(model(torch.tensor([[3, 3], [1, 0]])), wanted[torch.tensor([[3, 3], [1, 0]])])
    assert torch.equal(fw.merge(model)[0].weight, wanted)


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "t5"])
def test_only_the_chosen_rows_get_gradients_and_other_rows_stay(arch: str) -> None:
    """With the table unfrozen beside it, the gradient of its other rows is as without the adapter."""
    method = fw.Tokens(tokens=(40, 14))
    model = fw.attach(tiny(arch), method, head=False)
    rows = next(t for k, t in state(model, "default").items() if k.endswith(KEY))
    assert rows.shape == (2, 32)
    assert fw.trainable(model).trainable == 64
    assert fw.trainable(model).total == fw.trainable(tiny(arch)).total
    model(**inputs(arch)).logits.float().square().mean().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 1
    assert (grads[0].abs().sum(1) > 0).all()


@pytest.mark.parametrize("arch", ["gpt2", "t5"])
def test_a_tied_head_follows(arch: str) -> None:
    """One set of rows for embedding and head, trained with the gradients of both; merged the two stay tied."""
    model = fw.attach(tiny(arch), fw.Tokens(tokens=(40, 14)))
    held = adapters(model, "default")
    assert len(held) == {"gpt2": 2, "t5": 4}[arch]
    assert len({id(a.trainable_tokens_delta) for a in held.values()}) == 1
    assert len([k for k in state(model, "default") if k.endswith(KEY)]) == 1
    disturb(model, 0.5)
    before, plain = logits(model, inputs(arch)), logits(tiny(arch), inputs(arch))
    assert ((before - plain)[..., [40, 14]].abs() > 1e-4).all()
    other = tiny(arch)
    with torch.no_grad():
        other.get_input_embeddings().weight[[40, 14]] = next(iter(held.values())).trainable_tokens_delta
    torch.testing.assert_close(before, logits(other, inputs(arch)), atol=1e-6, rtol=1e-6)
    fw.merge(model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(logits(model, inputs(arch)), logits(other, inputs(arch)))


def test_an_untied_head_does_not_follow() -> None:
    model = fw.attach(tiny("llama"), fw.Tokens(tokens=(40,)))
    assert list(adapters(model, "default")) == ["model.embed_tokens"]


def gemma() -> Any:
    torch.manual_seed(0)
    config = transformers.GemmaConfig(**SIZE, head_dim=8, num_key_value_heads=2, pad_token_id=0)
    return transformers.GemmaForCausalLM(config).eval()


def test_scaled_embeddings_scale_the_new_rows_too() -> None:
    """Gemma multiplies what it looks up by √d: rows are stored as the table stores them."""
    plain = gemma()
    model = fw.attach(gemma(), fw.Tokens(tokens=(40, 14)))
    torch.testing.assert_close(logits(model, inputs("llama")), logits(plain, inputs("llama")), atol=1e-6, rtol=1e-6)
    disturb(model, 0.5)
    rows = next(iter(adapters(model, "default").values())).trainable_tokens_delta
    torch.testing.assert_close(lookup(model, [14])[0], rows[1].detach() * 32**0.5)
    on = logits(model, inputs("llama"))
    torch.testing.assert_close(logits(fw.merge(model), inputs("llama")), on, atol=1e-5, rtol=1e-5)


def test_the_padding_token_can_train() -> None:
    """A table gives its padding row no gradient; a chosen token gets one, also as row 0 of the small table."""
    table = torch.nn.Embedding(5, 2, padding_idx=0)
    model = fw.attach(torch.nn.Sequential(table), fw.Tokens(tokens=(2, 0)))
    model(torch.tensor([2, 0])).sum().backward()
    assert torch.equal(next(p for p in model.parameters() if p.requires_grad).grad, torch.ones(2, 2))


class Words:
    """As much of a tokenizer as is asked."""

    def get_vocab(self) -> dict[str, int]:
        return {"<a>": 99, "the": 7}


def test_texts_are_numbers_of_the_models_tokenizer() -> None:
    model = tiny("llama")
    model.resize_token_embeddings(100)
    model.tokenizer = Words()
    fw.attach(model, fw.Tokens(tokens=("<a>", "the", 3)))
    assert next(iter(adapters(model, "default").values())).ids.tolist() == [99, 7, 3]
    recorded = fw.Tokens(tokens=("<a>", "the", 3)).recorded(adapters(model, "default"))
    assert recorded == fw.Tokens(tokens=(99, 7, 3)), "a file holds without the tokenizer"


def test_lora_on_the_embedding_with_new_tokens(tmp_path: Any) -> None:
    """New tokens, LoRA on the table and the queries, the new rows on top: trains, saves as two files, comes back."""

    def base() -> Any:
        torch.manual_seed(2)
        model = tiny("llama")
        model.resize_token_embeddings(102, mean_resizing=False)
        return model

    model = fw.attach(base(), fw.LoRA(rank=2, targets=("embedding", "query")), "low")
    fw.attach(model, fw.Tokens(tokens=(99, 101)), "new", stack=True)
    batch = {"input_ids": torch.tensor([[5, 99, 7, 101, 99]])}
    model(**batch).logits.square().mean().backward()
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert {".low." in k for k in trained} == {True, False}
    assert all(p.grad is not None for p in trained.values())
    disturb(model, 0.5)
    on = logits(model, batch)
    rows = state(model, "new")[f"model.embed_tokens.{KEY}"]
    assert torch.equal(lookup(model, [99, 101]), rows), "a replaced row hides LoRA's change of it"
    with fw.switch(model, "new"):
        assert not torch.equal(logits(model, batch), on)
    fw.save(model, tmp_path / "low", "low")
    fw.save(model, tmp_path / "new", "new")
    other = fw.load(base(), tmp_path / "low", "low")
    fw.load(other, tmp_path / "new", "new", stack=True)
    assert torch.equal(logits(other, batch), on)
    torch.testing.assert_close(logits(fw.merge(other), batch), on, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_table_may_grow_after_the_attach(arch: str) -> None:
    """transformers resizes a table in place: the chosen rows stay chosen, tied or not."""
    model = fw.attach(tiny(arch), fw.Tokens(tokens=(40, 14)))
    disturb(model, 0.5)
    before = logits(model, inputs(arch))
    model.resize_token_embeddings(105, mean_resizing=False)
    torch.testing.assert_close(logits(model, inputs(arch))[..., :99], before, atol=1e-6, rtol=1e-6)
    on = logits(model, inputs(arch))
    torch.testing.assert_close(logits(fw.merge(model), inputs(arch)), on, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "says"), [
    ((), r"method\.tokens: no tokens; expected a list"),
    ("<a>", r"method\.tokens: no tokens; expected a list"),
    ((99, 5, -1), r"no such row; expected 0 to 98; got \[99, -1\]; give the embedding room first"),
    ((5, 5, 6), r"a token stands twice; got 5"),
    (("<a>",), r"needs a tokenizer; got '<a>'; set model\.tokenizer"),
])  # fmt: skip
def test_bad_input(tokens: Any, says: str) -> None:
    with pytest.raises(fw.InputError, match=says):
        fw.attach(tiny("llama"), fw.Tokens(tokens=tokens))


def test_a_text_that_is_no_token() -> None:
    model = tiny("llama")
    model.tokenizer = Words()
    with pytest.raises(fw.InputError, match=r"(?s)'<b>'; add it.*'<c>'"):
        fw.attach(model, fw.Tokens(tokens=("<b>", "the", "<c>")))
