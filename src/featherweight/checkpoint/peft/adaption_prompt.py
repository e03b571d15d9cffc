"""ADAPTION_PROMPT: `self_attn.adaption_prompt` (1, n, d) and `self_attn.adaption_gate` (1,) of the top layers.

PEFT has it for Llama, Mistral and GPT-2. On GPT-2 it adds the gated prompt behind the output projection instead of in
front of it: another function, which is not read, and not written under that name.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same
from featherweight.checkpoint.peft import own
from featherweight.checkpoint.peft.codec import Adapters, Codec, typed
from featherweight.checkpoint.peft.names import PREFIX
from featherweight.core.errors import Problem, raise_all
from featherweight.core.method import Method
from featherweight.methods.llama_adapter import LlamaAdapter

FIELDS = ("target_modules", "adapter_len", "adapter_layers")
TYPES = {"target_modules": (str,), "adapter_len": (int,), "adapter_layers": (int,)}
SPOKEN = ("llama", "mistral")


def kind(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def config(model: nn.Module, method: Any, adapters: Adapters) -> dict[str, Any]:
    if kind(model) not in SPOKEN:
        return {"peft_type": f"{own.MARK}LLAMAADAPTER", **own.config(model, method, adapters)}
    return {
        "target_modules": next(iter(adapters)).rpartition(".")[2],
        "adapter_len": method.tokens,
        "adapter_layers": len(adapters),
    }


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    if kind(model) not in SPOKEN:
        return own.entries(model, adapters, state)
    keys = [f"{path}.{n}" for path, a in adapters.items() for n, _ in a.named_parameters()]
    return [same(f"{PREFIX}{key}", key, tuple(state[key].shape)) for key in keys]


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The gated prompts that a foreign config means."""
    typed(config, TYPES, where)
    found = [
        Problem("not a number of them", f"{where}:{name}", "at least 1", repr(config.get(name)))
        for name in ("adapter_len", "adapter_layers")
        if not config.get(name) or config[name] < 1
    ]
    if kind(model) not in SPOKEN:
        what = "gated prompts that PEFT adds behind the output projection"
        found.append(Problem(what, f"{where}:peft_type", " or ".join(SPOKEN), kind(model), "train them here"))
    raise_all(found)
    return LlamaAdapter(tokens=config["adapter_len"], layers=config["adapter_layers"])


CODEC = Codec("ADAPTION_PROMPT", FIELDS, config, entries, method, fits=lambda m: not m.per_head)
