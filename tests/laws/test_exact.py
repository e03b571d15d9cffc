"""Exact however the model is run: padded, from a cache, generating, compiled whole."""

import inspect
from typing import Any

import torch
from support.laws import attached, law
from support.models import PAIRS, READERS, WRITERS, inputs, logits
from torch import Tensor, nn

import featherweight as fw

NEAR: dict[str, float] = {"atol": 1e-4, "rtol": 1e-4}
GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def padded(ids: Tensor, left: bool, by: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and their mask."""
    pad = (by, 0) if left else (0, by)
    return nn.functional.pad(ids, pad), nn.functional.pad(torch.ones_like(ids), pad)


@law(among=(*READERS, *PAIRS[:2]), dtypes=False, each=4)
def test_padding_changes_nothing_for_readers(method: Any, arch: str, dtype: torch.dtype) -> None:
    model, batch = attached(method, arch), inputs(arch)
    ids, mask = padded(batch["input_ids"], left=False)
    more = logits(model, batch | {"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(more, logits(model, batch), **NEAR)


@law(among=WRITERS, dtypes=False, each=4)
def test_padding_changes_nothing_for_writers(method: Any, arch: str, dtype: torch.dtype) -> None:
    model, batch = attached(method, arch), inputs(arch)
    whole = logits(model, batch)
    ids, mask = padded(batch["input_ids"], left=True)
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(type(model).forward).parameters:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    torch.testing.assert_close(logits(model, given)[:, 3:], whole, **NEAR)
    ids, mask = padded(batch["input_ids"], left=False)
    torch.testing.assert_close(logits(model, {"input_ids": ids, "attention_mask": mask})[:, :7], whole, **NEAR)


@law(among=WRITERS, dtypes=False, each=4)
def test_a_cache_changes_nothing(method: Any, arch: str, dtype: torch.dtype) -> None:
    """A prompt of three tokens, then one token at a time."""
    model, ids = attached(method, arch), inputs(arch)["input_ids"]
    cache, steps = None, []
    with torch.no_grad():
        for piece in (ids[:, :3], *ids[:, 3:].split(1, dim=1)):
            out = model(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), logits(model, {"input_ids": ids}), **NEAR)


@law(among=WRITERS, dtypes=False, each=3)
def test_generate_is_exact(method: Any, arch: str, dtype: torch.dtype) -> None:
    """Cached, uncached, left-padded and merged: the same tokens."""
    model, ids = attached(method, arch), inputs(arch)["input_ids"]
    here = {"attention_mask": torch.ones_like(ids)} | GREEDY
    plain = model.generate(ids, **here)[:, ids.shape[1] :]
    assert torch.equal(model.generate(ids, use_cache=False, **here)[:, ids.shape[1] :], plain)
    left, mask = padded(ids, left=True)
    assert torch.equal(model.generate(left, attention_mask=mask, **GREEDY)[:, left.shape[1] :], plain)
    if method.mergeable:
        with fw.merged(model):
            assert torch.equal(model.generate(ids, **here)[:, ids.shape[1] :], plain)


@law(among=PAIRS, dtypes=False, each=2)
def test_generate_is_exact_with_an_encoder(method: Any, arch: str, dtype: torch.dtype) -> None:
    """Cached, uncached, padded and merged: the same tokens, beams included."""
    model, batch = attached(method, arch), inputs(arch)
    told = dict(GREEDY)
    given = {k: v for k, v in batch.items() if k != "decoder_input_ids"}
    plain = model.generate(**given, **told)
    assert torch.equal(model.generate(**given, use_cache=False, **told), plain)
    if "input_ids" in given:
        ids, mask = padded(given["input_ids"], left=False)
        assert torch.equal(model.generate(ids, attention_mask=mask, **told), plain)
    beams = model.generate(**given, num_beams=2, **told)
    assert torch.equal(model.generate(**given, num_beams=2, use_cache=False, **told), beams)
    if method.mergeable:
        with fw.merged(model):
            assert torch.equal(model.generate(**given, **told), plain)


@law(dtypes=False, each=1)
def test_compiles_whole(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch)
    before = logits(model, inputs(arch))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    cached = "use_cache" in inspect.signature(type(model).forward).parameters
    options: Any = {"use_cache": False} if cached else {}
    with torch.no_grad():
        out = compiled(**inputs(arch), **options)
    torch.testing.assert_close(out if isinstance(out, Tensor) else out.logits, before, atol=1e-5, rtol=1e-5)
