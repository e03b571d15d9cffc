"""Which module is what: blocks, attention, feed-forward, norms, embedding and head of any transformer, by structure.

    blocks     the outermost ModuleLists whose members hold linear layers
    attention  the largest part of a block that holds the query but no feed-forward layer
    output     what is left of attention's linears once query, key and value are known
    up, down   linears of the rest of the block, widening and narrowing
    head       what the model has beside its trunk

Names (`lexicon.py`) only settle what structure leaves open. Fused projections resolve to slices (`layout.py`).
"""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from featherweight.core import lexicon
from featherweight.core.encoded import encoded, identity, like
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.host import base_modules
from featherweight.core.layout import fused_rows
from featherweight.core.part import transposed
from featherweight.core.site import Site, is_norm, kind_of


@dataclass(frozen=True)
class Anatomy:
    """Sites by role. `blocks` are in order, the encoder's before the decoder's; `head` holds leaves with tensors."""

    blocks: tuple[tuple[str, nn.Module], ...]
    roles: dict[str, list[Site]] = field(default_factory=dict)
    generates: bool = False  # the head is a language-model head
    undecided: dict[str, Problem] = field(
        default_factory=dict
    )  # roles inside fused projections nobody could tell apart

    def sites(self, role: str) -> list[Site]:
        """The sites of a role or of a union of roles. Raises InputError where a fused projection keeps its secret."""
        parts = lexicon.UNIONS.get(role, (role,))
        raise_all(dict.fromkeys(self.undecided[r] for r in parts if r in self.undecided))
        return [s for r in parts for s in self.roles.get(r, [])]


def anatomy(model: nn.Module) -> Anatomy:
    """The anatomy of a model; adapters in it are looked through."""
    blocks = find_blocks(model)
    roles: defaultdict[str, list[Site]] = defaultdict(list)
    undecided: dict[str, Problem] = {}
    for path, block in blocks:
        for site in block_sites(model, path, block, undecided):
            roles[site.role].append(site)
    roles["norm"] = [Site(p, m, "norm") for p, m in base_modules(model) if is_norm(m)]
    roles["head"], generates = find_head(model)
    roles["linear"] = find_linears(model)
    roles["embedding"] = find_embedding(model)
    return Anatomy(tuple(blocks), dict(roles), generates, undecided)


def sites(model: nn.Module, role: str) -> list[Site]:
    """`anatomy(model).sites(role)`; the blocks' insides are only looked at for a role that lies in them."""
    return find_linears(model) if role == "linear" else anatomy(model).sites(role)


def find_linears(model: nn.Module) -> list[Site]:
    """The linear layers of the blocks (of the whole, where there are none) that are no part of the head."""
    within = [m for _, m in find_blocks(model)] or [model]
    linears = {id(m) for b in within for _, m in base_modules(b) if kind_of(m) == "linear"}
    linears -= {id(s.module) for s in find_head(model)[0]}
    return [Site(p, m, "linear") for p, m in base_modules(model) if id(m) in linears]


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    lists: list[str] = []
    for path, module in base_modules(model):
        if not isinstance(module, nn.ModuleList) or any(path.startswith(p + ".") for p in lists):
            continue
        if len(module) and all(any(kind_of(m) == "linear" for _, m in base_modules(b)) for b in module):
            lists.append(path)
            found += [(f"{path}.{i}", block) for i, block in enumerate(module)]
    return found


def block_sites(model: nn.Module, path: str, block: nn.Module, undecided: dict[str, Problem]) -> list[Site]:
    """The attention and feed-forward sites of one block."""
    linears = {p: m for p, m in base_modules(block) if kind_of(m) == "linear" and p}
    roots = attention_roots(linears)
    sites = []
    for p, module in linears.items():
        root = next((r for r in roots if p.startswith(r + ".")), None)
        role = attention_role(p, linears, root) if root else mlp_role(p, module, block)
        if role == "fused":
            sites += slices(model, f"{path}.{p}", module, undecided)
        elif role:
            sites.append(Site(f"{path}.{p}", module, role))
    return sites


def slices(model: nn.Module, path: str, module: nn.Module, undecided: dict[str, Problem]) -> list[Site]:
    """The sites inside a fused projection; where its layout is not proven, its roles are noted as undecided."""
    names, layout = lexicon.FUSED[leaf(path)]
    try:
        rows = fused_rows(model, path, module, names, layout)
    except InputError as error:
        undecided |= {name: error.problems[0] for name in names if name not in undecided}
        return []
    return [Site(path, module, name, rows[name]) for name in names]


def attention_roots(linears: dict[str, nn.Module]) -> list[str]:
    """For each query or fused projection the largest part of the block around it without a widening layer."""
    roots = []
    for p in linears:
        if leaf(p) not in lexicon.QUERY and lexicon.FUSED.get(leaf(p), ((),))[0][:1] != ("query",):
            continue
        root = p
        for end in reversed([i for i, c in enumerate(p) if c == "."]):
            if any(widens(q, m) for q, m in linears.items() if q.startswith(p[:end] + ".")):
                break
            root = p[:end]
        if root != p and root not in roots:
            roots.append(root)
    return roots


def leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer."""
    weight: Any = like(module)
    out, into = weight.shape[::-1] if transposed(module) else weight.shape
    return int(out), int(into)


def widens(p: str, module: nn.Module) -> bool:
    """Whether a linear opens a feed-forward block: by name, else by making its input wider."""
    if leaf(p) in ATTENTION:
        return False
    return leaf(p) in lexicon.UP | lexicon.GATE or shape(module)[0] > shape(module)[1]


ATTENTION = (
    lexicon.QUERY | lexicon.KEY | lexicon.VALUE | {n for n, (roles, _) in lexicon.FUSED.items() if "query" in roles}
)


def attention_role(p: str, linears: dict[str, nn.Module], root: str) -> str:
    if leaf(p) in lexicon.FUSED:
        return "fused"
    for role, names in (("query", lexicon.QUERY), ("key", lexicon.KEY), ("value", lexicon.VALUE)):
        if leaf(p) in names:
            return role
    rest = [q for q in linears if q.startswith(root + ".") and leaf(q) not in ATTENTION and "pos_" not in q]
    return "output" if rest == [p] else ""


def mlp_role(p: str, module: nn.Module, block: nn.Module) -> str:
    if leaf(p) in lexicon.FUSED:
        return "fused"
    for role, names in (("gate", lexicon.GATE), ("up", lexicon.UP), ("down", lexicon.DOWN)):
        if leaf(p) in names:
            return role
    out, into = shape(module)
    norm: Any = next((m for _, m in base_modules(block) if is_norm(m)), None)
    width = None if norm is None else norm.weight.shape[0]
    if out != into and width in (out, into):
        return "down" if out == width else "up"
    return ""


def find_head(model: nn.Module) -> tuple[list[Site], bool]:
    """The leaves with tensors of what the model has beside its trunk, and whether they make a language-model head."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if output is not None:
        path = next(p for p, m in base_modules(model) if m is output)
        return [Site(path, output, "head")], True
    trunk = getattr(model, "base_model", None)
    if not isinstance(trunk, nn.Module) or trunk is model:
        return [], False
    inside = {id(m) for _, m in base_modules(trunk)}
    return [Site(p, m, "head") for p, m in base_modules(model) if id(m) not in inside and holds(m)], False


def find_embedding(model: nn.Module) -> list[Site]:
    """The input embedding; where encoder and decoder each hold the shared table, those two: they are what is called."""
    found: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    tables = [(p, m) for p, m in base_modules(model) if isinstance(m, nn.Embedding)]
    if not isinstance(found, nn.Module):
        found = max((m for _, m in tables), key=lambda m: m.num_embeddings, default=None)
    one = None if found is None else identity(found, "weight")
    sharers = [(p, m) for p, m in tables if m is not found and found is not None and identity(m, "weight") is one]
    return [Site(p, m, "embedding") for p, m in sharers or tables if sharers or m is found]


def holds(module: nn.Module) -> bool:
    """Whether a module has tensors of its own."""
    return any(p is not None for p in module._parameters.values()) or bool(encoded(module))
