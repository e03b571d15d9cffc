"""Tiny models for the fused functions, and native code at every level that this processor has."""

import os

import pytest

from featherweight.core.errors import InputError
from featherweight.kernels import native


@pytest.fixture(scope="session")
def llama():
    """A fresh tiny Llama in training mode, by dtype."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(dtype=torch.float32, **options):
        torch.manual_seed(0)
        config = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                  "num_attention_heads": 4}  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**config | options)).to(dtype).train()
        for p in model.parameters():
            if p.dim() == 1:
                torch.nn.init.normal_(p, mean=1.0, std=0.1)
        return model

    return make


@pytest.fixture(scope="session")
def bert():
    """A fresh tiny BERT classifier in training mode."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    def make(**options):
        torch.manual_seed(0)
        config = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                  "num_attention_heads": 4}  # fmt: skip
        return BertForSequenceClassification(BertConfig(**config | options)).train()

    return make


@pytest.fixture
def plain_path(monkeypatch):
    """Call it, and adapters take the plain path from then on."""
    from featherweight.core import fused

    return lambda: monkeypatch.setattr(fused, "kernels", {})


@pytest.fixture
def agrees(plain_path):
    """Checks that a model's fused step equals its plain one: logits, and the gradients of its `trained` tensors."""
    import copy

    import torch

    def check(model, dtype, trained):
        twin = copy.deepcopy(model)
        ids = torch.arange(24).view(2, 12)
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        plain_path()
        expected = twin(input_ids=ids, labels=ids)
        expected.loss.backward()
        loose = {"rtol": 5e-2, "atol": 5e-2} if dtype is torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(out.logits, expected.logits, **loose)
        pairs = [(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True) if p.requires_grad]
        assert len(pairs) == trained
        for p, q in pairs:
            torch.testing.assert_close(p.grad, q.grad, **loose)

    return check


def use(name):
    """Make native code compute at this level from here on."""
    os.environ["FEATHERWEIGHT_NATIVE"] = name
    native.load.cache_clear()
    return native.load()


@pytest.fixture(params=native.LEVELS)
def level(request, monkeypatch):
    before = native.load().level
    if before is None:
        pytest.skip(native.load().reason)
    monkeypatch.setenv("FEATHERWEIGHT_NATIVE", request.param)
    try:
        yield use(request.param).level
    except InputError as error:
        pytest.skip(str(error))
    finally:
        use(before)
        native.load.cache_clear()
