"""What the frozen encoder can do by itself: its sentence embeddings and a logistic regression on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

GRID = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of the L2 penalty, chosen on the valid split


def frozen_accuracy(model: Path, splits: Mapping[str, tuple[Sequence[str], Sequence[Any]]]) -> float:
    """Accuracy on `test` of a logistic regression over frozen embeddings; its strength is chosen on `valid`."""
    from sklearn.linear_model import LogisticRegression

    from featherweight.interop import load_base

    encoder = load_base(model).eval()
    x = {name: embeddings(encoder, texts).numpy() for name, (texts, _) in splits.items()}
    y = {name: list(labels) for name, (_, labels) in splits.items()}
    fits = [LogisticRegression(C=c, max_iter=2000).fit(x["train"], y["train"]) for c in GRID]
    best = max(fits, key=lambda fit: float(fit.score(x["valid"], y["valid"])))
    return float(best.score(x["test"], y["test"]))


def embeddings(encoder: Any, texts: Sequence[str], batch: int = 64) -> "Tensor":
    """(len(texts), d): the mean over real tokens, scaled to length 1, as this encoder was trained to be read."""
    import torch
    from torch.nn.functional import normalize

    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), batch):
            words = encoder.tokenizer(list(texts[start : start + batch]), padding=True, truncation=True, max_length=128,
                                      return_tensors="pt")  # fmt: skip
            states = encoder(**words).last_hidden_state  # (batch, seq, d)
            mask = words["attention_mask"].unsqueeze(-1)  # (batch, seq, 1)
            parts.append(normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(parts)
