"""Tiny random-weight models, with non-zero biases and norms that are not all ones.

ARCHITECTURES are the seven of every test; the laws run on EVERY.
"""

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from support import unet, zoo

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
# name -> its place in the zoo
MORE = {
    "deberta-v2": "deberta-v2", "distilbert": "distilbert", "opt": "opt", "bloom": "bloom",
    "falcon": "falcon-multi-query", "mixtral": "mixtral", "qwen3": "qwen3", "gemma": "gemma", "bart": "bart",
    "whisper": "whisper", "vit": "vit",
}  # fmt: skip
EVERY = (*ARCHITECTURES, *MORE, "unet")
PAIRS = ("t5", "bart", "whisper")  # encoder and decoder
WRITERS = (*DECODERS, "opt", "bloom", "falcon", "mixtral", "qwen3", "gemma")  # they write on from a prompt
READERS = (*ENCODERS, "deberta-v2", "distilbert")


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
    if arch == "unet":
        return unet.UNetAttention()
    if arch in MORE:
        return without_dropout(*zoo.ZOO[MORE[arch]][:3])
    assert arch == "t5"
    config = hf.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        decoder_start_token_id=0, **{k: v for k, v in special.items() if k != "bos_token_id"},
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config)


def without_dropout(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    """A model of the zoo; with every kind of dropout off, also those that no module holds."""
    import transformers as hf

    made = getattr(hf, config)(**options)
    for name, value in vars(made).items():
        if "drop" in name and isinstance(value, float):
            setattr(made, name, 0.0)
    return getattr(hf, model)(made)


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
    """What a forward takes: token ids without padding (encoder-decoders get them on both sides), pixels or sound."""
    noise = torch.Generator().manual_seed(1)
    if arch == "unet":
        text = torch.randn(rows, 5, unet.TEXT, generator=noise)
        return {"hidden_states": torch.randn(rows, 8, 4, 4, generator=noise), "encoder_hidden_states": text}
    if arch == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=noise)}
    ids = torch.randint(3, 99, (rows, length), generator=noise)
    if arch == "whisper":
        return {"input_features": torch.randn(rows, 8, 64, generator=noise), "decoder_input_ids": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids.flip(1)} if arch in PAIRS else {})


def labelled(arch: str, rows: int = 2) -> dict[str, Tensor]:
    """Inputs with labels, for what needs a loss; a part of a model (the UNet's) has none."""
    batch = inputs(arch, rows)
    if arch == "unet":
        return batch
    if arch in READERS or arch == "vit":
        return batch | {"labels": torch.arange(rows) % 2}
    ids = batch.get("decoder_input_ids", batch.get("input_ids"))
    assert ids is not None
    return {k: v for k, v in batch.items() if k != "decoder_input_ids"} | {"labels": ids}


def output(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's logits, or its own output where that is a tensor; sound and pixels come in the model's dtype."""
    dtype = next(model.parameters()).dtype
    made = model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()})
    return made if isinstance(made, Tensor) else made.logits


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """`output` without gradients."""
    with torch.no_grad():
        return output(model, batch)


def disturb(model: nn.Module, scale: float = 0.1, seed: int = 3) -> None:
    """Move everything that trains away from its start, so that no law holds for lack of an effect."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=noise).to(p.dtype))
