"""Which rows of a fused projection are query, key and value (or gate and up).

Shapes cannot tell the two layouts apart, so a small table (`lexicon.FUSED`) proposes and the model itself decides:

    blocks    q q q q | k k k k | v v v v        GPT-2, Phi-3
    grouped   q k v | q k v | q k v | q k v      GPT-NeoX, BLOOM, Falcon: per key-value head, its queries, key, value

With the value rows silenced attention's context is zero; with the query rows silenced it equals the context with the
key rows silenced. The feed-forward's inner activation is linear in the up rows and not in the gate rows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.encoded import like
from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.core.host import base_modules, frozen_class
from featherweight.core.part import spread, transposed
from featherweight.core.switch import switch

proven: dict[tuple[Any, ...], bool] = {}


def fused_rows(model: nn.Module, path: str, module: Any, names: tuple[str, ...], layout: str) -> dict[str, Tensor]:
    """Row numbers by role, proven on the model.

    Raises InputError when the table's layout is not what the model does.
    """
    weight = like(module)
    out = int(weight.shape[1 if transposed(module) else 0])
    rows = halves(out, names) if len(names) == 2 else heads(model, out, names, layout)
    refuse = Problem(
        "cannot tell which rows of this fused projection are " + ", ".join(names),
        path,
        fix='adapt it whole: give its path as a regex, or the role "linear"',
    )
    if rows is None:
        raise InputError(refuse)
    if weight.is_meta:
        return rows
    if next(p for p, _ in base_modules(model) if p.endswith(leaf(path)) and same_list(p, path)) != path:
        return rows  # one block speaks for all of its list
    key = (frozen_class(model), path, tuple(weight.shape), layout)
    if key not in proven:
        proven[key] = (behaves_as_mlp if len(names) == 2 else behaves_as_attention)(model, path, module, rows)
    if not proven[key]:
        raise InputError(refuse)
    return rows


def leaf(path: str) -> str:
    return "." + path.rsplit(".", 1)[-1]


def same_list(a: str, b: str) -> bool:
    """Whether two paths differ in their numbers only."""
    return [s for s in a.split(".") if not s.isdigit()] == [s for s in b.split(".") if not s.isdigit()]


def halves(out: int, names: tuple[str, ...]) -> dict[str, Tensor] | None:
    return {n: spread([range(i * out // 2, (i + 1) * out // 2)]) for i, n in enumerate(names)} if out % 2 == 0 else None


def heads(model: nn.Module, out: int, names: tuple[str, ...], layout: str) -> dict[str, Tensor] | None:
    """The rows under a layout, from the config's head counts; None when they do not add up to `out`."""
    config: Any = getattr(model, "config", None)
    query = first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    if not query:
        return None
    pairs = first(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or query
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        pairs = 1
    for kv in (pairs, query):
        size, rest = divmod(out, query + 2 * kv)
        if not rest and query % kv == 0:
            break
    else:
        return None
    if layout == "blocks":
        edges = [0, query * size, (query + kv) * size, out]
        return {n: spread([range(a, b)]) for n, a, b in zip(names, edges, edges[1:], strict=False)}
    q = query // kv * size
    group = q + 2 * size
    spans = {names[0]: (0, q), names[1]: (q, q + size), names[2]: (q + size, group)}
    return {n: spread([range(g * group + a, g * group + b) for g in range(kv)]) for n, (a, b) in spans.items()}


def first(config: Any, *names: str) -> int:
    return next((int(v) for n in names if (v := getattr(config, n, None))), 0)


def silenced(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: y.index_fill(-1, rows.to(y.device), 0.0)


def doubled(rows: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: y.index_copy(-1, rows.to(y.device), 2 * y.index_select(-1, rows.to(y.device)))


def behaves_as_attention(model: nn.Module, path: str, module: nn.Module, rows: dict[str, Tensor]) -> bool:
    """Silence the rows of each role in turn and look at the context that reaches the output projection."""
    plain, query, key, value = (
        inner(model, path, module, f)
        for f in (lambda y: y, silenced(rows["query"]), silenced(rows["key"]), silenced(rows["value"]))
    )
    if plain is None or query is None or key is None or value is None:
        return False
    return not value.any() and torch.allclose(query, key, atol=1e-5) and not torch.allclose(plain, query, atol=1e-7)


def behaves_as_mlp(model: nn.Module, path: str, module: nn.Module, rows: dict[str, Tensor]) -> bool:
    """Doubling the up rows doubles what reaches the down projection; doubling the gate rows does not."""
    plain, up, gate = (inner(model, path, module, f) for f in (lambda y: y, doubled(rows["up"]), doubled(rows["gate"])))
    if plain is None or up is None or gate is None:
        return False
    return close(up, 2 * plain) and not close(gate, 2 * plain)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-6)


class Seen(Exception):
    """Carries the activation out of the model once it is known: nothing behind the first block is computed."""


def inner(model: nn.Module, path: str, module: Any, change: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The input of the linear that follows the fused one, for a five-token input, with the fused output changed."""
    following = next_linear(model, path)
    if following is None:
        return None

    def stop(_: Any, args: tuple[Tensor, ...]) -> None:
        raise Seen(args[0])

    hooks = [module.register_forward_hook(lambda _m, _a, y: change(y)), following.register_forward_pre_hook(stop)]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    try:
        with torch.no_grad(), switch(model, None):  # what is attached already would blur the answer
            ids = torch.arange(5, device=like(module).device)[None] % embedding.num_embeddings
            model(input_ids=ids)
        return None
    except Seen as seen:
        return seen.args[0].float()
    except FeatherweightError:
        raise
    except Exception as error:
        raise InputError(
            Problem(
                "the model could not be run on five tokens to find the rows of its fused projection",
                path,
                got=f"{type(error).__name__}: {error}",
            )
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode


def next_linear(model: nn.Module, path: str) -> nn.Module | None:
    """The linear after the fused one in the same part of the block."""
    parent = path.rsplit(".", 1)[0]
    names = [(p, m) for p, m in base_modules(model) if p.startswith(parent + ".") and isinstance(m, nn.Module)]
    linears = [m for p, m in names if p != path and (isinstance(m, nn.Linear) or transposed(m))]
    return linears[0] if len(linears) == 1 else None
