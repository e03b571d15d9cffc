"""`inspect`: what a model will see of the data: decoded rows, trained tokens marked; lengths, cuts, doubles, leaks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from featherweight.data.encode import encode_all, trainable
from featherweight.data.load import Data, fitting
from featherweight.data.near import alike, between
from featherweight.data.rows import examples
from featherweight.data.types import UNTRAINED, Encoded, Example

MOST = 10_000  # rows per side that are compared: seconds, half a minute for texts as repetitive as E2E's
Piece = tuple[str, bool]  # decoded text, and whether its tokens are trained


@dataclass(frozen=True)
class Sample:
    where: str
    pieces: list[Piece]
    label: Any = None


@dataclass(frozen=True)
class Report:
    """Counts over the training split unless said otherwise; lengths in tokens, shares from 0 to 1."""

    shape: str
    columns: dict[str, str]
    rows: dict[str, int]  # by split
    samples: list[Sample] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)  # min, p50, p90, p99, max; before cutting
    truncated_rows: int = 0
    truncated_tokens: int = 0
    trained_tokens: int | None = None  # None where rows, not tokens, carry the loss
    trained_share: float | None = None
    untrained: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    exact: list[tuple[str, str]] = field(default_factory=list)  # (first, its double)
    near: list[tuple[str, str, float]] = field(default_factory=list)
    leaks: list[tuple[str, str, float]] = field(default_factory=list)  # (training row, held-out row, similarity)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def inspect(
    data: Data, tokenizer: Any, task: Any, length: int | None, samples: int = 3, threshold: float = 0.8
) -> Report:
    """The report on loaded data; without tokenizer and task only what the text itself shows."""
    parts = {name: list(getattr(data, name)) for name in ("train", "valid", "test") if getattr(data, name)}
    made = {name: examples(rows, data.shape) for name, rows in parts.items() if name == "train"}
    made |= {name: held_out(rows, data) for name, rows in parts.items() if name != "train"}
    train = made.get("train") or next(iter(made.values()))
    held = [e for name in made if name != "train" for e in made[name]]
    exact, near, leaks = doubles(train[:MOST], held[:MOST], threshold)
    searched = [f"doubles were searched among the first {MOST:,} rows"] if max(len(train), len(held)) > MOST else []
    bare = {"samples": [unread(example) for example in train[:samples]]}
    seen = tokens(train, tokenizer, task, length, samples) if tokenizer is not None and task is not None else bare
    return Report(
        shape=data.shape.name, columns=dict(data.shape.columns), rows={name: len(rows) for name, rows in made.items()},
        labels=label_counts(train), exact=exact, near=near, leaks=leaks, notes=[*data.notes, *searched], **seen,
    )  # fmt: skip


def held_out(rows: list[Any], data: Data) -> list[Example]:
    return examples(rows, fitting(rows, data.shape))


def tokens(rows: Sequence[Example], tokenizer: Any, task: Any, length: int | None, samples: int) -> dict[str, Any]:
    """The parts of the report that need token ids."""
    fitted = task.fit(rows) if hasattr(task, "fit") else task
    items = encode_all(fitted, rows, tokenizer, length)
    sizes = sorted(len(item.input_ids) + item.truncated for item in items)
    language = [item for item in items if by_token(item)]
    trained = sum(v != UNTRAINED for item in language for v in item.labels)
    total = sum(len(item.labels) if len(item.labels) == len(item.input_ids) else len(item.input_ids) + len(item.labels)
                for item in language)  # fmt: skip
    return {
        "samples": [sample(e, i, tokenizer) for e, i in zip(rows[:samples], items, strict=False)],
        "lengths": {name: sizes[min(len(sizes) - 1, int(q * len(sizes)))] for name, q in QUANTILES},
        "truncated_rows": sum(item.truncated > 0 for item in items),
        "truncated_tokens": sum(item.truncated for item in items),
        "trained_tokens": trained if language else None,
        "trained_share": trained / total if total else None,
        "untrained": [item.where for item in items if not trainable(item)],
    }


QUANTILES = (("min", 0.0), ("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))


def by_token(item: Encoded) -> bool:
    return isinstance(item.labels, list) and bool(item.labels) and all(isinstance(v, int) for v in item.labels)


def sample(example: Example, item: Encoded, tokenizer: Any) -> Sample:
    """Runs of trained and untrained tokens, decoded with their special tokens."""
    label = example.label
    if not by_token(item):
        return Sample(item.where, [(tokenizer.decode(item.input_ids), False), *offered(example)], label)
    if len(item.labels) != len(item.input_ids):
        return Sample(
            item.where, [(tokenizer.decode(item.input_ids), False), (tokenizer.decode(item.labels), True)], label
        )
    runs: list[tuple[list[int], bool]] = []
    for token, target in zip(item.input_ids, item.labels, strict=True):
        if not runs or runs[-1][1] != (target != UNTRAINED):
            runs.append(([], target != UNTRAINED))
        runs[-1][0].append(token)
    return Sample(item.where, [(tokenizer.decode(ids), trained) for ids, trained in runs], label)


def unread(example: Example) -> Sample:
    """A row as it stands, before any tokenizer: what would be trained on is marked."""
    turns = example.turns if example.label is None else ()
    pieces = [(turn.text, turn.trained) for turn in turns]
    pieces += [(f"{m.get('role')}: {m.get('content') or ''}\n", m.get("role") == "assistant") for m in example.messages]
    texts = [(text, False) for text in (example.text, example.pair and f"\n{example.pair}") if text]
    return Sample(example.where, [*(pieces or texts), *offered(example)], example.label)


def offered(example: Example) -> list[Piece]:
    """The choices, a line each; the right one is what is trained most."""
    return [piece for i, text in enumerate(example.choices) for piece in (("\n- ", False), (text, i == example.label))]


def content(example: Example) -> str:
    """All text of an example, the answer included."""
    spoken = [str(m.get("content") or "") for m in example.messages]
    return "\n".join([*([example.text] if not example.turns else []), example.pair or "",
                      *(t.text for t in example.turns), *spoken]).strip()  # fmt: skip


def doubles(train: Sequence[Example], held: Sequence[Example], threshold: float) -> tuple[Any, Any, Any]:
    """Exact and near doubles inside the training rows, and held-out rows that the training rows nearly hold."""
    texts, where = [content(e) for e in [*train, *held]], [e.where for e in [*train, *held]]
    groups, first = alike(texts), len(train)
    of = {members[0]: members for members in groups}
    exact: list[tuple[str, str]] = []
    near: list[tuple[str, str, float]] = []
    leaks: dict[int, tuple[float, int]] = {}
    pairs = [(g[0], j, 1.0) for g in groups for j in g[1:]]
    pairs += [(i, j, s) for a, b, s in between(texts, list(of), threshold) for i, j in crossing(of[a], of[b], first)]
    for i, j, similarity in sorted(pairs):
        if j >= first > i:
            leaks[j] = max(leaks.get(j, (0.0, i)), (similarity, i))
        elif j < first:
            (
                exact.append((where[i], where[j]))
                if texts[i] == texts[j]
                else near.append((where[i], where[j], similarity))
            )
    return exact, near, [(where[i], where[j], s) for j, (s, i) in sorted(leaks.items())]


def crossing(a: list[int], b: list[int], first: int) -> list[tuple[int, int]]:
    """Of two near groups: their first members, and every held-out member with the other group's first."""
    pairs = {tuple(sorted((a[0], b[0])))}
    pairs |= {(a[0], j) for j in b if j >= first > a[0]} | {(b[0], i) for i in a if i >= first > b[0]}
    return sorted((i, j) for i, j in pairs)


def label_counts(rows: Sequence[Example]) -> dict[str, int]:
    """Rows per class, most frequent first; none for scores."""
    labels = [name for e in rows for name in (e.label if isinstance(e.label, tuple) else [e.label])]
    return dict(Counter(name for name in labels if isinstance(name, str)).most_common())
