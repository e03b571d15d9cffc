"""Whether two models can be compared: everything in which they differ that a recipe looks at, before anything runs."""

from collections.abc import Sequence
from typing import Any

from featherweight.core.anatomy import find_blocks
from featherweight.core.errors import Problem, did_you_mean
from featherweight.core.switch import switch_of
from featherweight.distill.recipes import KD, Recipe
from featherweight.tasks import Task
from featherweight.tasks.heads import Headed


def mismatches(student: Any, teacher: Any, recipe: Recipe, task: Task) -> list[Problem]:
    """Everything in which two models differ that the recipe compares."""
    found = [*vocabulary(student, teacher, recipe, task), *labels(student, teacher, recipe, task),
             *unfit(recipe, task)]  # fmt: skip
    heads = [getattr(m.config, "num_attention_heads", None) for m in (student, teacher)]
    if recipe.attention and heads[0] != heads[1]:
        what, fix = "the recipe compares attention heads one by one", "MiniLM(version=2) takes any number of heads"
        found.append(Problem(what, "student", f"{heads[1]} heads", str(heads[0]), fix))
    if not found:
        recipe.layers(*(len(find_blocks(m)) for m in (student, teacher)))
    return found


def own(model: Any, names: Sequence[str], student: str, attaches: bool) -> list[Problem]:
    """What is wrong with adapters of the student's own model as its teacher, `student` being the one that trains."""
    state = switch_of(model)
    found = [Problem("no adapter of this name teaches", "teacher", got=repr(n), fix=did_you_mean(n, state.attached))
             for n in names if n not in state.attached]  # fmt: skip
    training = {student} if attaches else {n for n in state.active if state.trains(n)}
    return found + [Problem("an adapter is its own teacher", "teacher", "one that does not train", repr(n),
                            "train another one: method=, name=") for n in names if n in training]  # fmt: skip


def unfit(recipe: Recipe, task: Task) -> list[Problem]:
    """A recipe that looks for what a task or its models have not."""
    found = []
    both = task.auto == "AutoModelForSeq2SeqLM"
    if type(task).pose is Task.pose:
        what, fix = "this task is not one forward a batch", "distil a task of one forward, then train this one on it"
        return [Problem(what, "task", "Classification, CausalLM, MaskedLM or Seq2Seq", repr(task), fix)]
    if recipe.softmax and not task.exclusive:
        what, fix = "this task has no distribution to soften", 'TinyBERT("layers") and MiniLM compare layers'
        found.append(Problem(what, "task", "Classification, CausalLM, MaskedLM or Seq2Seq", repr(task), fix))
    if recipe.autos and task.auto not in recipe.autos:
        found.append(Problem("the recipe is for another task", "task", " or ".join(recipe.autos), repr(task)))
    if recipe.writes and not task.generates:
        what = "the recipe lets a model write, and this task has no answers in words"
        found.append(Problem(what, "recipe", repr(KD()), repr(recipe)))
    if both and (recipe.attention or recipe.layers(1, 1)):
        what = "of an encoder and a decoder logits and last states alone are compared"
        found.append(Problem(what, "recipe", "KD(), DistilBERT() or GKD()", repr(recipe)))
    return found


def contextless(recipe: Recipe) -> list[Problem]:
    """Recipes that compare how tokens relate: behind a context the teacher's relate to more tokens."""
    if not recipe.layers(1, 1):
        return []
    what = "with a context the teacher's tokens relate to more than the student's"
    return [Problem(what, "recipe", "KD(), DistilBERT() or GKD()", repr(recipe))]


def token_map(model: Any) -> dict[str, int] | None:
    tokenizer = getattr(model, "tokenizer", None)
    return None if tokenizer is None else tokenizer.get_vocab()


def vocabulary(student: Any, teacher: Any, recipe: Recipe, task: Task) -> list[Problem]:
    """Both must read the same tokens: their tokenizers' maps where both are known, and the sizes."""
    written = "train it on text that the teacher wrote: fw.generate(teacher, prompts), then fw.train"
    mine, theirs = token_map(student), token_map(teacher)
    if mine is not None and theirs is not None and mine != theirs:
        what, got = "student and teacher have different tokenizers", f"{len(mine)} and {len(theirs)} tokens"
        apart = next((t for t in {**mine, **theirs} if mine.get(t) != theirs.get(t)), "")
        got += f"; {apart!r} is {mine.get(apart)} and {theirs.get(apart)}"
        return [Problem(what, "student", "one map of tokens to ids", got, f"use fw.student(teacher), or {written}")]
    sizes = [m.config.vocab_size for m in (student, teacher)]
    if sizes[0] == sizes[1] or shared_words(student, teacher) is not None:
        return []
    fix = f"with one tokenizer set it as .tokenizer of both (logits are then cut to its tokens); with two, {written}"
    what = "student and teacher have vocabularies of different size"
    return [Problem(what, "student", str(sizes[1]), str(sizes[0]), fix)]


def shared_words(student: Any, teacher: Any) -> int | None:
    """How many tokens both know, where one tokenizer is known to be that of both and a vocabulary is padded; None where
    there is nothing to cut."""
    mine, theirs = token_map(student), token_map(teacher)
    sizes = [int(m.config.vocab_size) for m in (student, teacher)]
    if mine is None or mine != theirs or sizes[0] == sizes[1]:
        return None
    words = max(mine.values()) + 1
    return words if words <= min(sizes) else None


def labels(student: Any, teacher: Any, recipe: Recipe, task: Task) -> list[Problem]:
    """The outputs of two task heads must mean the same, in one order."""
    if not recipe.softmax or not isinstance(task, Headed):
        return []
    mine, theirs = (list(dict(m.config.id2label).values()) for m in (student, teacher))
    named = not any(str(name).startswith("LABEL_") for name in (*mine, *theirs))
    if len(mine) == len(theirs) and (mine == theirs or not named):
        return []
    what = "the labels of student and teacher are not the same in one order"
    return [Problem(what, "student", str(theirs), str(mine), "make the student with fw.student(teacher)")]
