"""Virtual tokens: laid out by hand, row by row alone, under padding, caches, checkpointing and every kind of output."""

import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from support.models import SIZE, tiny
from support.zoo import ZOO, build
from torch import Tensor

import featherweight as fw
from featherweight.core.state import adapters, live
from featherweight.core.virtual import Virtual, frame, seats

LENGTHS = (7, 4, 6, 5)
ROWS: list[Any] = ["a", None, "b", ("a", "b")]
KNOWN = ("llama", "gpt2", "neox", "phi3", "bert", "roberta", "t5")
ZOOS = ("mistral", "gemma", "bloom", "opt", "mpt", "falcon-multi-query", "gpt-j",
        "distilbert", "modernbert", "bert-mlm", "albert", "bart")  # fmt: skip
SLIDING = {"num_key_value_heads": 2, "sliding_window": 5, "pad_token_id": 0}


def model_of(arch: str) -> Any:
    if arch in KNOWN:
        return tiny(arch)
    torch.manual_seed(0)
    name, config, options, *_ = ZOO[arch]
    extra = {"sliding_window": 5} if arch == "mistral" else {}
    model = build(name, config, options | extra).eval()
    model.config.pad_token_id = 0
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("bias"):
                p.normal_(std=0.2)
    return model


def prompted(arch: str, **options: Any) -> Any:
    """Prompts a (4 tokens) and b (3) that matter."""
    model, noise = model_of(arch), torch.Generator().manual_seed(2)
    for name, n in (("a", 4), ("b", 3)):
        fw.attach(model, fw.Prompt(tokens=n, **options), name, head=False)
        with torch.no_grad():
            for tensor in live(model, name).values():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=noise))
    return model


def sequences() -> list[Tensor]:
    noise = torch.Generator().manual_seed(1)
    return [torch.randint(3, 99, (n,), generator=noise) for n in LENGTHS]


def padded(left: bool) -> dict[str, Tensor]:
    n = max(LENGTHS)
    rows = [(x.new_zeros(n - len(x)), x) for x in sequences()]
    ids = torch.stack([torch.cat(r if left else r[::-1]) for r in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def answer(model: Any, **given: Any) -> Tensor:
    if model.config.is_encoder_decoder:
        noise = torch.Generator().manual_seed(4)
        given["decoder_input_ids"] = torch.randint(3, 99, (4, 5), generator=noise)[: len(given["input_ids"])]
    out: Tensor = model(**given).logits
    return out


def real(y: Tensor, i: int, left: bool, model: Any) -> Tensor:
    """Row i at its tokens, where there is an output for each."""
    if y.dim() < 3 or model.config.is_encoder_decoder:
        return y[i]
    return y[i, -LENGTHS[i] :] if left else y[i, : LENGTHS[i]]


def alone(model: Any, i: int) -> Tensor:
    """Row i of one batch by itself, without padding."""
    fw.switch(model, ROWS[i])
    given: dict[str, Any] = {"input_ids": sequences()[i][None]}
    if model.config.is_encoder_decoder:
        noise = torch.Generator().manual_seed(4)
        given["decoder_input_ids"] = torch.randint(3, 99, (4, 5), generator=noise)[i : i + 1]
    out: Tensor = model(**given).logits[0]
    return out


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("arch", KNOWN + ZOOS)
def test_rows_as_if_alone_forward_and_backward(arch: str, left: bool) -> None:
    model = prompted(arch)
    singles = [alone(model, i) for i in range(4)]
    base = model_of(arch)
    assert (answer(base, input_ids=sequences()[0][None])[0] - singles[0]).abs().max() > 1e-4
    weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(i)) for i, y in enumerate(singles)]
    sum((y * w).sum() for y, w in zip(singles, weights, strict=True)).backward()
    grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    fw.switch(model, rows=ROWS)
    together = answer(model, **padded(left))
    assert together.shape[:2] == ((4, 7) if together.dim() == 3 and not model.config.is_encoder_decoder else
                                  together.shape[:2])  # fmt: skip
    limit = 2e-5 if arch == "t5" else 2e-6  # T5's unscaled attention magnifies rounding
    for i, one in enumerate(singles):
        assert (real(together, i, left, model) - one).abs().max() <= limit, ROWS[i]
    sum((real(together, i, left, model) * w).sum() for i, w in enumerate(weights)).backward()
    assert len(grads) == 2
    for k, g in grads.items():
        assert (dict(model.named_parameters())[k].grad - g).abs().max() <= 1e-5 * g.abs().max().clamp_min(1), k


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "mistral", "bloom", "opt", "falcon-multi-query", "t5", "bart"])
def test_generate_with_rows_padding_and_beams(arch: str, beams: int) -> None:
    """Greedy, some rows end early: they are padded, and the others go on as if alone."""
    model = prompted(arch)
    told: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    pair = model.config.is_encoder_decoder

    def written(i: int, stop: int | None) -> Tensor:
        fw.switch(model, ROWS[i])
        one: Tensor = model.generate(sequences()[i][None], **told, eos_token_id=stop)[0]
        return one if pair else one[LENGTHS[i] :]

    free = [written(i, None) for i in range(4)]
    stop = int(free[0][2]) if beams == 1 else None
    singles = [written(i, stop) for i in range(4)]
    fw.switch(model, rows=ROWS)
    together = model.generate(**padded(left=True), **told, eos_token_id=stop)[:, 0 if pair else 7 :]
    assert arch not in ("llama", "mistral") or beams > 1 or len({len(one) for one in singles}) > 1
    for row, one in zip(together, singles, strict=True):
        assert torch.equal(row[: len(one)], one)
        assert not row[len(one) :].any()


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mistral", "t5"])
def test_laid_out_by_hand(arch: str) -> None:
    """[P; e(x)] handed to the plain model as embeddings."""
    model, plain = prompted(arch), model_of(arch)
    ids = sequences()[0][None]
    fw.switch(model, "a")
    P = next(iter(live(model, "a").values())).detach()
    x = torch.cat([P[None], plain.get_input_embeddings()(ids)], 1)
    more = {"decoder_input_ids": ids} if arch == "t5" else {}
    wanted = plain(inputs_embeds=x, **more).logits[:, -7:]
    assert (model(input_ids=ids, **more).logits - wanted).abs().max() <= (1e-5 if arch == "t5" else 1e-6)


def test_a_stack_is_one_prompt_after_the_other() -> None:
    model, both = prompted("llama"), tiny("llama")
    fw.attach(both, fw.Prompt(tokens=7))
    P = [next(iter(live(model, n).values())) for n in "ab"]
    with torch.no_grad():
        next(iter(live(both, "default").values())).copy_(torch.cat(P))
    ids = sequences()[0][None]
    fw.switch(model, ("a", "b"))
    assert torch.equal(model(input_ids=ids).logits, both(input_ids=ids).logits)
    fw.switch(model, ("b", "a"))
    assert not torch.equal(model(input_ids=ids).logits, both(input_ids=ids).logits)


def test_a_sliding_window_under_left_padding() -> None:
    """Tokens left of the pads would be out of the window of the first words."""
    import transformers as hf

    torch.manual_seed(0)
    model = hf.MistralForCausalLM(hf.MistralConfig(**SIZE, **SLIDING)).eval()
    fw.attach(model, fw.Prompt(tokens=2, init="normal"))
    ids = sequences()[1]
    far = torch.cat([ids.new_zeros(9), ids])[None]
    one = model(input_ids=ids[None]).logits
    many = model(input_ids=far, attention_mask=(far != 0).long()).logits[:, -4:]
    assert (one - many).abs().max() <= 1e-6


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_decoders_that_classify_pool_the_last_token(arch: str, left: bool) -> None:
    model = tiny(arch, task="classify")
    for name, n in (("a", 4), ("b", 3)):
        fw.attach(model, fw.Prompt(tokens=n, init="normal"), name, head=False)
    singles = [alone(model, i) for i in range(4)]
    fw.switch(model, rows=ROWS)
    together = model(**padded(left)).logits
    assert (together - torch.stack(singles)).abs().max() <= 1e-6


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bloom", "mistral", "opt"])
def test_teacher_forcing_is_decoding_step_by_step(arch: str) -> None:
    model = prompted(arch)
    fw.switch(model, rows=["a", "b"])
    ids = torch.stack([sequences()[0], sequences()[0].flip(0)])
    whole = model(input_ids=ids).logits
    out = model(input_ids=ids[:, :3], use_cache=True)
    steps, cache = [out.logits], out.past_key_values
    for t in range(3, 7):
        given = {"attention_mask": torch.ones(2, t + 1).long()} if t % 2 else {}
        steps.append(model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True, **given).logits)
    assert (torch.cat(steps, 1) - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_every_form_of_output(arch: str) -> None:
    """Tuples; hidden states at the input's length; attentions whole."""
    model = prompted(arch)
    fw.switch(model, rows=ROWS)
    model.set_attn_implementation("eager")
    given = padded(left=False)
    out = model(**given, output_hidden_states=True, output_attentions=True)
    assert {h.shape[1] for h in out.hidden_states} == {7}
    assert {a.shape[2:] for a in out.attentions} == {(14, 14)}
    rows = model(**given, return_dict=False)
    assert isinstance(rows, tuple)
    assert torch.equal(rows[0], out.logits)
    singles = []
    for i, ids in enumerate(sequences()):
        fw.switch(model, ROWS[i])
        singles.append(model(input_ids=ids[None], output_hidden_states=True).hidden_states)
    for i, one in enumerate(singles):
        for mine, other in zip(out.hidden_states, one, strict=True):
            assert (mine[i, : LENGTHS[i]] - other[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "roberta", "t5"])
def test_embeddings_for_ids_and_positions_given(arch: str) -> None:
    model = prompted(arch)
    fw.switch(model, rows=ROWS)
    given = padded(left=arch in ("llama", "gpt2"))
    before = answer(model, **given)
    x = model.get_input_embeddings()(given["input_ids"])
    more = {}
    if arch == "t5":
        more["decoder_input_ids"] = torch.randint(3, 99, (4, 5), generator=torch.Generator().manual_seed(4))
    after = model(inputs_embeds=x, attention_mask=given["attention_mask"], **more).logits
    assert (before - after).abs().max() <= 1e-6
    if arch != "t5":
        offset = 1 if arch == "roberta" else 0
        places = (given["attention_mask"].cumsum(1) - 1).clamp_min(0) + offset
        assert (model(**given, position_ids=places).logits - before)[
            given["attention_mask"].bool()[:, -1]
        ].abs().max() <= 1e-6


def test_token_types_and_means_go_along() -> None:
    """BERT's second segment, and a pool over the mask (ModernBERT)."""
    model = prompted("bert")
    ids = sequences()[0][None]
    kinds = (torch.arange(7) > 3).long()[None]
    fw.switch(model, "a")
    one = model(input_ids=ids, token_type_ids=kinds).logits
    assert (one - model(input_ids=ids).logits).abs().max() > 2e-5
    fw.switch(model, rows=["a", "b"])
    two = model(input_ids=ids.repeat(2, 1), token_type_ids=kinds.repeat(2, 1)).logits
    assert (two[:1] - one).abs().max() <= 1e-6


def test_experts_are_balanced_over_the_input() -> None:
    name, config, options, *_ = ZOO["mixtral"]
    torch.manual_seed(0)
    model = build(name, config, options).eval()
    fw.attach(model, fw.Prompt(tokens=4))
    given = padded(left=False)
    out = model(**given, labels=given["input_ids"], output_router_logits=True)
    assert {r.shape for r in out.router_logits} == {(28, 3)}
    assert out.aux_loss.isfinite()
    out.loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("arch", ["llama", "bert", "t5"])
def test_gradient_checkpointing(arch: str, reentrant: bool) -> None:
    model = prompted(arch).train()
    fw.switch(model, rows=ROWS)

    def grads() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)  # dropout
        answer(model, **padded(left=False)).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    plain = grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for a, b in zip(plain, grads(), strict=True):
        assert a.abs().max() > 0
        assert (a - b).abs().max() <= 1e-6 * a.abs().max().clamp_min(1)


@pytest.mark.parametrize("copy", [deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent(copy: Any) -> None:
    model = prompted("llama")
    fw.switch(model, rows=ROWS)
    given = padded(left=True)
    before = model(**given).logits
    other = copy(model)
    assert torch.equal(other(**given).logits, before)
    with torch.no_grad():
        for tensor in live(other, "a").values():
            tensor.add_(1)
    assert not torch.equal(other(**given).logits, before)
    assert torch.equal(model(**given).logits, before)


@pytest.mark.parametrize("arch", ["llama", "bert", "t5"])
def test_compiles_whole_with_rows(arch: str) -> None:
    model = prompted(arch)
    fw.switch(model, rows=ROWS)
    given = padded(left=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    more = {"decoder_input_ids": given["input_ids"]} if arch == "t5" else {"use_cache": False}
    more = {} if arch == "bert" else more
    assert (compiled(**given, **more).logits - model(**given, **more).logits).abs().max() <= 1e-6


def test_half_precision() -> None:
    model = tiny("llama", torch.bfloat16)
    fw.attach(model, fw.Prompt(tokens=3))
    (P,) = live(model, "default").values()
    assert P.dtype == torch.float32
    model(input_ids=sequences()[0][None]).logits.float().square().sum().backward()
    assert P.grad is not None
    assert P.grad.abs().sum() > 0


def test_the_encoder_alone_and_its_states_reused() -> None:
    """generate calls the encoder by itself, and a user may keep its states."""
    model = prompted("t5")
    given = padded(left=False)
    fw.switch(model, rows=ROWS)
    states = model.get_encoder()(**given)
    assert states.last_hidden_state.shape[1] == 7 + 7
    decoder = {"decoder_input_ids": given["input_ids"]}
    again = model(encoder_outputs=states, attention_mask=given["attention_mask"], **decoder).logits
    assert torch.equal(again, model(**given, **decoder).logits)
    ids = torch.stack([sequences()[0]] * 4)
    whole = model(input_ids=ids, decoder_input_ids=ids).logits  # rows of unlike counts, no mask given
    masked = model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=ids).logits
    assert (whole - masked).abs().max() <= 1e-5
    fw.switch(model, None)
    plain = model.get_encoder()(**given)
    fw.switch(model, "a")
    with pytest.raises(fw.InputError, match="does not fit the encoder's states"):
        model(encoder_outputs=states, attention_mask=given["attention_mask"], **decoder)
    known = model(encoder_outputs=plain, attention_mask=given["attention_mask"], **decoder).logits
    fw.switch(model, None)
    assert torch.equal(known, model(**given, **decoder).logits)


def test_a_mask_that_does_not_fit() -> None:
    model = prompted("llama")
    ids = padded(left=True)["input_ids"]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"attention_mask": torch.ones(4, 9)}, r"attention_mask.*expected 7 places; got 9"),
        ({"attention_mask": torch.ones(4, 1, 7, 7)}, r"need a plain mask.*got \(4, 1, 7, 7\)"),
        ({"attention_mask": {"full": torch.ones(4, 7)}}, "need a plain mask.*got dict"),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 4)}, "leave packing out"),
        ({"bbox": torch.zeros(4, 7, 4)}, "bbox: has a value for each token"),
    ]
    for more, message in wrong:
        with pytest.raises(fw.InputError, match=message):
            model(input_ids=ids, **more)
    with pytest.raises(fw.InputError, match="neither input_ids nor inputs_embeds"):
        model.model()


def test_a_static_cache_is_refused() -> None:
    model = prompted("llama")
    told: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    with pytest.raises(fw.InputError, match=r"past_key_values: a static cache.*dynamic"):
        model.generate(**padded(left=True), **told)
    fw.switch(model, None)
    assert model.generate(**padded(left=True), **told).shape == (4, 10)


def test_where_there_is_no_seat() -> None:
    for arch, message in (("vit", "reads no token embeddings"), ("whisper", "reads no token embeddings")):
        name, config, options, *_ = ZOO[arch]
        with pytest.raises(fw.InputError, match=message):
            fw.attach(build(name, config, options), fw.Prompt())
    import transformers as hf

    marian = hf.MarianMTModel(hf.MarianConfig(**ZOO["bart"][2], scale_embedding=True))
    with pytest.raises(fw.InputError, match="scales its embeddings"):
        fw.attach(marian, fw.Prompt())


def test_a_decoder_that_counts_its_own_positions() -> None:
    model = prompted("bart", decoder=True)
    ids = sequences()[0][None].repeat(2, 1)
    fw.switch(model, rows=["a", None])
    with pytest.raises(fw.InputError, match="equally many virtual tokens; got 4, 0"):
        model(input_ids=ids, decoder_input_ids=ids)


class Moved(Virtual):
    """The root half of a prefix: no tokens, other positions."""

    shift = 3


@pytest.mark.parametrize("arch", ["llama", "gpt2", "bert", "roberta"])
def test_a_shift_alone_moves_positions(arch: str) -> None:
    model, plain = prompted(arch), tiny(arch)
    host = adapters(model, "a")
    path, seat = next(iter(host)), seats(model)[0]
    seat.module.adapters["a"] = Moved(frame(seat))
    assert path == seat.path
    fw.switch(model, rows=["a", None])
    ids = sequences()[0][None].repeat(2, 1)
    offset = 1 if arch == "roberta" else 0
    y = model(input_ids=ids).logits
    for i, by in enumerate((3, 0)):
        places = torch.arange(7)[None] + by + offset
        assert (y[i] - plain(input_ids=ids[:1], position_ids=places).logits[0]).abs().max() <= 1e-6
    if arch != "llama":  # rotary positions are relative: all moved is none moved
        assert (y[0] - y[1]).abs().max() > 1e-4
    given = model(input_ids=ids, position_ids=torch.arange(7)[None] + offset).logits
    assert (given - y).abs().max() <= 1e-6
