"""Rows to choose from, made of a few words."""

from featherweight.data.types import Example


def rows(*texts, answers="0101010101", name="pool"):
    """Rows of a text and two choices; the answers go by number."""
    return [Example(f"{name}:{i + 1}", text, label=int(answers[i]), choices=("bad", "good"))
            for i, text in enumerate(texts)]  # fmt: skip
