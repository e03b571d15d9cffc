"""The least that tuning must beat: a frozen encoder's embeddings and a logistic regression on them.

    p(y | x) = softmax(W e(x) + b)          e: mean of the last states, length 1
    min over W, b of  Σ log-loss + ‖W‖² / 2C        C by accuracy on the dev split, else by cross-validation

SetFit (Tunstall et al. 2022, arXiv:2209.11055) has this head and tunes the encoder under it first: `Embedding`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from featherweight.baselines.near import Encoder, encoder_of
from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.data.types import Example
from featherweight.evaluate.setting import tokenizer_of
from featherweight.evaluate.source import labelled
from featherweight.tasks import Classification, Embedding
from featherweight.tasks.labels import label_name

if TYPE_CHECKING:
    from numpy import ndarray

GRID = (0.1, 1.0, 10.0, 100.0)  # C, the inverse strength of the penalty
FOLDS = 5
Labelled = tuple[Any, list[str]]  # embeddings (rows, d) and label names


class Frozen(nn.Module):
    """An encoder as it is under a head that was fitted, not trained: a model for `evaluate` and `predict`.

    `strength` is the chosen C, `chosen` what it was chosen by, `work` the operations of all fits."""

    def __init__(self, encoder: nn.Module, labels: tuple[str, ...], fitted: Fitted, pair: bool):
        import torch

        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(fitted.weight.shape[1], len(labels))
        with torch.no_grad():
            self.classifier.weight.copy_(torch.as_tensor(fitted.weight))
            self.classifier.bias.copy_(torch.as_tensor(fitted.bias))
        self.config = headed(encoder.config, labels)
        self.task, self.tokenizer = Classification(labels=labels, pair=pair), encoder.tokenizer
        self.strength, self.chosen, self.work = fitted.strength, fitted.chosen, fitted.work
        self.requires_grad_(False).eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()  # type: ignore[operator]

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(
            logits=self.classifier(Embedding().embed(self.encoder, input_ids, attention_mask))
        )


def headed(config: Any, labels: Sequence[str]) -> Any:
    """The encoder's config with labels."""
    made = copy(config)
    made.id2label, made.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    return made


def frozen(
    encoder: Encoder, data: Any, *, strengths: Sequence[float] = GRID, seed: int = 0, length: int | None = None,
    columns: Any = None,
) -> Frozen:  # fmt: skip
    """Fit the head on the training rows of `data`: a path, a `Data`, a dict of splits or examples, of one label each.

    A dev split chooses C among `strengths`; without one cross-validation does, over at most five folds and as many as
    the rarest label has rows; where that is one, C is 1 (`.chosen` says which). `encoder` is a live one without a head,
    its folder, or the folder of an adapter on one. Raises InputError for rows without one label.
    """
    train, dev = splits(data, columns)
    check(train + dev)
    task = Classification().fit(train)
    raise_all(task.check(dev))
    live = encoder_of(encoder)
    x, y = embedded(live, train, length)
    held = embedded(live, dev, length) if dev else None
    return Frozen(live, task.labels, fit((x, y), held, task.labels, strengths, seed), task.pair)


def splits(data: Any, columns: Any) -> tuple[list[Example], list[Example]]:
    """Training and dev rows."""
    from featherweight.data.load import Data, load

    if isinstance(data, Sequence) and data and isinstance(data[0], Example):
        return list(data), []
    loaded = data if isinstance(data, Data) else load(data, columns)
    return labelled(loaded, "train")[1], labelled(loaded, "valid")[1] if loaded.valid else []


def check(examples: Sequence[Example]) -> None:
    """Raise InputError for rows that are not a text, or two, with a label."""
    raise_all(
        Problem("not a row of a text and one label", e.where, "text and label") for e in examples
        if e.choices or e.turns or e.messages or isinstance(e.label, tuple)
    )  # fmt: skip


def embedded(encoder: nn.Module, examples: Sequence[Example], length: int | None) -> Labelled:
    """Of two texts as the tokenizer joins them."""
    import numpy as np

    from featherweight.evaluate import run
    from featherweight.tasks.check import check_length

    task, words = Embedding(), tokenizer_of(encoder)
    found = run.predictions(encoder, task, task.ask(examples, words, check_length(encoder, length)), words)
    return np.stack([vector for vector, *_ in found]), [label_name(e.label) for e in examples]


@dataclass(frozen=True)
class Fitted:
    """W (labels, d), b (labels), the chosen C, what chose it, and the operations of all fits."""

    weight: ndarray
    bias: ndarray
    strength: float
    chosen: str
    work: int


def fit(train: Labelled, dev: Labelled | None, labels: Sequence[str], strengths: Sequence[float], seed: int) -> Fitted:
    """The regression of the best C (the smallest of equals), on all training rows."""
    work: list[int] = []
    if dev is not None:
        chosen, trials = "dev rows", [(train, dev)]
    else:
        parts = folds(train[1], seed)
        chosen, trials = f"{len(parts)}-fold cross-validation", [(take(train, a), take(train, b)) for a, b in parts]
    if not trials:
        chosen, strengths = "nothing: no label has two rows", (1.0,)
    score = {c: sum(regression(a, c, work).score(*b) for a, b in trials) for c in strengths} if trials else {1.0: 0.0}
    best = max(score, key=score.__getitem__)
    weight, bias = wide(regression(train, best, work), labels)
    return Fitted(weight, bias, best, chosen, sum(work))


def folds(y: Sequence[str], seed: int) -> list[tuple[list[int], list[int]]]:
    """(to fit, to score) by row numbers; the only row of a label is in every fit and in no score."""
    from sklearn.model_selection import StratifiedKFold

    count = Counter(y)
    often = [i for i, name in enumerate(y) if count[name] > 1]
    if not often:
        return []
    number = min(FOLDS, min(count[y[i]] for i in often))
    parts = StratifiedKFold(number, shuffle=True, random_state=seed).split(often, [y[i] for i in often])
    lone = [i for i, name in enumerate(y) if count[name] == 1]
    return [([*lone, *(often[i] for i in a)], [often[i] for i in b]) for a, b in parts]


def take(rows: Labelled, numbers: Sequence[int]) -> Labelled:
    return rows[0][numbers], [rows[1][i] for i in numbers]


def regression(rows: Labelled, strength: float, work: list[int]) -> Any:
    """One fit; its operations (4 n d outputs for each step: the product and its gradient) go to `work`."""
    from sklearn.linear_model import LogisticRegression

    x, y = rows
    made = LogisticRegression(C=strength, max_iter=2000).fit(x, y)
    work.append(4 * x.shape[0] * made.coef_.size * int(made.n_iter_.max()))
    return made


def wide(made: Any, labels: Sequence[str]) -> tuple[ndarray, ndarray]:
    """W and b with a row for each label in the task's order; of two labels scikit-learn keeps the second's alone."""
    import numpy as np

    weight, bias = made.coef_, made.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([0 * weight, weight]), np.concatenate([0 * bias, bias])
    place = {name: i for i, name in enumerate(made.classes_)}
    if len(place) != len(labels):
        raise InputError(Problem("labels without a training row", "labels", f"{len(labels)}", f"{len(place)}"))
    order = [place[name] for name in labels]
    return weight[order], bias[order]
