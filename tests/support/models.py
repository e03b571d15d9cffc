"""Tiny random-weight models of the seven architectures, with non-zero biases and norms that are not all ones."""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

SIZE: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
ENCODERS = ("bert", "roberta")
DECODERS = ("gpt2", "llama", "neox", "phi3")
ARCHITECTURES = (*ENCODERS, *DECODERS, "t5")


def build(arch: str, task: str = "") -> nn.Module:
    import transformers as hf

    special: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    grouped = {"num_key_value_heads": 2}
    if arch == "bert":
        return hf.BertForSequenceClassification(hf.BertConfig(**SIZE, num_labels=3))
    if arch == "roberta":
        return hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZE, num_labels=3, **special))
    if arch == "gpt2":
        config = hf.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, **special)
        return (hf.GPT2ForSequenceClassification if task == "classify" else hf.GPT2LMHeadModel)(config)
    if arch == "llama":
        config = hf.LlamaConfig(**SIZE, **grouped, **special)
        return (hf.LlamaForSequenceClassification if task == "classify" else hf.LlamaForCausalLM)(config)
    if arch == "neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE, **special))
    if arch == "phi3":
        return hf.Phi3ForCausalLM(hf.Phi3Config(**SIZE, **grouped, **special))
    assert arch == "t5"
    config = hf.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, **{k: v for k, v in special.items() if k != "bos_token_id"},
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


@cache
def made(arch: str, dtype: torch.dtype, task: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(arch, task).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.2)
            elif p.dim() == 1:
                p.add_(0.2 * torch.randn_like(p))
    return model.to(dtype)


def tiny(arch: str, dtype: torch.dtype = torch.float32, task: str = "") -> Any:
    """A fresh copy of a tiny model, in eval mode."""
    return deepcopy(made(arch, dtype, task))


def inputs(arch: str, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Token ids without padding; encoder-decoders get the same ids on both sides."""
    ids = torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if arch == "t5" else {})


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's logits without gradients."""
    with torch.no_grad():
        return model(**batch).logits


def disturb(model: nn.Module, scale: float = 0.1, seed: int = 3) -> None:
    """Move everything that trains away from its start, so that no law holds for lack of an effect."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=noise).to(p.dtype))
