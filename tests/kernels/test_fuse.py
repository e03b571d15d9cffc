import copy
import io

import pytest
import torch

import featherweight as fw
from featherweight.core.host import Host, frozen_class
from featherweight.kernels import fuse, unfuse
from featherweight.kernels.fuse import Fused

IDS = torch.arange(24).view(2, 12)


def grads(model):
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def warm(model):
    torch.manual_seed(7)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_llama_computes_the_same(llama, dtype):
    model, plain = llama(dtype), llama(dtype)
    assert sorted(set(fuse(model).values())) == ["attention", "gated", "norm"]
    assert fuse(model) == {}
    for m in (model, plain):
        warm(fw.attach(m, fw.LoRA(rank=4, targets="linear")) or m)
        m.eval()
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    (loss, mine), (expected, theirs) = grads(model.train()), grads(plain.train())
    off = 0 if dtype is torch.float32 else 1e-2  # training attends to few keys in 16 bits with sums of its own
    torch.testing.assert_close(loss, expected, rtol=off, atol=0)
    loose = {"rtol": 5e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], **loose)


@pytest.mark.parametrize("order", ["fuse, attach", "attach, fuse"])
def test_a_fused_norm_that_trains_keeps_its_gradient(llama, order):
    model, plain = llama(), llama()
    for step in order.split(", "):
        fuse(model) if step == "fuse" else fw.attach(model, fw.LayerNorm())
    fw.attach(plain, fw.LayerNorm())
    (loss, mine), (expected, theirs) = grads(model), grads(plain)
    assert torch.equal(loss, expected)
    assert len(mine) == 5
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name])


def test_a_host_stays_a_host_and_fused(llama):
    model = llama()
    fw.attach(model, fw.LayerNorm())
    fuse(model)
    norm = model.model.norm
    assert isinstance(norm, Host)
    assert issubclass(frozen_class(norm), Fused)
    fw.detach(model)
    assert not isinstance(norm, Host)
    assert issubclass(type(norm), Fused)
    unfuse(model)
    assert type(norm) is type(llama().model.norm)


def test_unfuse_gives_every_class_back(llama, bert):
    for model in (llama(), bert()):
        before = [type(m) for m in model.modules()]
        assert fuse(model)
        assert [type(m) for m in model.modules()] != before
        unfuse(model)
        assert [type(m) for m in model.modules()] == before


def test_keys_names_and_isinstance_stay(llama):
    model, plain = llama(), llama()
    fuse(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert type(model.model.norm).__name__ == "LlamaRMSNorm"
    assert isinstance(model.model.norm, type(plain.model.norm))
    assert repr(model) == repr(plain)


def test_copies_and_pickles(llama):
    model = llama()
    fuse(model)
    fw.attach(model, fw.LayerNorm())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = model(input_ids=IDS).logits
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(twin.model.norm) is type(model.model.norm)
        assert torch.equal(twin(input_ids=IDS).logits, expected)


def test_a_fused_encoder_trains_and_answers_as_before(bert):
    model, plain = bert(), bert()
    assert sorted(set(fuse(model).values())) == ["attention", "dropout"]
    torch.manual_seed(0)
    noisy = [model(input_ids=IDS).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    for m in (model, plain):
        m.eval()
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)


def test_dropout_of_a_fused_encoder_has_the_same_spread(bert):
    """Mean and deviation over many masks agree with torch's own dropout."""
    model, plain = bert(num_hidden_layers=1), bert(num_hidden_layers=1)
    fuse(model)
    ids = IDS[:1].expand(2000, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        mine, theirs = model(input_ids=ids).logits, plain(input_ids=ids).logits
    deviation = theirs.std(0)
    assert ((mine.mean(0) - theirs.mean(0)).abs() < 5 * deviation * (2 / 2000) ** 0.5).all()
    assert ((mine.std(0) / deviation - 1).abs() < 0.12).all()


def test_checkpointing_repeats_the_noise(bert):
    found = []
    for on in (False, True):
        model = bert()
        fuse(model)
        fw.attach(model, fw.LoRA(rank=2, dropout=0.3, targets="linear"), head=False)
        warm(model)
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_fused_model_compiles_to_one_graph(llama):
    model = llama()
    fuse(model)
    fw.attach(model, fw.LoRA(rank=2, targets="linear"))
    warm(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    torch.testing.assert_close(compiled(input_ids=IDS, labels=IDS, use_cache=False).loss, expected)
