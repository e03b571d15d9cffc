"""Whole models while few rows are read: the texts that they write otherwise, whatever their norms and angles are."""

from functools import partial

import pytest
import torch
import transformers as tf

import featherweight as fw
from featherweight.kernels import fuse, native, native_token
from featherweight.kernels.few import few_rows
from featherweight.quant import ops
from featherweight.tasks import generation

SMALL = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
# kind -> what is served natively of a token in two layers: norms, angles, attention
KINDS = {
    "Llama": (5, 2, 2), "Qwen2": (5, 2, 2), "Mistral": (5, 2, 2), "Qwen3": (9, 2, 2), "Gemma": (0, 2, 2),
    "Phi3": (5, 0, 2), "Cohere": (0, 0, 2), "Olmo2": (9, 2, 2), "StableLm": (0, 0, 2),
}  # fmt: skip
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
IDS = torch.arange(18).view(3, 6) * MASK


def model_of(kind, **options):
    torch.manual_seed(0)
    config = getattr(tf, f"{kind}Config")(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=None, **options)
    return getattr(tf, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture
def counted(monkeypatch):
    """How often each native function of a token was called."""
    if native.load().level is None:
        pytest.skip(native.load().reason)
    counts = {}
    for name in ("norm", "rotate", "attend"):
        real = partial(getattr(native_token, name), native.load().functions[name])

        def watch(*args, name=name, real=real):
            y = real(*args)
            if y is not NotImplemented:
                counts[name] = counts.get(name, 0) + 1
            return y

        monkeypatch.setitem(ops.native, name, watch)
    return counts


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts(kind, counted, fused):
    model = model_of(kind)
    if fused:
        fuse(model)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 5, "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    expected = model.generate(input_ids=IDS, attention_mask=MASK, **options)
    forwards = [type(m).forward for m in model.modules()]
    with few_rows(model):  # angles are tried out once for each file
        pass
    counted.clear()
    with few_rows(model):
        found = model.generate(input_ids=IDS, attention_mask=MASK, **options)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)
    norms, angles, attention = KINDS[kind]  # the prompt's norms are small too
    assert counted == {k: v for k, v in {"norm": 5 * norms, "rotate": 4 * angles, "attend": 4 * attention}.items() if v}
    assert [type(m).forward for m in model.modules()] == forwards
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("options", [{"attn_implementation": "eager"}, {"dtype": torch.float16}, {"sliding_window": 4}])
def test_other_settings_are_the_models_own(counted, options):
    dtype = options.pop("dtype", torch.float32)
    model = model_of("Mistral", **options).to(dtype)
    expected = model.generate(input_ids=IDS, attention_mask=MASK, do_sample=False, max_new_tokens=5)
    found = generation.run(model, IDS, MASK, 0, 5, {})
    assert torch.equal(found, expected)
    assert bool(counted.get("attend")) == ("sliding_window" in options)


def test_adapters_around_attention_keep_their_way(counted):
    model = model_of("Llama")
    fw.attach(model, fw.Prefix(tokens=3), head=False)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p)
    expected = model.generate(input_ids=IDS, attention_mask=MASK, do_sample=False, max_new_tokens=5)
    assert torch.equal(generation.run(model, IDS, MASK, 0, 5, {}), expected)
    assert not counted.get("attend")


def test_nothing_native_changes_nothing(monkeypatch):
    model = model_of("Llama")
    expected = generation.run(model, IDS, MASK, 0, 5, {})
    monkeypatch.setattr(ops, "native", {})
    monkeypatch.setattr("featherweight.kernels.few_attention.native", {})
    assert torch.equal(generation.run(model, IDS, MASK, 0, 5, {}), expected)
