"""What tasks over a row's choices share: a prediction is the probability of each, in order."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featherweight.core.errors import Problem
from featherweight.tasks import metrics

if TYPE_CHECKING:
    from featherweight.data.types import Example


COUNT, WIDTH = 4, 8  # choices of a row that is made up, and tokens of each


class Ranked:
    """Mixin of tasks that choose; an answer's `label` is the number of the choice, from 0."""

    def reference(self, example: "Example") -> Any:
        return example.label

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {"accuracy": metrics.accuracy([best_of(p) for p in predictions], references)}

    def answer(self, prediction: Any) -> dict[str, Any]:
        label = best_of(prediction)
        return {"label": label, "probability": prediction[label], "probabilities": prediction}


def unanswered(examples: Sequence["Example"]) -> list[Problem]:
    """The rows to train on that have no label: each once, or, where none has one, where it was looked for."""
    lacking = list(dict.fromkeys(e.where for e in examples if e.label is None))
    want = "the number of the right choice from 0, or its text"
    if lacking and all(e.label is None for e in examples):
        fix = "name its column: --columns label=…; in templates {% set label = … %}"
        file = lacking[0].rpartition(":")[0] or lacking[0]
        return [Problem("no row has an answer to train on", file, f"a column label: {want}", fix=fix)]
    return [Problem("no answer in a training row", f"{where}:label", want) for where in lacking]


def best_of(probabilities: Sequence[float]) -> int:
    """The number of the most probable choice, the first of equals."""
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def answer_width(length: int) -> int:
    """Tokens of a choice beside a text, `length` both together."""
    return min(WIDTH, max(1, length // 4))
