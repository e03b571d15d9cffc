"""Llamas on disk for tests of peak memory: what is measured must be their weights, not the interpreter."""

from typing import Any


def filled_llama(width: int, layers: int, **options: Any) -> Any:
    """A Llama whose tensors hold a short ramp over and over: nothing is drawn, and no page is left untouched."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers, **options)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, 997).repeat(p.numel() // 997 + 1)[: p.numel()].view(p.shape))
    return model
