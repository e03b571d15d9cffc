"""LORA: W + s B A. `lora_A.weight (r, in)`, `lora_B.weight (out, r)`; embeddings `lora_embedding_A (r, V)`, `_B (H,
r)`.

Slices of a fused projection are exact as one LoRA of the summed rank r = Σ rᵢ over the whole projection:

    A = [A₁; A₂]  (r, in)        B = | B₁ 0  |  at the rows of each slice  (out, r)        alpha = s r
                                     | 0  B₂ |

with the slices' common scale s (alpha = s √r with `use_rslora`). Slices of unequal scale sᵢ take s₁ and fold sᵢ/s₁
into Bᵢ, kept in fp64 so that the way back rounds to the very same Bᵢ.

A change that is counted from a start B₀ A₀ (PiSSA, OLoRA) is one LoRA of twice the rank, over the untouched base:
A = [A; A₀], B = [B, −B₀]. DoRA adds `lora_magnitude_vector (out,)`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from featherweight.checkpoint.entry import Entry, same, stacked
from featherweight.checkpoint.peft.codec import Adapters, Codec, refused, typed
from featherweight.checkpoint.peft.names import PREFIX, endings, named, regex, targeted, width
from featherweight.checkpoint.peft.slices import diagonal, magnitudes
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem
from featherweight.core.host import base_modules
from featherweight.core.method import Method
from featherweight.core.part import Part, Parts, transposed
from featherweight.core.site import kind_of
from featherweight.methods.dora import Decomposed, DoRA, lengths
from featherweight.methods.lora import LoRA
from featherweight.methods.lowrank import LowRank, LowRankEmbedding
from featherweight.methods.shifted import Shifted

# fmt: off
FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "bias",
          "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "fan_in_fan_out",
          "init_lora_weights", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
          "qalora_group_size", "ensure_weight_tying", "use_dora")
FOREIGN = ("lora_bias", "target_parameters", "trainable_token_indices", "layer_replication", "use_qalora",
           "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
           "megatron_config")  # what makes the adapter compute something else than LoRA
# fmt: on
TYPES: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": (list, str),
    "exclude_modules": (list, str),
    "modules_to_save": (list,),
    "layers_to_transform": (list, int),
    "layers_pattern": (list, str),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
}
NAMES = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))  # [is an embedding]
UNTOUCHED = (True, False, None, "gaussian", "eva", "orthogonal")  # inits that leave the base's weights alone


def config(model: nn.Module, method: Method, adapters: Adapters) -> dict[str, Any]:
    """Read off the adapters themselves: ranks and scales, whatever options made them."""
    method = cast(LoRA, method)
    low = {path: parts(a) for path, a in adapters.items()}
    ranks = {path: sum([part.rank for part in of]) for path, of in low.items()}
    scales = {path: scale(of[0]) for path, of in low.items()}
    alphas = {p: whole(s * (ranks[p] ** 0.5 if method.rank_stabilized else ranks[p])) for p, s in scales.items()}
    modules = dict(base_modules(model))
    usual_rank, usual_alpha = usual(ranks.values()), usual(alphas.values())
    return {
        "r": usual_rank,
        "lora_alpha": usual_alpha,
        "rank_pattern": pattern(ranks, usual_rank),
        "alpha_pattern": pattern(alphas, usual_alpha),
        "lora_dropout": method.dropout,
        "target_modules": named(list(adapters), list(modules)),
        "fan_in_fan_out": any(transposed(modules[path]) for path in adapters),
        "use_rslora": method.rank_stabilized,
        "use_dora": isinstance(method, DoRA),
        "init_lora_weights": "gaussian" if method.init == "gaussian" else True,
        "bias": "none",
    }


def usual(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


def pattern(values: Mapping[str, Any], otherwise: Any) -> dict[str, Any]:
    """What differs from the usual value, by the shortest endings of paths that mean it."""
    found: dict[str, Any] = {}
    for value in dict.fromkeys(v for v in values.values() if v != otherwise):
        found |= dict.fromkeys(endings([p for p, v in values.items() if v == value], list(values)), value)
    return found


def whole(value: float) -> int | float:
    """8.000000000000002 is 8: alpha = s r is computed."""
    near = round(value)
    return near if abs(value - near) <= 1e-9 * max(1.0, abs(value)) else value


def parts(adapter: nn.Module) -> Sequence[LowRank]:
    return [*adapter.of.values()] if isinstance(adapter, Parts) else [adapter]  # type: ignore[list-item]


def scale(adapter: LowRank) -> float:
    return float(adapter.scale)


def entries(model: nn.Module, adapters: Adapters, state: Mapping[str, Tensor]) -> list[Entry]:
    modules = dict(base_modules(model))
    return [e for path, adapter in adapters.items() for e in stored(path, adapter, state, modules[path])]


class Factor(NamedTuple):
    """A pair A, B of the model's tensors by key, with the rows of its slice (None: all) and its share of the scale."""

    A: str
    B: str
    rows: Tensor | None
    fold: float


def factors(path: str, adapter: nn.Module) -> list[Factor]:
    """The pairs of one place: one for each slice, and after it the start that its change is counted from."""
    many = isinstance(adapter, Parts)
    slices = adapter.rows if isinstance(adapter, Parts) else {"": None}
    found, lows = [], parts(adapter)
    for (role, rows), low in zip(slices.items(), lows, strict=True):
        own = f"{path}.{role}" if many else path
        fold = scale(low) / scale(lows[0])
        a, b = NAMES[isinstance(low, LowRankEmbedding)]
        found.append(Factor(f"{own}.{a}", f"{own}.{b}", rows, fold))
        if isinstance(low, Shifted) and low.origin_A is not None:
            found.append(Factor(f"{own}.origin_A", f"{own}.origin_B", rows, -fold))
    return found


def stored(path: str, adapter: nn.Module, state: Mapping[str, Tensor], module: nn.Module) -> list[Entry]:
    """The file's tensors of one place: A and B, and DoRA's magnitude."""
    a, b = (f"{PREFIX}{path}.{name}" for name in NAMES[isinstance(adapter, LowRankEmbedding)])
    found = factors(path, adapter)
    shapes = {key: state[key].shape for f in found for key in (f.A, f.B)}
    if len(found) == 1 and found[0].rows is None:
        pair = [same(a, found[0].A, shapes[found[0].A]), same(b, found[0].B, shapes[found[0].B])]
    else:
        out = shapes[found[0].B][0] if found[0].rows is None else width(module)
        pair = [
            stacked(a, [f.A for f in found], [shapes[f.A] for f in found]),
            diagonal(b, [f.B for f in found], [f.rows for f in found], [shapes[f.B] for f in found],
                     [f.fold for f in found], out),
        ]  # fmt: skip
    return pair + lengthened(path, adapter, state, module)


def lengthened(path: str, adapter: nn.Module, state: Mapping[str, Tensor], module: nn.Module) -> list[Entry]:
    """DoRA's `lora_magnitude_vector (out,)`, of a convolution `(1, out, 1, 1)`; none where the adapter is a LoRA."""
    key = f"{PREFIX}{path}.lora_magnitude_vector"
    if not isinstance(parts(adapter)[0], Decomposed):
        return []
    roles = list(adapter.rows) if isinstance(adapter, Parts) else []
    rows = [r for r in adapter.rows.values() if r is not None] if isinstance(adapter, Parts) else []
    own = [f"{path}.{role}.magnitude" for role in roles] or [f"{path}.magnitude"]
    if rows:
        norms = lengths(Part(module).weight.detach(), state[own[0]].dtype)
        return [magnitudes(key, own, rows, norms)]
    shape = tuple(state[own[0]].shape)
    return [same(key, own[0], shape, (1, *shape, 1, 1) if isinstance(module, nn.Conv2d) else None)]


def method(model: nn.Module, config: Mapping[str, Any], where: str) -> Method:
    """The LoRA that a foreign config means on this model; a fused projection it targets is adapted whole."""
    typed(config, TYPES, where)
    refused(config, FOREIGN, where)
    if config.get("bias", "none") != "none":
        raise InputError(
            Problem("not supported: biases trained beside LoRA", f"{where}:bias", "'none'", repr(config["bias"]))
        )
    init = config.get("init_lora_weights", True)
    if init not in UNTOUCHED:
        raise InputError(
            Problem(
                "its initialization changed the base's weights, which are not in the file",
                f"{where}:init_lora_weights",
                got=repr(init),
                fix="save it from peft in portable form (path_initial_model_for_weight_conversion)",
            )
        )
    modules = dict(base_modules(model))
    if config.get("target_modules") == "all-linear":
        heads = {s.path for s in anatomy(model).sites("head")}
        hit = [p for p, m in modules.items() if kind_of(m) == "linear" and p not in heads]
    else:
        hit = targeted(config, list(modules), where)
    kind = DoRA if config.get("use_dora") else LoRA
    return kind(
        rank=config.get("r", 8),
        alpha=config.get("lora_alpha", 8),
        dropout=config.get("lora_dropout") or 0.0,
        targets=regex(hit, list(modules)),
        rank_pattern=config.get("rank_pattern") or {},
        alpha_pattern=config.get("alpha_pattern") or {},
        init="gaussian" if init == "gaussian" else "kaiming",
        rank_stabilized=bool(config.get("use_rslora")),
    )


CODEC = Codec("LORA", (*FIELDS, *FOREIGN), config, entries, method)
