"""One run of a suite: train an adapter on a base that stays in memory, answer the rows, take the adapter off again."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from featherweight.checkpoint.load import load
from featherweight.core.attach import detach
from featherweight.core.switch import switch_of
from featherweight.data.prompt_sets import Prompts
from featherweight.data.types import Rows
from featherweight.evaluate.averaged import Asked, ask
from featherweight.fewshot.figures import Answers
from featherweight.fewshot.suite import Part
from featherweight.files.staged import write_text
from featherweight.tasks.ranked import best_of
from featherweight.train.run import Run, train

ANSWERS = "answers.json"


@dataclass(frozen=True, eq=False)
class Bench:
    """The base with its tokenizer, and what every run of the suite is asked for (`fw.train`'s keywords)."""

    model: Any
    task: Any
    values: Mapping[str, Any]
    resume: bool = False
    start: str = ""  # folder of the adapter that every run goes on with
    known: dict[tuple[str, ...], list[int]] = field(default_factory=dict)  # what the base answers, by the rows' places

    def run(self, part: Part, prompts: Prompts, template: str, folder: Path, seed: int) -> Answers:
        """The answers of one part, from its file where it was over before. `template` is the name that `prompts` go by
        in a run's record."""
        file = folder / ANSWERS
        if self.resume and file.is_file():
            return Answers(**json.loads(file.read_text(encoding="utf-8")))
        before = self.before(part.test, prompts)
        asked = self.tuned(part.file or part.train, template, folder, seed, lambda: self.ask(part.test, prompts, True))
        trained_on = self.references(part.train, prompts)
        templates = {name: [best_of(p) for p in made] for name, made in asked.found.items()}
        references = [int(asked.task.reference(e)) for e in asked.examples]
        made = Answers(references, [best_of(p) for p in asked.together], templates, before, trained_on)
        write_text(file, json.dumps(asdict(made)) + "\n")
        return made

    def tuned(self, rows: Any, template: str, folder: Path, seed: int, then: Callable[[], Asked]) -> Asked:
        """What `then` gives while the model has the adapter that was trained on these rows."""
        with self.started():
            self.train(rows, template, folder, seed)
            return then()

    @contextmanager
    def started(self) -> Iterator[None]:
        """The model with the adapter that runs go on with, if any; afterwards it has none."""
        try:
            if self.start:
                load(self.model, self.start, train=True)
            yield
        finally:
            if switch_of(self.model).attached:
                detach(self.model)

    def train(self, rows: Any, template: str, folder: Path, seed: int) -> Run:
        return train(self.model, rows, output=folder, template=template, seed=seed, resume=self.resume, **self.values)

    def before(self, rows: Rows, prompts: Prompts) -> list[int]:
        """What is answered without any training on them; the same rows are asked once."""
        places = tuple(row.where for row in rows)
        if places not in self.known:
            with self.started():
                self.known[places] = [best_of(p) for p in self.ask(rows, prompts, True).together]
        return self.known[places]

    def ask(self, rows: Rows, prompts: Prompts, labels: bool) -> Asked:
        return ask(self.model, rows, prompts, self.task, length=self.values.get("length"), labels=labels)

    def references(self, rows: Rows, prompts: Prompts) -> list[int]:
        """The numbers of the rows' right choices."""
        from featherweight.data.rows import examples
        from featherweight.data.templates import prompted

        data = prompted(rows, prompts)
        return [int(e.label) for e in examples(data.train, data.shape)]
