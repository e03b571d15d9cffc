"""A student made of its teacher: some of its blocks, all else as it is.

    teacher  embedding ─ 0 ─ 1 ─ 2 ─ 3 ─ 4 ─ 5 ─ head
    student  embedding ─ 0 ─────── 2 ─ … ─── 5 ─ head          fw.student(teacher, layers=3)

A new model of the teacher's class from a config with fewer layers, whose tensors are copies of the teacher's values:
nothing is shared, tied weights are tied again, and `save_pretrained` and `from_pretrained` know nothing of any of it.
Where to start matters more than any loss: DistilBERT from random weights loses 3.69 points of GLUE, without its main
loss 2.96 (Sanh et al. 2019, table 4).
"""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.core.anatomy import find_blocks
from featherweight.core.encoded import encoded
from featherweight.core.errors import InputError, Problem, did_you_mean, listed, raise_all
from featherweight.core.host import base_modules, frozen_class, hosts
from featherweight.distill.importance import importance, ranked
from featherweight.distill.keep import kept
from featherweight.distill.width import copy_embeddings, narrowed
from featherweight.interop.pooling import pool_of, set_pool

Layers = int | Sequence[int] | None
Plan = dict[str, tuple[int, ...]]  # path of a list of blocks -> the blocks kept
COUNTS = {
    "": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}  # what configs call the number of blocks


def student(teacher: Any, layers: Layers | Mapping[str, Layers] = None, width: int | None = None,
            keep: str = "spread", *, ffn: int | None = None, data: Any = None, task: Any = None,
            seed: int = 0) -> Any:  # fmt: skip
    """A student with fewer layers than a transformers model, from its weights; the teacher stays as it is.

    layers: how many blocks are kept by the rule `keep` ("spread", "strided", "groups", "first", "last"; see keep.py),
    or the numbers of those kept; half by default. With an encoder and a decoder it holds for both, or is a mapping:
    {"encoder": 3, "decoder": [0, 5]}.
    keep: "importance" keeps the blocks without which the loss of `data` (rows, or a data set's valid split, else its
    train split; never its test split) is the largest, each left out in turn; `task` as `fw.evaluate` takes it.
    width, ffn: of hidden states and feed-forward layers. A student of other sizes starts at random, from `seed`, as
    TinyBERT's and MiniLM's did, with as many heads as its teacher; `ffn` keeps its proportion to the width by default.

    Embeddings and heads are copied. Returned in eval mode, with the teacher's tokenizer and task, without a name.
    Raises InputError for a teacher with adapters or codes, and where its config does not say how many blocks it has.
    """
    stacks = stacks_of(teacher)
    raise_all([*refusals(teacher, stacks), *needless(keep, data)])
    rule = keep if data is None else ranked(importance(teacher, data, task))
    plan = {p: kept(one, rule, stacks[p], where, p) for p, (where, one) in asked(layers, stacks).items()}
    config = shortened(teacher.config, plan, stacks)
    narrow = narrowed(config, width, ffn)
    made = blank(teacher, config, seed)
    if narrow:
        copy_embeddings(made, teacher)
    else:
        fill(made, teacher, plan)
    set_pool(made, pool_of(teacher))
    for name in ("tokenizer", "task"):
        if hasattr(teacher, name):
            setattr(made, name, getattr(teacher, name))
    made.generation_config = deepcopy(getattr(teacher, "generation_config", None))
    return made.to(teacher.device).eval()


def blank(teacher: Any, config: Any, seed: int) -> Any:
    """A model of the teacher's class from another config, with the values that its class starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return frozen_class(teacher)._from_config(
            config, dtype=teacher.dtype, attn_implementation=teacher.config._attn_implementation
        )


def stacks_of(model: nn.Module) -> dict[str, int]:
    """The lists of blocks and how many each holds: {"bert.encoder.layer": 12}."""
    found: dict[str, int] = {}
    for path, _ in find_blocks(model):
        stack = path.rpartition(".")[0]
        found[stack] = found.get(stack, 0) + 1
    return found


def side(path: str, stacks: Mapping[str, int]) -> str:
    """Encoder or decoder where there are two lists of blocks, "" where there is one."""
    if len(stacks) == 1:
        return ""
    return next((s for s in ("encoder", "decoder") if s in path.split(".")), path)


def refusals(teacher: Any, stacks: Mapping[str, int]) -> list[Problem]:
    """Everything about a teacher that no student can be made of."""
    if not hasattr(type(teacher), "_from_config"):
        return [Problem("not a transformers model", "teacher", "a PreTrainedModel", type(teacher).__name__)]
    found = []
    if not stacks or any(side(p, stacks) not in COUNTS for p in stacks):
        found.append(
            Problem("no list of blocks, or more than an encoder's and a decoder's", "teacher", got=str(stacks))
        )
    if any(True for _ in hosts(teacher)):
        found.append(Problem("the teacher has adapters", "teacher", fix="fw.merge or fw.detach them on a copy first"))
    if any(encoded(m) for _, m in base_modules(teacher)):
        found.append(Problem("the teacher is quantized", "teacher", fix="make the student of the plain model; a "
                             "quantized teacher may teach it"))  # fmt: skip
    return found


def needless(keep: str, data: Any) -> list[Problem]:
    """Importance is measured on data, and nothing else is."""
    if (keep == "importance") == (data is not None):
        return []
    if data is None:
        return [Problem("importance is measured on rows", "data", "rows", "None", "give data=")]
    return [Problem("data decides nothing for this rule", "keep", "'importance'", repr(keep), "leave data out")]


def asked(layers: Layers | Mapping[str, Layers], stacks: Mapping[str, int]) -> dict[str, tuple[str, Layers]]:
    """What is asked of each stack, and where it was said: a mapping leaves what it does not name whole."""
    if not isinstance(layers, Mapping):
        return dict.fromkeys(stacks, ("layers", layers))
    sides = {side(path, stacks) or "layers": path for path in stacks}
    raise_all(
        Problem("no such stack", "layers", got=repr(name), fix=did_you_mean(name, sides))
        for name in layers
        if name not in sides
    )
    return {path: (f"layers.{name}", layers.get(name, stacks[path])) for name, path in sides.items()}


def shortened(config: Any, plan: Plan, stacks: Mapping[str, int]) -> Any:
    """A copy of the config with the number of blocks of the plan, and its lists of one entry a block cut alike."""
    made = deepcopy(config)
    made._name_or_path = ""
    for path, chosen in plan.items():
        names = COUNTS[side(path, stacks)]
        found = [n for n in names if getattr(config, n, None) == stacks[path]]
        if not found:
            raise InputError(Problem("the config does not say how many blocks there are", path,
                                     f"{stacks[path]} under one of {listed(names)}"))  # fmt: skip
        for name in found:
            setattr(made, name, len(chosen))
        cut_lists(made, config, chosen, stacks[path])
    return made


def cut_lists(made: Any, config: Any, chosen: tuple[int, ...], blocks: int) -> None:
    """Kinds of layers, one a block (`layer_types`): those of the kept blocks."""
    for name, value in vars(config).items():
        if isinstance(value, list | tuple) and len(value) == blocks and "layer" in name:
            setattr(made, name, type(value)(value[i] for i in chosen))
    if isinstance(getattr(config, "attention_types", None), list):  # GPT-Neo counts in pairs: [[kinds], times]
        made.attention_types = [[[kind], 1] for kind in made.attention_layers]


def source(key: str, plan: Plan, there: Mapping[str, Tensor]) -> str:
    """The teacher's name of a student's tensor. What the first block alone holds (T5's positions) is the first's."""
    for path, chosen in plan.items():
        found = re.fullmatch(rf"{re.escape(path)}\.(\d+)\.(.*)", key)
        if found:
            mapped = f"{path}.{chosen[int(found[1])]}.{found[2]}"
            return mapped if mapped in there else key
    return key


@torch.no_grad()
def fill(made: Any, teacher: Any, plan: Plan) -> None:
    """Copy the teacher's values. Raises InputError where the student's tensors are not a choice of the teacher's."""
    there, into = teacher.state_dict(), made.state_dict()
    names = {key: source(key, plan, there) for key in into}
    unlike = [k for k, n in names.items() if n not in there or there[n].shape != into[k].shape]
    counts = {path: len(chosen) for path, chosen in plan.items()}
    if unlike or stacks_of(made) != counts:
        raise InputError(Problem("the model of the shortened config is not the teacher with fewer blocks",
                                 type(teacher).__name__, str(counts), f"{stacks_of(made)}; unlike: {listed(unlike, 4)}",
                                 "make the student by hand, from a config of its own"))  # fmt: skip
    for key, tensor in into.items():
        tensor.copy_(there[names[key]])
