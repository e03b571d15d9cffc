"""P-tuning: the template laid out by hand, its encoders, counts, and what is kept and dropped."""

from typing import Any

import pytest
import torch
from support.models import disturb, inputs, labelled, logits, tiny
from support.zoo import ZOO, build
from torch import Tensor

import featherweight as fw
from featherweight.core.state import adapters, load_state, state
from featherweight.methods.templated import PromptEncoder

ENCODERS = ("lstm", "mlp", "none")


def h_of(model: Any, name: str = "default") -> Tensor:
    """The virtual tokens as they are used."""
    made: Any = next(iter(adapters(model, name).values()))
    out: Tensor = made.prompt().detach()
    return out


def made(arch: str, model: Any = None, **options: Any) -> Any:
    torch.manual_seed(5)
    return fw.attach(model if model is not None else tiny(arch), fw.PTuning(**options), head=False)


def test_counts_of_the_paper() -> None:
    """d = 768, n = 9: what is trained, and what is needed afterwards."""
    for encoder, count in (("lstm", 8_278_272), ("mlp", 9 * 768 + 2 * (768**2 + 768)), ("none", 6_912)):
        made = PromptEncoder(9, 768, encoder, None, {"device": "meta"})
        assert sum(p.numel() for p in made.parameters()) == count
    import transformers as hf

    with torch.device("meta"):
        model = hf.RobertaForMaskedLM(hf.RobertaConfig(vocab_size=50_265, num_hidden_layers=2))
    fw.attach(model, fw.PTuning(), head=False)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 8_278_272


def test_the_lstm_is_torchs() -> None:
    made = PromptEncoder(5, 32, "lstm", 12, {})
    lstm = torch.nn.LSTM(32, 12, num_layers=2, bidirectional=True)
    lstm.load_state_dict(made.lstm_head.state_dict())
    assert torch.equal(made(), made.mlp_head(lstm(made.embedding.weight[:, None])[0][:, 0]))
    assert [tuple(m.weight.shape) for m in (made.mlp_head[0], made.mlp_head[2])] == [(24, 24), (32, 24)]


def test_the_lstm_trains_as_pefts() -> None:
    """It has peft's shape: its tensors put into ours give the same h and the same step."""
    from peft import PromptEncoderConfig, TaskType, get_peft_model

    torch.manual_seed(6)
    config = PromptEncoderConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4, encoder_reparameterization_type="LSTM",
        encoder_hidden_size=16,
    )  # fmt: skip
    theirs = get_peft_model(tiny("llama"), config).eval()
    peer = theirs.prompt_encoder.default
    model = made("llama", template=(4,), hidden=16)
    ours: Any = next(iter(adapters(model, "default").values())).prompt
    ours.load_state_dict(peer.state_dict())
    assert (h_of(model) - theirs.get_prompt_embedding_to_save("default")).abs().max() <= 1e-6
    batch = labelled("llama")
    batch["labels"] = batch["labels"].clone()
    batch["labels"][:, 0] = -100
    for one in (model, theirs):
        one(**batch).loss.backward()
        torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1).step()
    peers = peer.state_dict()
    for key, tensor in ours.state_dict().items():
        assert (tensor - peers[key]).abs().max() <= 1e-6, key
    assert (h_of(model) - theirs.get_prompt_embedding_to_save("default")).abs().max() <= 1e-6


def by_hand(model: Any, plain: Any, ids: Tensor, order: list[int | str]) -> Tensor:
    """The plain model's output over embeddings in the order told: a number is a token of the input, "h2" is h_2."""
    h, x = h_of(model), plain.get_input_embeddings()(ids)
    parts = [h[int(o[1:])] if isinstance(o, str) else x[o] for o in order]
    with torch.no_grad():
        out: Tensor = plain(inputs_embeds=torch.stack(parts)[None]).logits[0]
    return out


def test_a_pair_of_texts_by_hand() -> None:
    """{h0 h1, x, h2, y, h3}: x is the first segment, y the second."""
    model, plain = made("bert", template=(2, 1, 1)), tiny("bert")
    ids = inputs("bert")["input_ids"][:1]
    kinds = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])
    order = ["h0", "h1", 0, 1, 2, 3, "h2", 4, 5, 6, "h3"]
    h, x = h_of(model), plain.get_input_embeddings()(ids)[0]
    embeds = torch.stack([h[int(str(o)[1:])] if isinstance(o, str) else x[o] for o in order])[None]
    types = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]])
    wanted = plain(inputs_embeds=embeds, token_type_ids=types).logits
    assert (model(input_ids=ids, token_type_ids=kinds).logits - wanted).abs().max() <= 1e-6
    single = by_hand(model, plain, ids[0], ["h0", "h1", *range(7), "h2", "h3"])  # y is empty
    assert (model(input_ids=ids).logits[0] - single).abs().max() <= 1e-6
    assert (single - wanted[0]).abs().max() > 1e-5


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("template", [(3, 2, 2), "PPP x PP y PP", (0, 2, 1)])
def test_a_mask_among_the_tokens_by_hand(template: Any, left: bool) -> None:
    """LAMA's template: y is the mask. One output for each token of the input, and the mask's is its own."""
    name, config, options, *_ = ZOO["bert-mlm"]
    torch.manual_seed(0)
    plain = build(name, config, options).eval()
    state = plain.state_dict()
    other = build(name, config, options).eval()
    other.load_state_dict(state)
    model = made("", other, template=template, y=4)
    n, k = (0, 2) if template == (0, 2, 1) else (3, 2)
    end = sum(fw.PTuning(template=template).sizes) - n - k
    rows = [torch.tensor([11, 12, 13, 4, 15]), torch.tensor([21, 4, 23])]
    ids = torch.zeros(2, 6, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 6 - len(row) :] = row if left else ids[i, 6 - len(row) :]
        if not left:
            ids[i, : len(row)] = row
    got = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    assert got.shape == (2, 6, 99)
    for i, row in enumerate(rows):
        y = row.tolist().index(4)
        hs = [f"h{j}" for j in range(n + k + end)]
        order = [*hs[:n], *range(y), *hs[n : n + k], *range(y, len(row)), *hs[n + k :]]
        wanted = by_hand(model, plain, row, order)
        places = [order.index(j) for j in range(len(row))]
        mine = got[i, -len(row) :] if left else got[i, : len(row)]
        assert (mine - wanted[places]).abs().max() <= 2e-6


def test_an_answer_in_a_decoder_by_hand() -> None:
    """What follows x is said by the last token in front of y, as when writing on."""
    model, plain = made("llama", template=(2, 2), y=50), tiny("llama")
    row = torch.tensor([11, 12, 13, 50, 15, 16])
    order: list[int | str] = ["h0", "h1", 0, 1, 2, "h2", "h3", 3, 4, 5]
    wanted = by_hand(model, plain, row, order)
    got = model(input_ids=row[None]).logits[0]
    assert (got - wanted[[2, 3, 6, 7, 8, 9]]).abs().max() <= 1e-6


@pytest.mark.parametrize("beams", [1, 2])
def test_it_writes_on_from_padded_prompts(beams: int) -> None:
    model = made("llama", template=(2, 2), y=50)
    disturb(model)
    rows = [torch.tensor([11, 50, 13]), torch.tensor([11, 12, 13, 14, 50])]
    left = torch.stack([torch.cat([r.new_zeros(6 - len(r)), r]) for r in rows])
    told: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    told["eos_token_id"] = None
    together = model.generate(left, attention_mask=(left != 0).long(), **told)
    for i, row in enumerate(rows):
        one = model.generate(row[None], **told)
        assert torch.equal(one[0, len(row) :], together[i, 6:])
        assert torch.equal(model.generate(row[None], use_cache=False, **told), one)


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2", "t5"])
def test_pseudo_tokens_in_the_rows(arch: str) -> None:
    """Wherever the rows have them; a row without has none."""
    model, plain = made(arch, template=(3,), pseudo=7), tiny(arch)
    h, ids = h_of(model), inputs(arch, rows=3)["input_ids"]
    ids = ids.masked_fill(ids == 7, 8)
    ids[0, [1, 2, 5]] = 7
    ids[1, [0, 3, 6]] = 7
    x = plain.get_input_embeddings()(ids).detach()
    x[ids == 7] = torch.cat([h, h])
    more = {"decoder_input_ids": ids.masked_fill(ids == 7, 9)} if arch == "t5" else {}
    y = model(input_ids=ids, **more).logits
    wanted = plain(inputs_embeds=x, **more).logits
    assert (y - wanted).abs().max() <= (1e-5 if arch == "t5" else 1e-6)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    if arch == "llama":
        fw.attach(model, fw.LoRA(rank=2), "low")
        fw.switch(model, rows=["default", "default", "low"])
        assert (model(input_ids=ids).logits - wanted).abs().max() <= 1e-6


def test_pseudo_tokens_that_do_not_fit() -> None:
    model = made("llama", template=(3,), pseudo=7)
    with pytest.raises(fw.InputError, match=r"input_ids: pseudo tokens do not fit.*none or 3.*got \[0, 2\]"):
        model(input_ids=torch.tensor([[7, 7, 11], [11, 12, 13]]))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rows_of_templates(encoder: str) -> None:
    """Different templates, a plain prompt and none in one batch, padded: each as if alone."""
    model = made("bert", template=(2, 1, 1), encoder=encoder)
    fw.attach(model, fw.PTuning(template=(0, 3), y=9), "b", head=False)
    fw.attach(model, fw.Prompt(tokens=5, init="normal"), "c", head=False)
    rows: list[Any] = ["default", "b", None, "c", ("default", "c")]
    noise = torch.Generator().manual_seed(1)
    texts = [torch.randint(10, 99, (n,), generator=noise) for n in (4, 7, 5, 6, 3)]
    texts[1][4] = 9
    kinds = [(torch.arange(len(x)) > 1).long() for x in texts]
    singles = []
    for row, ids, kind in zip(rows, texts, kinds, strict=True):
        fw.switch(model, row)
        singles.append(model(input_ids=ids[None], token_type_ids=kind[None]).logits[0])
    fw.switch(model, rows=rows)
    pads = [torch.zeros(7 - len(x), dtype=torch.long) for x in texts]
    for front in (True, False):

        def at(x: Tensor, pad: Tensor, front: bool = front) -> Tensor:
            return torch.cat([pad, x] if front else [x, pad])

        ids = torch.stack([at(x, p) for x, p in zip(texts, pads, strict=True)])
        kind = torch.stack([at(x, p) for x, p in zip(kinds, pads, strict=True)])
        y = model(input_ids=ids, token_type_ids=kind, attention_mask=(ids != 0).long()).logits
        assert (y - torch.stack(singles)).abs().max() <= 1e-6


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_the_encoder_is_dropped_for_use_and_kept_to_resume(encoder: str, tmp_path: Any) -> None:
    model = made("bert", template=(2, 1), encoder=encoder)
    disturb(model)
    kept = state(model, "default")
    assert any("mlp_head" in k for k in kept)
    fw.save(model, tmp_path)
    used = fw.load(tiny("bert"), tmp_path)
    assert torch.equal(logits(used, inputs("bert")), logits(model, inputs("bert")))
    assert {k.rpartition(".")[2] for k in state(used, "default")} == {"prompt_embeddings"}
    assert sum(t.numel() for t in state(used, "default").values()) == 3 * 32
    resumed = fw.attach(tiny("bert"), fw.PTuning(template=(2, 1), encoder=encoder), head=False)
    load_state(resumed, "default", kept)
    assert torch.equal(logits(resumed, inputs("bert")), logits(model, inputs("bert")))


@pytest.mark.parametrize(("options", "message"), [
    ({"template": ()}, "method.template: not a template"),
    ({"template": (0, 0)}, "method.template: not a template"),
    ({"template": (1, 2, 3, 4)}, "method.template: not a template"),
    ({"template": (-1, 2)}, "method.template: not a template"),
    ({"template": "y PPP x"}, "method.template: not a template.*PPP x PPP y PPP"),
    ({"encoder": "gru"}, "method.encoder: unknown encoder"),
    ({"hidden": 0}, "method.hidden: out of range"),
    ({"y": "answer"}, 'method.y: not where y begins; expected "pair", "mask" or a token id'),
    ({"y": "mask"}, "method.y: the model has no tokenizer with a mask"),
])  # fmt: skip
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    model = tiny("bert")
    with pytest.raises(fw.InputError, match=message):
        fw.attach(model, fw.PTuning(**options))
    assert torch.equal(logits(model, inputs("bert")), logits(tiny("bert"), inputs("bert")))


@pytest.mark.parametrize("template", [(3, 3), (3, 0, 1), "P x y P"])
def test_a_decoder_is_told_where_its_answer_begins(template: Any) -> None:
    with pytest.raises(fw.InputError, match=r"method.template: where a decoder's row ends moves as it writes"):
        fw.attach(tiny("llama"), fw.PTuning(template=template))
    assert fw.attach(tiny("llama", task="classify"), fw.PTuning(template=template))


def test_rows_without_y() -> None:
    model = made("bert", template=(1, 1), y=9)
    with pytest.raises(fw.InputError, match=r"input_ids: rows without the token 9 .*got \[1\]"):
        model(input_ids=torch.tensor([[9, 11], [11, 12]]))
    with pytest.raises(fw.InputError, match="inputs_embeds do not tell where y begins"):
        model(inputs_embeds=torch.zeros(1, 2, 32))


def test_a_mask_by_name(tmp_path: Any) -> None:
    """The tokenizer's; a file knows its number."""

    class Tokenizer:
        mask_token_id = 9

    one, other = tiny("bert"), tiny("bert")
    one.tokenizer = Tokenizer()
    made("bert", one, template=(1, 1), y="mask")
    made("bert", other, template=(1, 1), y=9)
    ids = torch.tensor([[11, 9, 12]])
    assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids).logits)
    fw.save(one, tmp_path)
    again = fw.load(tiny("bert"), tmp_path)
    assert (again(input_ids=ids).logits - one(input_ids=ids).logits).abs().max() <= 1e-6


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_pseudo_tokens_on_disk(arch: str, tmp_path: Any) -> None:
    model = made(arch, template=(2,), pseudo=7)
    ids = torch.tensor([[11, 7, 12, 7]])
    more = {"decoder_input_ids": ids} if arch == "t5" else {}
    fw.save(model, tmp_path)
    again = fw.load(tiny(arch), tmp_path)
    assert sum(t.numel() for t in state(again, "default").values()) == 2 * 32
    assert (again(input_ids=ids, **more).logits - model(input_ids=ids, **more).logits).abs().max() <= 1e-5


def test_written_and_read_again() -> None:
    for noun in (fw.PTuning(template=(2, 1), encoder="mlp", hidden=8, y=103), fw.PTuning(template="PP x P", pseudo=5)):
        assert type(noun).from_dict(noun.to_dict()) == noun
        assert eval(repr(noun), {"PTuning": fw.PTuning}) == noun
