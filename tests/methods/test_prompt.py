"""Prompt tuning: counts, starts, training, and what is refused."""

from typing import Any

import pytest
import torch
from support.models import inputs, labelled, logits, tiny
from torch import Tensor

import featherweight as fw
from featherweight.core.state import live


class Words:
    """A tokenizer of three-letter words."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [3 + sum(map(ord, word)) % 90 for word in text.split()]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def made(arch: str, **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(3)
    model = tiny(arch)
    model.tokenizer = Words()
    fw.attach(model, fw.Prompt(**options), head=False)
    return model, next(iter(live(model, "default").values()))


def rows_of(prompt: Tensor, table: Tensor) -> list[int]:
    """Which row of the table each token is."""
    return [int((table == p).all(1).nonzero()[0]) for p in prompt.detach()]


@pytest.mark.parametrize(("tokens", "arch", "decoder", "count"), [
    (20, "llama", False, 640), (5, "bert", False, 160), (10, "t5", False, 320), (10, "t5", True, 640),
])  # fmt: skip
def test_counts(tokens: int, arch: str, decoder: bool, count: int) -> None:
    model, _ = made(arch, tokens=tokens, decoder=decoder)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize(("tokens", "count"), [(10, 40_960), (100, 409_600)])
def test_t_few_counts_both_stacks(tokens: int, count: int) -> None:
    """T0-3B: d = 2,048, a prompt for the encoder and one for the decoder."""
    import transformers as hf

    with torch.device("meta"):
        model = hf.T5ForConditionalGeneration(hf.T5Config(d_model=2048, d_kv=64, d_ff=5120, num_layers=2, num_heads=32))
    fw.attach(model, fw.Prompt(tokens=tokens, decoder=True))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


def test_a_start_from_the_vocabulary() -> None:
    """Tokens of the vocabulary, the seed's; the embeddings as the model looks them up (Gemma scales its own after)."""
    model, prompt = made("llama", tokens=6)
    table = model.get_input_embeddings().weight
    drawn = rows_of(prompt, table)
    assert len(set(drawn)) > 1
    assert drawn == rows_of(made("llama", tokens=6)[1], table)
    torch.manual_seed(4)
    other = fw.attach(tiny("llama"), fw.Prompt(tokens=6))
    assert drawn != rows_of(next(iter(live(other, "default").values())), table)


def test_only_the_first_5000_are_drawn() -> None:
    import transformers as hf

    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=20_000, n_embd=8, n_layer=1, n_head=1))
    fw.attach(model, fw.Prompt(tokens=300))
    drawn = rows_of(next(iter(live(model, "default").values())), model.transformer.wte.weight)
    assert 4000 < max(drawn) < 5000


@pytest.mark.parametrize(("tokens", "wanted"), [(2, [0, 1]), (3, [0, 1, 2]), (5, [0, 1, 2, 0, 1])])
def test_a_start_from_a_text(tokens: int, wanted: list[int]) -> None:
    """Repeated or cut to the number of tokens; no special tokens in it."""
    model, prompt = made("llama", tokens=tokens, init="text", text="say what it")
    ids = Words()("say what it", add_special_tokens=False)["input_ids"]
    assert rows_of(prompt, model.get_input_embeddings().weight) == [ids[i] for i in wanted]


def test_random_starts_have_the_embeddings_scale_and_pefts() -> None:
    model, prompt = made("llama", tokens=200, init="random")
    scale = float(model.get_input_embeddings().weight.detach().std())
    assert abs(float(prompt.detach().std()) / scale - 1) < 0.1
    assert abs(float(made("llama", tokens=200, init="normal")[1].detach().std()) - 1) < 0.1


@pytest.mark.parametrize("arch", ["llama", "bert", "t5"])
def test_it_learns(arch: str) -> None:
    """The loss falls, only the prompt moves, and switched off the model is the base to the bit."""
    model, _ = made(arch, tokens=8)
    batch, plain = labelled(arch, rows=4), tiny(arch)
    frozen = {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(30):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.03
    assert all(torch.equal(p, frozen[k]) for k, p in model.named_parameters() if k in frozen)
    fw.switch(model, None)
    assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))
    fw.detach(model)
    assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))


@pytest.mark.parametrize(("options", "message"), [
    ({"tokens": 0}, "method.tokens: no tokens; expected at least 1; got 0"),
    ({"init": "words"}, "method.init: unknown init; expected 'vocabulary' or 'text' or 'random' or 'normal'"),
    ({"init": "text"}, "method.text: no text to start from"),
    ({"text": "hello"}, "method.text: a text that no init reads"),
    ({"init": "text", "text": "  "}, "a text without tokens"),
    ({"decoder": True}, "method.decoder: no encoder beside the decoder; got LlamaForCausalLM"),
])  # fmt: skip
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    model = tiny("llama")
    model.tokenizer = Words()
    with pytest.raises(fw.InputError, match=message):
        fw.attach(model, fw.Prompt(**options))
    assert torch.equal(logits(model, inputs("llama")), logits(tiny("llama"), inputs("llama")))


def test_a_text_without_a_tokenizer_and_all_problems_at_once() -> None:
    with pytest.raises(fw.InputError) as error:
        fw.attach(tiny("llama"), fw.Prompt(tokens=-1, init="text", text="say"))
    assert len(error.value.problems) == 2
    assert "fw.load_base" in str(error.value)


def test_it_cannot_be_merged() -> None:
    model, _ = made("llama", tokens=2)
    with pytest.raises(fw.NotMergeable, match=r"Prompt\(tokens=2\)"):
        fw.merge(model)
    with pytest.raises(fw.InputError, match="has no strength"):
        fw.switch(model, {"default": 0.5})


def test_written_and_read_again() -> None:
    noun = fw.Prompt(tokens=7, init="text", text="a b")
    assert repr(noun) == "Prompt(tokens=7, init='text', text='a b')"
    assert type(noun).from_dict(noun.to_dict()) == noun


def test_a_text_start_loads_without_a_tokenizer(tmp_path: Any) -> None:
    """The tensors are in the file: nothing is to be looked up."""
    model, _ = made("llama", tokens=3, init="text", text="say what")
    fw.save(model, tmp_path)
    again = fw.load(tiny("llama"), tmp_path)
    assert torch.equal(logits(again, inputs("llama")), logits(model, inputs("llama")))
