"""The attention function as a host: judged by transformers' own cache, and by attention written out by hand."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from support.models import ENCODERS, disturb, inputs, logits, tiny
from support.zoo import ZOO, build
from torch import Tensor, nn

import featherweight as fw
from featherweight.core.host import hosts

PREFIX = fw.Prefix(tokens=5, hidden=0)
TOLD = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
OWN = ("gpt-neo", "gpt-j", "bloom", "falcon-multi-query", "falcon-multi-head", "falcon-grouped")
REGISTRY = [name for name in ZOO if name not in ("deberta-v2", "mpt", *OWN)]


def zoo(name: str) -> Any:
    torch.manual_seed(0)
    return build(*ZOO[name][:3]).eval()


def mistral(window: int = 6) -> Any:
    model, config, options, _ = ZOO["mistral"]
    torch.manual_seed(0)
    return build(model, config, options | {"sliding_window": window}).eval()


def fed(model: Any, length: int = 7) -> dict[str, Tensor]:
    """What a model of the zoo eats."""
    noise = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 99, (2, length), generator=noise)
    ids[:, -1] = 2  # BART's classifier reads the last </s>
    name = type(model).__name__
    if name.startswith("ViT"):
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=noise)}
    if name.startswith("Whisper"):
        return {"input_features": torch.randn(2, 8, 64, generator=noise), "decoder_input_ids": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids.roll(1, 1)} if model.config.is_encoder_decoder else {})


def out(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def left(ids: Tensor, n: int = 3) -> dict[str, Tensor]:
    mask = (torch.arange(ids.shape[1] + n) >= n).long().expand(len(ids), -1)
    return {"input_ids": nn.functional.pad(ids, (n, 0)), "attention_mask": mask}


@pytest.mark.parametrize("name", REGISTRY)
def test_every_family_of_the_registry_sees_prefixes_and_gated_prompts(name: str) -> None:
    model = zoo(name)
    batch = fed(model)
    before = out(model, batch)
    config = copy.deepcopy(model.config.to_dict())
    for method in (PREFIX, fw.Prefix(tokens=2, hidden=4), fw.LlamaAdapter(tokens=3)):
        fw.attach(model, method, "a", head=False)
        disturb(model, 1.0)
        called: set[str] = set()
        hooks = [
            h.register_forward_hook(lambda *_, path=path, called=called: called.add(path)) for path, h in hosts(model)
        ]
        after = out(model, batch)
        assert (after - before).abs().max() > 1e-5
        assert called == {path for path, _ in hosts(model)}
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation("eager")
        torch.testing.assert_close(out(model, batch), after, atol=1e-5, rtol=1e-5)
        model.set_attn_implementation("sdpa" if name != "gemma2" else "eager")
        fw.detach(model)
    assert torch.equal(out(model, batch), before)
    assert model.config.to_dict() == config


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, PREFIX) for name in ("deberta-v2", "mpt")), *((name, fw.LlamaAdapter()) for name in (*OWN, "mpt"))],
)
def test_families_that_compute_attention_themselves_are_refused(name: str, method: Any) -> None:
    """Where they hand their keys to a cache, prefixes get in, and gated prompts do not."""
    model = zoo(name)
    with pytest.raises(fw.InputError, match=r"computes attention itself.*another method"):
        fw.attach(model, method)
    assert not list(hosts(model))


def cached(model: Any, prefixes: list[tuple[Tensor, Tensor]], rows: int) -> Any:
    """transformers' own cache, filled with prefixes (n, kv_heads · head_dim)."""
    from transformers import DynamicCache

    heads = model.config.num_attention_heads
    cache, size = DynamicCache(), model.config.hidden_size // heads
    for i, of in enumerate(prefixes):
        pair = [p.detach().view(len(p), -1, size).transpose(0, 1) for p in of]
        if getattr(model.config, "new_decoder_architecture", False):  # Falcon repeats grouped keys
            pair = [p.repeat_interleave(heads // len(p), 0) for p in pair]
        cache.update(*(p.expand(rows, -1, -1, -1) for p in pair), i)
    return cache


@pytest.mark.parametrize("arch", ["llama", "gpt2", "neox", "phi3", *OWN])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_prefix_is_a_cache_that_was_there_before(arch: str, implementation: str) -> None:
    model = zoo(arch) if arch in OWN else tiny(arch)
    if getattr(model, "_supports_sdpa", True) or implementation == "eager":
        model.set_attn_implementation(implementation)
    fw.attach(model, PREFIX)
    disturb(model, 1.0)
    ids = inputs("llama")["input_ids"]
    made = [(h.adapters["default"].prompt_keys, h.adapters["default"].prompt_values) for _, h in at_attention(model)]
    ours = logits(model, {"input_ids": ids})
    with fw.switch(model, None):
        theirs = out(model, {"input_ids": ids, "past_key_values": cached(model, made, 2)})
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def at_attention(model: Any) -> list[tuple[str, Any]]:
    return [(p, h) for p, h in hosts(model) if hasattr(h.adapters["default"], "past")]


def by_hand(prefix: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """Eager attention with the prefixes of a module written out, bidirectional or under the model's own mask."""

    def attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        scores = q @ k.mT * kwargs.get("scaling", q.shape[-1] ** -0.5)
        scores = scores if kwargs.get("position_bias") is None else scores + kwargs["position_bias"]
        scores = scores if mask is None else scores + mask
        keys, values = (
            p.view(len(p), q.shape[1], -1).transpose(0, 1) for p in prefix[id(module)]
        )  # (heads, n, head_dim)
        new = torch.einsum("bhqd,hnd->bhqn", q, keys) * kwargs.get("scaling", q.shape[-1] ** -0.5)
        weights = torch.cat([new, scores], -1).softmax(-1)
        n = keys.shape[1]
        return (weights[..., n:] @ v + weights[..., :n] @ values).transpose(1, 2), None

    return attention


@pytest.mark.parametrize("arch", [*ENCODERS, "t5"])
def test_prefixes_by_hand(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also encoder, decoder and cross-attention of T5, whose position bias does not reach the prefix; padded rows."""
    import sys

    model = tiny(arch)
    fw.attach(model, PREFIX, head=False)
    disturb(model, 1.0)
    batch = inputs(arch)
    batch["attention_mask"] = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    ours = logits(model, batch)
    pairs = {
        id(h): (h.adapters["default"].prompt_keys, h.adapters["default"].prompt_values) for _, h in at_attention(model)
    }
    assert len(pairs) == {"t5": 6}.get(arch, 2)
    shift = 0 if arch == "t5" else 5
    plain = fw.detach(copy.deepcopy(model))
    named = {p: pairs[id(h)] for p, h in at_attention(model)}
    prefix = {id(m): named[p] for p, m in plain.named_modules() if p in named}
    plain.set_attn_implementation("eager")
    module = sys.modules[next(type(m) for p, m in plain.named_modules() if p in named).__module__]
    monkeypatch.setattr(module, "eager_attention_forward", by_hand(prefix))
    if arch == "roberta":  # its positions count from the padding index
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) * batch["attention_mask"]) + shift
    elif shift:
        batch["position_ids"] = torch.arange(7)[None] + shift
    torch.testing.assert_close(ours, logits(plain, batch), atol=1e-5, rtol=1e-5)


METHODS = [PREFIX, fw.Prefix(tokens=3, hidden=4), fw.LlamaAdapter(tokens=3)]


@pytest.mark.parametrize(
    ("name", "method"),
    [*product(["llama", "gpt2", "neox", "phi3", "mistral"], METHODS), *((name, PREFIX) for name in OWN)],
)
def test_padding_cache_and_generate_are_exact(name: str, method: Any) -> None:
    """Mistral's window is shorter than the input: the prefix is seen past it, beside pads and from a cache."""
    model = fw.attach(mistral() if name == "mistral" else zoo(name) if name in OWN else tiny(name), method)
    disturb(model, 1.0)
    ids = torch.randint(3, 99, (2, 9), generator=torch.Generator().manual_seed(1))
    whole = logits(model, {"input_ids": ids})
    given = left(ids) | {"position_ids": (left(ids)["attention_mask"].cumsum(1) - 1).clamp_min(0)}
    torch.testing.assert_close(logits(model, given)[:, 3:], whole, atol=1e-5, rtol=1e-5)
    cache, steps = None, []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            step = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            steps.append(step.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 9  # nothing virtual is in it
    for told in (TOLD, TOLD | {"num_beams": 3}):
        alone = [model.generate(row[None], attention_mask=torch.ones_like(row[None]), **told)[0, 9:] for row in ids]
        both = model.generate(**left(ids), **told)[:, 12:]
        assert torch.equal(both, torch.stack(alone))


def test_generate_recomputes_what_a_cache_would_give() -> None:
    model = fw.attach(tiny("t5"), PREFIX)
    disturb(model, 1.0)
    ids = inputs("t5")["input_ids"]
    told = TOLD | {"num_beams": 2}
    assert torch.equal(model.generate(ids, **told), model.generate(ids, use_cache=False, **told))
    with fw.switch(model, None):
        plain = model.generate(ids, **told)
    assert not torch.equal(model.generate(ids, **told), plain)


ROWS = ["five", "three", None, "gated", "lora", ("lora", "five"), ("gated", "three"), "mlp"]


def crowd(model: Any, gated: bool = True) -> Any:
    """Prefixes of two lengths and one with an MLP, gated prompts and LoRA, all moved from their start."""
    methods = {"five": PREFIX, "three": fw.Prefix(tokens=3, hidden=0), "mlp": fw.DeepPrompt(tokens=2, hidden=4),
               "gated": fw.LlamaAdapter(tokens=4) if gated else fw.IA3(), "lora": fw.LoRA(rank=2)}  # fmt: skip
    for i, (name, method) in enumerate(methods.items()):
        torch.manual_seed(i)
        fw.attach(model, method, name, head=False)
        disturb(model, 0.7, seed=i)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert", "t5", "bloom", "falcon-grouped"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_row_with_its_own_is_each_row_alone(name: str, side: str) -> None:
    """Forward and backward; the attention function runs once for all of them."""
    dtype = torch.float64 if name == "t5" else torch.float32  # T5's unscaled scores multiply every rounding error
    own = name in OWN  # no gated prompts there
    model = crowd(zoo(name) if own else mistral() if name == "mistral" else tiny(name, dtype), gated=not own)
    noise = torch.Generator().manual_seed(1)
    lengths = [9, 4, 7, 9, 5, 6, 3, 8]
    rows = [torch.randint(3, 99, (n,), generator=noise) for n in lengths]
    gaps = [(9 - n, 0) if side == "left" and name not in ("bert", "t5") else (0, 9 - n) for n in lengths]
    ids = torch.stack([nn.functional.pad(r, g) for r, g in zip(rows, gaps, strict=True)])
    mask = torch.stack([nn.functional.pad(torch.ones_like(r), g) for r, g in zip(rows, gaps, strict=True)])
    more = {"decoder_input_ids": torch.randint(3, 99, (8, 5), generator=noise)} if name == "t5" else {}
    if side == "left" and name not in ("bert", "t5"):
        more["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    per_token = name not in ("bert", "t5")

    def loss(y: Tensor) -> Tensor:
        return (y * torch.linspace(-1, 1, y.shape[-1], dtype=y.dtype)).square().sum()

    fw.switch(model, rows=ROWS)
    mixed = model(input_ids=ids, attention_mask=mask, **more).logits
    mixed = [y[m.bool()] if per_token else y for y, m in zip(mixed, mask, strict=True)]
    sum(loss(y) for y in mixed).backward()  # type: ignore[union-attr]
    together = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, (row, of) in enumerate(zip(rows, ROWS, strict=True)):
        fw.switch(model, of)
        own = {"decoder_input_ids": more["decoder_input_ids"][i : i + 1]} if name == "t5" else {}
        y = model(input_ids=row[None], **own).logits[0]
        torch.testing.assert_close(mixed[i], y, atol=1e-5, rtol=1e-5)
        if y.requires_grad:
            loss(y).backward()
    apart = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert set(together) == set(apart)
    for k, g in apart.items():
        assert (together[k] - g).abs().max() <= 1e-5 * g.abs().max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "t5"])
@pytest.mark.parametrize("beams", [1, 2])
def test_rows_generate_what_each_generates_alone(name: str, beams: int) -> None:
    model = crowd(mistral() if name == "mistral" else tiny(name))
    ids = torch.randint(3, 99, (len(ROWS), 9), generator=torch.Generator().manual_seed(1))
    told, start = TOLD | {"num_beams": beams}, 0 if name == "t5" else 9
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if name == "t5" else left(ids)
    fw.switch(model, rows=ROWS)
    mixed = model.generate(**given, **told)
    alone = []
    for row, of in zip(ids, ROWS, strict=True):
        fw.switch(model, of)
        alone.append(model.generate(row[None], attention_mask=torch.ones_like(row[None]), **told)[0, start:])
    assert torch.equal(mixed[:, start + (0 if name == "t5" else 3) :], torch.stack(alone))
    assert len({tuple(a.tolist()) for a in alone}) > 1
