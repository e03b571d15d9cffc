"""`fw.distill`: train a student on data and on what a teacher makes of them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

from featherweight.core.anatomy import find_blocks
from featherweight.core.attach import attach, detach
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Method
from featherweight.core.state import state
from featherweight.core.switch import switch_of
from featherweight.data.load import Data, load
from featherweight.data.rows import examples
from featherweight.distill.bare import answerable
from featherweight.distill.cache import TeacherCache
from featherweight.distill.check import contextless, mismatches, own, shared_words
from featherweight.distill.context import edit_of
from featherweight.distill.pair import Pair
from featherweight.distill.projection import NAME, Projections
from featherweight.distill.recipes import KD, Recipe
from featherweight.distill.task import Distilled
from featherweight.evaluate.setting import tokenizer_of
from featherweight.methods import Full
from featherweight.tasks import Task, task_for
from featherweight.tasks.modes import evaluating
from featherweight.train.run import Run, base_digest, train
from featherweight.train.seeds import own_generators, reseed
from featherweight.train.settings import settings
from featherweight.train.setup import adapted


def distill(student: Any, teacher: Any, data: Any, recipe: Recipe | None = None, task: Task | None = None, *,
            method: Method | None = None, name: str = "default", tokenizer: Any = None, columns: Any = None,
            context: str = "", cache: TeacherCache | str | Path | None = None, **values: Any) -> Run:  # fmt: skip
    """Train `student` on `data` by `recipe`, with `teacher` frozen and in eval mode beside it.

    teacher: a live model over the student's tokenizer, which may be quantized or have adapters on; it is not changed,
    and while the run lasts it is on the student's device. Or the student's own model with other adapters on, so that
    there is no second one in memory: their name, several names, or None for the bare base.
    data: what `fw.train` takes; without labels too, and without answers where a recipe lets a model write them all.
    recipe: KD() by default; DistilBERT(), TinyBERT("layers") and then TinyBERT("prediction"), MiniLM(), GKD().
    task: what a batch means; by default the student's, the teacher's, else what the data's shape asks for.
    method, name: Full() where nothing is attached to the student; an adapter-only student takes any other.
    tokenizer: of both; by default the student's, else the teacher's.
    context: a text that the teacher reads in front of every prompt and the student does not.
    cache: where the teacher's outputs are kept on disk, computed once: a folder, or a TeacherCache with options.
    values: everything else that `fw.train` takes.

    Dev scores are the task's own. Raises InputError for two models that cannot be compared, and what `fw.train` raises.
    """
    recipe = recipe or KD()
    loaded = data if isinstance(data, Data) else load(data, columns)
    chosen = task or getattr(student, "task", None) or getattr(teacher, "task", None)
    chosen = chosen or task_for(loaded.shape, getattr(student, "config", None))
    if method is None and not switch_of(student).attached:
        method = Full()
    pair = paired(student, teacher, recipe, chosen, name, method is not None)
    pair.cache = TeacherCache(cache) if isinstance(cache, str | Path) else cache
    words = tokenizer_of(student, tokenizer or getattr(student, "tokenizer", getattr(teacher, "tokenizer", None)))
    loaded = answerable(loaded, columns, recipe, words)
    if context:
        raise_all(contextless(recipe))
        pair.context = edit_of(chosen, examples(loaded.train, loaded.shape), words, context)
    wrapped = Distilled(chosen, recipe, digest(pair), pair)
    device = next(pair.teacher.parameters()).device
    with evaluating(pair.teacher) if pair.names is None else nullcontext():
        try:
            with scaffolded(student, pair.teacher, recipe, method, name, values) as left:
                return train(student, loaded, wrapped, method=left, name=name, tokenizer=words, **values)
        finally:
            pair.teacher.to(device)


def paired(student: Any, teacher: Any, recipe: Recipe, task: Task, name: str, attaches: bool) -> Pair:
    """Student and teacher, once they are known to be comparable. Raises InputError over all in which they are not."""
    if teacher is student:
        fix = "fw.student(teacher) makes another model; the same with other adapters on goes by their names"
        raise InputError(Problem("the student is the teacher", "student", fix=fix))
    if teacher is not None and not isinstance(teacher, str | list | tuple):
        raise_all(mismatches(student, teacher, recipe, task))
        return Pair(teacher, words=shared_words(student, teacher))
    names = (teacher,) if isinstance(teacher, str) else tuple(teacher or ())
    raise_all([*own(student, names, name, attaches), *mismatches(student, student, recipe, task)])
    return Pair(student, names)


@contextmanager
def scaffolded(student: Any, teacher: Any, recipe: Recipe, method: Method | None, name: str,
               values: dict[str, Any]) -> Iterator[Method | None]:  # fmt: skip
    """With learned projections on the student where the recipe compares states of another width; gives the method that
    is left to attach. They are gone afterwards, and so is the method where nothing came of it."""
    widths = [int(getattr(m.config, "hidden_size", 0) or 0) for m in (student, teacher)]
    numbers = recipe.lifted(len(find_blocks(student)))
    if widths[0] == widths[1] or not numbers:
        yield method
        return
    seed = settings({k: v for k, v in values.items() if k == "seed"}).seed
    with own_generators(next(student.parameters()).device):
        adapted(student, method, name, seed)
        reseed(seed, NAME)
        attach(student, Projections(numbers, *widths), NAME, head=False, stack=True)
    try:
        yield None
    except InputError:
        if method is not None:
            detach(student, name)
        raise
    finally:
        detach(student, NAME)


def digest(pair: Pair) -> str:
    """Says which weights teach, and what they read more: the base's fingerprint, every tensor of the adapters that are
    on, and the context."""
    teacher = pair.teacher
    names = switch_of(teacher).active if pair.names is None else pair.names
    held = sha256(repr((names, pair.context)).encode())
    for name in names:
        for key, tensor in state(teacher, name).items():
            held.update(f"{name}/{key}".encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return f"{base_digest(teacher, {})} {held.hexdigest()[:16]}"
