"""The equations of the lectures that Foundation's methods implement, on a tiny BERT."""

import pytest
import torch
import transformers
from torch.nn import functional as F

import featherweight as fw


@pytest.fixture
def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertModel(transformers.BertConfig(**shape, vocab_size=40)).eval()


IDS = torch.tensor([[1, 5, 9, 2, 7]])


def shake(model: torch.nn.Module) -> None:
    """Move every trainable tensor off its start."""
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))


def test_lora_is_w0_x_plus_the_scaled_ba_x(tiny):
    """h = W₀x + (α/r) BAx; A random, B zero, so the start is the base bit for bit; W₀ stays frozen."""
    x = torch.randn(3, 16)
    base = tiny(IDS).last_hidden_state
    query = tiny.encoder.layer[0].attention.self.query
    plain = query(x)
    fw.attach(tiny, fw.LoRA(rank=2, alpha=6, targets=("query", "value")))
    assert torch.equal(tiny(IDS).last_hidden_state, base)
    adapter = query.adapters["default"]
    assert adapter.lora_A.weight.abs().min() > 0
    assert not adapter.lora_B.weight.any()
    assert not query.weight.requires_grad
    shake(tiny)
    torch.testing.assert_close(query(x), plain + 6 / 2 * x @ adapter.lora_A.weight.T @ adapter.lora_B.weight.T)


def test_lora_merges_into_the_plain_model(tiny):
    """W' = W + BA is precomputed: the merged model has no adapter left, the base's modules, and the same outputs."""
    names = [n for n, _ in tiny.named_modules()]
    fw.attach(tiny, fw.LoRA(rank=2))
    shake(tiny)
    tuned = tiny(IDS).last_hidden_state
    fw.merge(tiny)
    assert [n for n, _ in tiny.named_modules()] == names
    torch.testing.assert_close(tiny(IDS).last_hidden_state, tuned, atol=1e-6, rtol=1e-5)


def test_tasks_share_one_base(tiny):
    """One instance of the base, an A_t, B_t per task, switched quickly and without a trace."""
    base = tiny(IDS).last_hidden_state
    for task in ("fr", "de"):
        fw.attach(tiny, fw.LoRA(rank=2), name=task)
        shake(tiny)
    out = {}
    for task in ("fr", "de", "fr"):
        fw.switch(tiny, task)
        out.setdefault(task, []).append(tiny(IDS).last_hidden_state)
    assert torch.equal(*out["fr"])
    assert not torch.allclose(out["fr"][0], out["de"][0])
    fw.detach(tiny)
    assert torch.equal(tiny(IDS).last_hidden_state, base)


def test_the_modified_ffn(tiny):
    """FFN'(x) = (W2 + U2V2) act((W1 + U1V1) x + b1) + b2, with LoRA on the feed-forward layers."""
    layer, x = tiny.encoder.layer[0], torch.randn(3, 16)
    fw.attach(tiny, fw.LoRA(rank=2, alpha=2, targets=("up", "down")))
    shake(tiny)
    up, down = layer.intermediate.dense, layer.output.dense
    factors = [(m.adapters["default"].lora_A.weight, m.adapters["default"].lora_B.weight) for m in (up, down)]
    w1, w2 = (m.weight + b @ a for m, (a, b) in zip((up, down), factors, strict=True))
    got = down(F.gelu(up(x)))
    torch.testing.assert_close(got, F.gelu(x @ w1.T + up.bias) @ w2.T + down.bias, atol=1e-5, rtol=1e-5)


def test_ia3_rescales_keys_values_and_inner_activations(tiny):
    """softmax(Q (l_k ⊙ Kᵀ)/√d)(l_v ⊙ V) and W₂(l_ff ⊙ γ(W₁x)), each l starting at 1."""
    layer, x, inner = tiny.encoder.layer[0], torch.randn(3, 16), torch.randn(3, 32)
    key, value, down = layer.attention.self.key, layer.attention.self.value, layer.output.dense
    plain = [key(x), value(x)]
    base = tiny(IDS).last_hidden_state
    fw.attach(tiny, fw.IA3())
    assert torch.equal(tiny(IDS).last_hidden_state, base)
    shake(tiny)
    for host, before in zip((key, value), plain, strict=True):
        torch.testing.assert_close(host(x), before * host.adapters["default"].ia3_l.flatten())
    scale = down.adapters["default"].ia3_l.flatten()
    torch.testing.assert_close(down(inner), F.linear(inner * scale, down.weight, down.bias))


def test_ia3_is_the_rank_one_scaling_of_the_code(tiny):
    """weight ⊙ (b aᵀ) with a = 1 on a key, b = 1 on the narrowing layer: the printed general branch at rank 1."""
    fw.attach(tiny, fw.IA3())
    shake(tiny)
    x, inner = torch.randn(3, 16), torch.randn(3, 32)
    key, down = tiny.encoder.layer[0].attention.self.key, tiny.encoder.layer[0].output.dense
    b, a = key.adapters["default"].ia3_l.flatten(), down.adapters["default"].ia3_l.flatten()
    torch.testing.assert_close(key(x), F.linear(x, key.weight * torch.outer(b, torch.ones(16)), b * key.bias))
    torch.testing.assert_close(down(inner), F.linear(inner, down.weight * torch.outer(torch.ones(16), a), down.bias))


def test_feature_based_transfer_trains_the_head_alone():
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    for last, open_blocks in ((0, set()), (2, {"1", "2"})):
        model = transformers.BertForSequenceClassification(config)
        fw.attach(model, fw.Head(last=last))
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert any(n.startswith("classifier") for n in trained)
        assert {n.split(".")[3] for n in trained if n.startswith("bert.encoder.layer")} == open_blocks


def test_full_fine_tuning_trains_every_parameter(tiny):
    size = sum(p.numel() for p in tiny.parameters())
    fw.attach(tiny, fw.Full())
    assert fw.trainable(tiny).trainable == size


def test_lora_reaches_vision_speech_and_convolutions():
    """PEFT "of Vision Transformer, Whisper" and of the convolutions of diffusion models."""
    with torch.device("meta"):
        vit = transformers.ViTModel(transformers.ViTConfig())
        whisper = transformers.WhisperModel(transformers.WhisperConfig())
    for model, count in ((vit, 12 * 2 * 8 * 2 * 768), (whisper, 3 * 4 * 2 * 8 * 2 * 384)):
        fw.attach(model, fw.LoRA(rank=8), head=False)
        assert fw.trainable(model).trainable == count
    unet = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    )
    image = torch.randn(1, 4, 6, 6)
    base = unet(image)
    fw.attach(unet, fw.LoRA(rank=2, targets=lambda path, module: isinstance(module, torch.nn.Conv2d)), head=False)
    assert torch.equal(unet(image), base)
    assert fw.trainable(unet).trainable == 2 * (4 * 9 + 8) + 2 * (8 * 9 + 4)
