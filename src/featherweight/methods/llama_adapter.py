"""LLaMA-Adapter: prompts in the top layers, attended to apart from the text and let in by a gate that starts at 0.

    y = softmax(q Kᵀ s) V  +  g · softmax(q K_pᵀ s) V_p        K_p, V_p = the layer's own k, v projections of P

P (n, d) is the layer's prompt, g its gate, s the scale of the layer's own attention. Rotary positions are not applied
to the prompt. Its softmax, apart from the text's, is taken in fp32. The sum goes through the output projection.
`per_head` has a gate for each of the h heads, as the authors' code; PEFT, and this by default, have one a layer.
Count: L' (n d + 1) for the top L' layers, L' (n d + h) with a gate for each head. Init: P normal with variance 1 and
g = 0, so attaching changes nothing. Merge: none, the prompt meets a softmax of its own.
Source: Zhang et al. 2023, "LLaMA-Adapter: Efficient fine-tuning of language models with zero-init attention",
arXiv:2303.16199.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from featherweight.core.adapter import Adapter
from featherweight.core.attending import AtAttention, Attention, attentions
from featherweight.core.errors import Problem, raise_all
from featherweight.core.host import frozen
from featherweight.core.method import Method
from featherweight.core.replace import master
from featherweight.core.site import Site


@dataclass(frozen=True, repr=False)
class LlamaAdapter(Method):
    """Gated prompts of `tokens` in the self-attention of the top `layers` blocks, all of them where there are fewer."""

    tokens: int = 10
    layers: int = 30
    per_head: bool = False

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.16199"
    place: ClassVar[str] = "self-attention of the top layers"
    mergeable: ClassVar[bool] = False
    lr: ClassVar[float] = 9e-3
    lr_source: ClassVar[str] = "Zhang et al. 2023, their code: base rate 9e-3, 2 of 5 epochs of warm-up"

    def hosts(self, model: nn.Module) -> Sequence[Site]:
        given = (("tokens", self.tokens), ("layers", self.layers))
        raise_all(Problem("out of range", f"method.{n}", "at least 1", str(v)) for n, v in given if v < 1)
        return [a.site for a in attentions(model, "attend", self.layers, cross=False)]

    def shared(self, model: nn.Module) -> dict[str, Attention]:
        return {a.path: a for a in attentions(model, "attend", self.layers, cross=False)}

    def build(self, site: Site, shared: dict[str, Attention]) -> Adapter:
        return Gated(shared[site.path], self.tokens, self.per_head)


class Gated(AtAttention):
    """On an attention module: adaption_prompt (1, n, d), adaption_gate (1,) or (heads,)."""

    def __init__(self, at: Attention, tokens: int, per_head: bool):
        super().__init__()
        weight = at.key.host.weight  # (d_kv, d)
        kind: dict[str, Any] = {"dtype": master(weight.dtype), "device": weight.device}
        self.adaption_prompt = nn.Parameter(torch.randn(1, tokens, weight.shape[1], **kind))
        self.adaption_gate = nn.Parameter(torch.zeros(at.heads if per_head else 1, **kind))
        self.made_by = tuple((s.path.removeprefix(f"{at.path}."), s.rows) for s in (at.key, at.value))

    def attend(
        self, base: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        y, weights = base(q, k, v, mask, **kwargs)  # y (batch, time, heads, head_dim)
        keys, values = (
            self.projected(base.host.module, *made, like=x) for made, x in zip(self.made_by, (k, v), strict=True)
        )
        groups = q.shape[1] // k.shape[1]
        scale = kwargs.get("scaling") or q.shape[-1] ** -0.5
        scores = q @ keys.repeat_interleave(groups, 1).mT * scale  # (batch, heads, time, n)
        seen = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
        gate = self.adaption_gate.to(q.dtype).view(-1, 1, 1)
        extra = (gate * seen) @ values.repeat_interleave(groups, 1)
        return y + extra.transpose(1, 2), weights

    def projected(self, module: nn.Module, name: str, rows: Tensor | None, like: Tensor) -> Tensor:
        """The prompt through a frozen projection of the module: (1, kv_heads, n, head_dim)."""
        source = module.get_submodule(name)
        out = frozen(source)(self.adaption_prompt.to(like.dtype))
        out = out if rows is None else out.index_select(-1, rows.to(out.device))
        made: Tensor = out.view(1, -1, like.shape[1], like.shape[3]).transpose(1, 2)
        return made
