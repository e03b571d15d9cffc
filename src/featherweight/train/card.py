"""The model card: README.md at the top of the output folder, fit to be published (no local paths, no user names)."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

CARD = """---
library_name: peft
base_model: {base}
tags:
- featherweight
- {method}
---

# {title}

{share} of {base} was trained with [Featherweight](https://pypi.org/project/featherweight/); the base is as it was.

```python
import featherweight as fw
model = fw.load_model("path/to/this/folder")
```

| | |
|---|---|
| base | {base}{kept} |
| method | `{noun}` |
| task | `{task}` |
| trained parameters | {trainable:,} of {total:,} |
| data | {data}: {rows:,} training and {dev:,} dev rows, SHA-256 of the tokens `{digest}` |
| steps | {steps:,} ({chosen}) |

## Scores on the dev rows

{scores}

## Settings

{settings}

## Versions

{versions}
"""

PACKAGES = ("featherweight", "torch", "transformers")


def card(facts: Mapping[str, Any], settings: Mapping[str, Any], scores: Mapping[str, float | None]) -> str:
    """The text of the card. `facts` fills the places of CARD that the tables below do not."""
    told = {k: v for k, v in settings.items() if v is not None}
    return CARD.format(
        **facts,
        scores=table({k: "–" if v is None else f"{v:.4f}" for k, v in scores.items()})
        if scores
        else "There were no dev rows.",
        settings=table(told),
        versions=table({name: version(name) for name in PACKAGES}),
    )


def table(values: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in values.items())])


def public(name: str) -> str:
    """A hub name as it is; of a local path only its last part."""
    local = name.startswith((".", "~")) or "\\" in name or Path(name).is_absolute() or Path(name).exists()
    return Path(name).name if local else name
