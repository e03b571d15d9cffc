"""`fw.distill`: train a student on data and on what a teacher makes of them."""

from hashlib import sha256
from typing import Any

from torch import nn

from featherweight.core.anatomy import find_blocks
from featherweight.core.errors import Problem, raise_all
from featherweight.core.host import hosts
from featherweight.core.method import Method
from featherweight.core.switch import switch_of
from featherweight.data.load import Data, load
from featherweight.distill.recipes import KD, Recipe
from featherweight.distill.task import Distilled, Pair
from featherweight.methods import Full
from featherweight.tasks import CausalLM, Classification, Seq2Seq, Task, task_for
from featherweight.tasks.modes import evaluating
from featherweight.train.run import Run, base_digest, train


def distill(student: Any, teacher: Any, data: Any, recipe: Recipe | None = None, task: Task | None = None, *,
            method: Method | None = None, columns: Any = None, **values: Any) -> Run:  # fmt: skip
    """Train `student` on `data` by `recipe`, with `teacher` frozen and in eval mode beside it.

    student, teacher: live models over one tokenizer; the teacher may be quantized or have adapters on. It is not
    changed; while the run lasts it is on the student's device.
    recipe: KD() by default; DistilBERT(), TinyBERT("layers") and then TinyBERT("prediction"), MiniLM().
    task: what a batch means; by default the student's, the teacher's, else what the data's shape asks for.
    method: Full() where nothing is attached to the student; an adapter-only student takes any other.
    values: everything else that `fw.train` takes.

    Dev scores are the task's own. Raises InputError for two models that cannot be compared, and what `fw.train` raises.
    """
    chosen_recipe = recipe or KD()
    loaded = data if isinstance(data, Data) else load(data, columns)
    chosen = task or getattr(student, "task", None) or getattr(teacher, "task", None) or task_for(loaded.shape)
    raise_all(mismatches(student, teacher, chosen_recipe, chosen))
    if method is None and not switch_of(student).attached:
        method = Full()
    device = next(teacher.parameters()).device
    wrapped = Distilled(chosen, chosen_recipe, digest(teacher), Pair(teacher))
    with evaluating(teacher):
        try:
            return train(student, loaded, wrapped, method=method, **values)
        finally:
            teacher.to(device)


def digest(teacher: nn.Module) -> str:
    """Says which weights teach: the base's fingerprint, and every tensor of the adapters."""
    held = sha256(repr(switch_of(teacher).active).encode())
    for path, host in hosts(teacher):
        for key, tensor in host.adapters.state_dict().items():
            held.update(f"{path}.{key}".encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{base_digest(teacher, {})} {held.hexdigest()[:16]}"


def mismatches(student: Any, teacher: Any, recipe: Recipe, task: Task) -> list[Problem]:
    """Everything in which two models differ that the recipe compares."""
    if student is teacher:
        return [Problem("the student is the teacher", "student", fix="fw.student(teacher) makes another model")]
    found = [*vocabulary(student, teacher), *labels(student, teacher, recipe, task), *unfit(recipe, task)]
    widths = [getattr(m.config, "hidden_size", None) for m in (student, teacher)]
    if recipe.states and widths[0] != widths[1]:
        what, fix = "the recipe compares hidden states of one width", "MiniLM(version=2) and KD take any width"
        found.append(Problem(what, "student", str(widths[1]), str(widths[0]), fix))
    heads = [getattr(m.config, "num_attention_heads", None) for m in (student, teacher)]
    if recipe.attention and heads[0] != heads[1]:
        what, fix = "the recipe compares attention heads one by one", "MiniLM(version=2) takes any number of heads"
        found.append(Problem(what, "student", f"{heads[1]} heads", str(heads[0]), fix))
    if not found:
        recipe.layers(*(len(find_blocks(m)) for m in (student, teacher)))
    return found


def unfit(recipe: Recipe, task: Task) -> list[Problem]:
    """A recipe that looks for what a task or its models have not."""
    found = []
    if recipe.softmax and not isinstance(task, Classification | CausalLM | Seq2Seq):
        what, fix = "this task has no distribution to soften", 'TinyBERT("layers") and MiniLM compare layers'
        found.append(Problem(what, "task", "Classification, CausalLM or Seq2Seq", repr(task), fix))
    if isinstance(task, Seq2Seq) and not isinstance(recipe, KD):
        found.append(Problem("of an encoder and a decoder logits alone are compared", "recipe", "KD()", repr(recipe)))
    return found


def vocabulary(student: Any, teacher: Any) -> list[Problem]:
    """Both must read the same tokens: their tokenizers' maps where both are known, and the sizes."""
    written = "train it on text that the teacher wrote"
    mine, theirs = (t.get_vocab() if (t := getattr(m, "tokenizer", None)) else None for m in (student, teacher))
    if mine is not None and theirs is not None and mine != theirs:
        what, got = "student and teacher have different tokenizers", f"{len(mine)} and {len(theirs)} tokens"
        return [Problem(what, "student", "one map of tokens to ids", got, f"use fw.student(teacher), or {written}")]
    sizes = [m.config.vocab_size for m in (student, teacher)]
    if sizes[0] == sizes[1]:
        return []
    fix = f"with one tokenizer call resize_token_embeddings(len(tokenizer)) on both; with two, {written}"
    what = "student and teacher have vocabularies of different size"
    return [Problem(what, "student", str(sizes[1]), str(sizes[0]), fix)]


def labels(student: Any, teacher: Any, recipe: Recipe, task: Task) -> list[Problem]:
    """The outputs of two task heads must mean the same, in one order."""
    if not recipe.softmax or isinstance(task, CausalLM | Seq2Seq):
        return []
    mine, theirs = (list(dict(m.config.id2label).values()) for m in (student, teacher))
    named = not any(str(name).startswith("LABEL_") for name in (*mine, *theirs))
    if len(mine) == len(theirs) and (mine == theirs or not named):
        return []
    what = "the labels of student and teacher are not the same in one order"
    return [Problem(what, "student", str(theirs), str(mine), "make the student with fw.student(teacher)")]
