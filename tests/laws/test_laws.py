"""The laws, run for every method on every architecture. A trait decides where a law holds; nothing is skipped."""

import copy
import pickle
from typing import Any

import pytest
import torch
from support.cases import METHODS, WITHOUT_BIAS, cases, meaningless
from support.models import ARCHITECTURES, DECODERS, disturb, inputs, logits, tiny
from torch import nn

import featherweight as fw
from featherweight.core.host import Host, base_parameters, hosts
from featherweight.core.state import load_state, state

# Largest difference allowed, relative to the largest logit: bf16 keeps 8 bits, lost again at each of a dozen matmuls.
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}
law = pytest.mark.parametrize(("method", "arch", "dtype"), cases())
law32 = pytest.mark.parametrize(("method", "arch", "dtype"), cases(dtypes=False))


def attached(method: Any, arch: str, dtype: torch.dtype, moved: bool = True) -> nn.Module:
    torch.manual_seed(5)
    model = fw.attach(tiny(arch, dtype), method, "a")
    if moved:
        disturb(model)
    return model


def close(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((a - b).abs().max() <= CLOSE[dtype] * b.abs().max())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@law
def test_identity_at_init(method: Any, arch: str, dtype: torch.dtype) -> None:
    assert method.identity
    before = logits(tiny(arch, dtype), inputs(arch))
    assert torch.equal(logits(attached(method, arch, dtype, moved=False), inputs(arch)), before)


@law
def test_the_adapter_has_an_effect(method: Any, arch: str, dtype: torch.dtype) -> None:
    before = logits(tiny(arch, dtype), inputs(arch))
    assert (logits(attached(method, arch, dtype), inputs(arch)) - before).abs().max() > 1e-4


@law
def test_base_keys_class_and_signature_stay(method: Any, arch: str, dtype: torch.dtype) -> None:
    plain, model = tiny(arch, dtype), attached(method, arch, dtype)
    keys = model.state_dict()
    assert [k for k in keys if ".adapters." not in k and not k.startswith("adapters.")] == list(plain.state_dict())
    for (_, was), (_, now) in zip(
        plain.named_modules(), [m for m in model.named_modules() if "adapters" not in m[0]], strict=True
    ):
        assert isinstance(now, type(was))
        assert type(now).__name__ == type(was).__name__
        assert type(now).forward.__doc__ == type(was).forward.__doc__


@law
def test_only_the_adapter_learns(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    base = {k: p.detach().clone() for k, p in base_parameters(model)}
    trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("adapters" in k for k in trained)
    model(**inputs(arch)).logits.float().square().sum().backward()
    without = [k for k, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    before = {k: p.detach().clone() for k, p in trained.items()}
    torch.optim.SGD(trained.values(), lr=0.1).step()
    assert any(not torch.equal(before[k], p) for k, p in trained.items())
    assert same(base, {k: p.detach() for k, p in base_parameters(model)})
    assert all(p.grad is None for _, p in base_parameters(model))


@law
def test_forward_is_merge(method: Any, arch: str, dtype: torch.dtype) -> None:
    assert method.mergeable
    model = attached(method, arch, dtype)
    before = logits(model, inputs(arch))
    plain = fw.merge(model)
    assert not any(isinstance(m, Host) for m in plain.modules())
    assert close(logits(plain, inputs(arch)), before, dtype)


@law32
@pytest.mark.parametrize("above", ["full", "norm", "lora-linear-rs", "ia3"])
def test_forward_is_merge_stacked(method: Any, arch: str, dtype: torch.dtype, above: str) -> None:
    model = attached(method, arch, dtype)
    fw.attach(model, METHODS[above], "b", stack=True, head=False)
    disturb(model, seed=4)
    before = logits(model, inputs(arch))
    with fw.switch(model, "b"):  # a replacement on top of a replacement hides it; all else must show
        shows = not torch.equal(logits(model, inputs(arch)), before)
    assert shows or above in ("full", "norm")
    with fw.merged(model):
        assert close(logits(model, inputs(arch)), before, dtype)
    assert torch.equal(logits(model, inputs(arch)), before)
    assert close(logits(fw.merge(model), inputs(arch)), before, dtype)


@law
def test_merged_and_detach_restore_bit_for_bit(method: Any, arch: str, dtype: torch.dtype) -> None:
    plain, model = tiny(arch, dtype), tiny(arch, dtype)
    frozen = [k for k, p in model.named_parameters() if p.requires_grad][::3]
    for k, p in model.named_parameters():
        p.requires_grad_(k not in frozen)
    fw.attach(model, method, "a")
    disturb(model)
    on = logits(model, inputs(arch))
    with fw.merged(model):
        pass
    assert torch.equal(logits(model, inputs(arch)), on)
    with fw.switch(model, None):
        assert torch.equal(logits(model, inputs(arch)), logits(plain, inputs(arch)))
    assert torch.equal(logits(model, inputs(arch)), on)
    fw.detach(model)
    assert same(model.state_dict(), plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == frozen
    assert not [m for m in model.modules() if "switch" in vars(m)]


@law
def test_state_loads_exactly(method: Any, arch: str, dtype: torch.dtype) -> None:
    one, two = attached(method, arch, dtype), attached(method, arch, dtype, moved=False)
    load_state(two, "a", state(one, "a"))
    assert same(state(one, "a"), state(two, "a"))
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))


@law
def test_saved_and_loaded_exactly(method: Any, arch: str, dtype: torch.dtype, tmp_path: Any) -> None:
    one = attached(method, arch, dtype)
    fw.save(one, tmp_path, name="a")
    two = fw.load(tiny(arch, dtype), tmp_path, name="b")
    assert same(state(one, "a"), state(two, "b"))
    assert torch.equal(logits(one, inputs(arch)), logits(two, inputs(arch)))
    assert not [p for p in two.parameters() if p.requires_grad]


@law
def test_deepcopy_and_pickle_are_independent(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    before = logits(model, inputs(arch))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, inputs(arch)), before)
        disturb(other, seed=9)
        fw.switch(other, None)
        assert torch.equal(logits(model, inputs(arch)), before)
        assert all(host.switch is next(hosts(other))[1].switch for _, host in hosts(other))


@law
def test_every_host_is_called(method: Any, arch: str, dtype: torch.dtype) -> None:
    model = attached(method, arch, dtype)
    called: set[str] = set()
    for path, host in hosts(model):
        host.register_forward_hook(lambda *_, path=path: called.add(path))
    logits(model, inputs(arch))
    uncalled = {path for path, _ in hosts(model)} - called
    assert uncalled <= {"shared"}, "T5's shared table is read through the encoder's and decoder's own"


@law32
def test_gradient_checkpointing_gives_the_same_gradients(method: Any, arch: str, dtype: torch.dtype) -> None:
    grads = []
    for checkpointing in (False, True):
        model = attached(method, arch, dtype).train()
        for m in model.modules():
            if isinstance(m, nn.Dropout):
                m.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**inputs(arch)).logits.square().sum().backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.requires_grad})
    for k, g in grads[0].items():
        torch.testing.assert_close(grads[1][k], g, atol=1e-5, rtol=1e-4)


@law32
def test_padding_cache_and_generate_are_exact(method: Any, arch: str, dtype: torch.dtype) -> None:
    if arch not in DECODERS:
        model, batch = attached(method, arch, dtype), inputs(arch)
        padded = {k: nn.functional.pad(v, (0, 3)) for k, v in batch.items() if k == "input_ids"}
        padded["attention_mask"] = (torch.arange(10) < 7).long().expand(2, -1)
        rest = {k: v for k, v in batch.items() if k != "input_ids"}
        torch.testing.assert_close(logits(model, padded | rest), logits(model, batch), atol=1e-4, rtol=1e-4)
        return
    model, ids = attached(method, arch, dtype), inputs(arch)["input_ids"]
    whole = logits(model, {"input_ids": ids})
    left = nn.functional.pad(ids, (3, 0))
    mask = (torch.arange(10) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = logits(model, {"input_ids": left, "attention_mask": mask, "position_ids": positions})
    torch.testing.assert_close(padded[:, 3:], whole, atol=1e-4, rtol=1e-4)
    cache, steps = None, []
    with torch.no_grad():
        for t in range(ids.shape[1]):
            out = model(input_ids=ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)
    told = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, attention_mask=torch.ones_like(ids), **told)[:, ids.shape[1] :]
    assert torch.equal(model.generate(left, attention_mask=mask, **told)[:, left.shape[1] :], plain)
    with fw.merged(model):
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **told)[:, ids.shape[1] :], plain)


@pytest.mark.parametrize(
    "arch",
    ["bert", "gpt2", pytest.param("llama", marks=pytest.mark.sweep), pytest.param("t5", marks=pytest.mark.sweep)],
)
@pytest.mark.parametrize("name", [n for n in METHODS if n != "bitfit-query-up"])
def test_compiles_whole(name: str, arch: str) -> None:
    if meaningless(name, arch):
        with pytest.raises(fw.InputError):
            attached(METHODS[name], arch, torch.float32)
        return
    model = attached(METHODS[name], arch, torch.float32)
    before = logits(model, inputs(arch))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        after = compiled(**inputs(arch), **({} if arch == "bert" else {"use_cache": False})).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", WITHOUT_BIAS)
@pytest.mark.parametrize("name", ["bitfit", "bitfit-query-up"])
def test_refused(name: str, arch: str) -> None:
    model = tiny(arch)
    with pytest.raises(fw.InputError, match="bias"):
        fw.attach(model, METHODS[name])
    assert not [m for m in model.modules() if isinstance(m, Host)]
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", list(METHODS))
def test_a_third_task_leaves_the_first_two_alone(name: str, arch: str) -> None:
    if meaningless(name, arch):
        return
    model = tiny(arch)
    kept = {}
    for n, method in (("one", LORA), ("two", METHODS[name])):
        fw.attach(model, method, n)
        disturb(model, seed=len(kept))
        kept[n] = logits(model, inputs(arch))
    fw.attach(model, METHODS[name], "three")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs(arch)).logits.square().mean().backward()
        optimizer.step()
    for n, before in kept.items():
        fw.switch(model, n)
        assert torch.equal(logits(model, inputs(arch)), before)


LORA = METHODS["lora"]
