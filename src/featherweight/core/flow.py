"""How hidden states flow through a block, seen by running the model once on a tiny input and following tensors by
identity. What is a norm over a residual sum in one model is a norm in front of a sublayer in another (BART, Whisper),
under the same names and shapes.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.site import is_norm
from featherweight.core.switch import switch


@dataclass(frozen=True)
class Flow:
    """`norm`: the norm whose output the block returns; `front`: the one whose output the feed-forward reads; paths
    within the block, "" for none. `summed`: the module around the feed-forward's last layer is given the feed-forward's
    input as its second argument and ends in `norm`.
    """

    norm: str
    front: str
    summed: bool


class Done(Exception):
    """Every block that was to be watched has run."""


class Watch:
    """Hooks on one block: its norms, the first layer of its feed-forward and the module around the last."""

    def __init__(self, path: str, block: nn.Module, start: nn.Module, around: nn.Module | None):
        self.path, self.normed, self.fed, self.given = path, [], [], []  # type: ignore[var-annotated]
        norms = [(p, m) for p, m in base_modules(block) if is_norm(m)]
        self.handles = [m.register_forward_hook(lambda _m, _a, y, p=p: self.normed.append((y, p))) for p, m in norms]
        self.handles.append(start.register_forward_pre_hook(lambda _, a: self.fed.extend(a[:1])))
        if around is not None:
            self.handles.append(around.register_forward_pre_hook(lambda _, a: self.given.append(a)))

    def flow(self, out: Any) -> Flow:
        hidden = out[0] if isinstance(out, tuple) else out
        norm = next((p for y, p in self.normed if y is hidden), "")
        front = next((p for y, p in self.normed if any(y is x for x in self.fed)), "")
        summed = any(len(a) == 2 and any(a[1] is x for x in self.fed) for a in self.given)
        return Flow(norm, front, bool(norm) and summed)


def watched(model: nn.Module, watches: list[Watch], blocks: Mapping[str, nn.Module]) -> dict[str, Flow]:
    """The flow of each watched block. The model is run with its adapters off and left as it was."""
    flows: dict[str, Flow] = {}

    def end(watch: Watch, out: Any) -> None:
        flows[watch.path] = watch.flow(out)
        if len(flows) == len(watches):
            raise Done

    ends = [blocks[w.path].register_forward_hook(lambda _m, _a, out, w=w: end(w, out)) for w in watches]
    modes = [(m, m.training) for m in model.modules()]
    try:
        stored = not next(model.parameters()).is_meta
        with torch.no_grad(), switch(model, None), nullcontext() if stored else Unstored():
            model.eval()(**sample(model))
        raise InputError(Problem("this block is never called", next(w.path for w in watches if w.path not in flows)))
    except Done:
        return flows
    except FeatherweightError:
        raise
    except Exception as error:
        raise InputError(unrunnable(watches[0].path, error)) from error
    finally:
        for handle in [*ends, *(h for w in watches for h in w.handles)]:
            handle.remove()
        for m, mode in modes:
            m.training = mode


class Unstored(TorchDispatchMode):
    """Lets a model on the meta device run: where it asks a tensor for a number, as whether a mask is all ones, that is
    1. Tensors keep their identity there, and that is all that is looked at.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta:
            return grouped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None) -> Tensor:
    """Shape of experts' products, (tokens, in) by (experts, in, out) and what their gradients take; torch's own rule
    for tensors without storage is that of a GPU: bfloat16 alone.
    """
    experts = a.shape[:-2] or (b.shape[:-2] if offs is None else offs.shape)
    groups = experts if a.dim() == b.dim() else ()
    return a.new_empty(*groups, a.shape[-2], b.shape[-1], dtype=out_dtype or a.dtype)


def unrunnable(path: str, error: Exception) -> Problem:
    return Problem(
        "the model could not be run on a tiny input to see how its blocks sum and normalize",
        path,
        got=f"{type(error).__name__}: {error}",
        fix="Houlsby() and Lin() need no such run",
    )


def sample(model: nn.Module) -> dict[str, Tensor]:
    """The smallest input of a model's kind: five tokens, an image or a spectrogram of zeros."""
    config: Any = getattr(model, "config", None)
    p = next(model.parameters())
    ids = torch.arange(5, device=p.device)[None]
    name = getattr(model, "main_input_name", "input_ids")
    if name == "pixel_values":
        side = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        inputs = {name: torch.zeros(1, config.num_channels, side, side, device=p.device, dtype=p.dtype)}
    elif name == "input_features":
        size = (1, config.num_mel_bins, 2 * config.max_source_positions)
        inputs = {name: torch.zeros(size, device=p.device, dtype=p.dtype)}
    else:
        inputs = {name: ids, "attention_mask": torch.ones_like(ids)}
    return inputs | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})
