"""What a small masked model knows, asked by written templates and by words that P-tuning learned.

    python benchmarks/probes.py

models/tiny-bert on the facts of examples/probing (written for this project; 24 to 26 facts of a relation to learn from,
at most 8 to be asked for: objects of one token). P-tuning: 60 steps of 8 facts, three seeds. Of the four written
templates the best one on the asked facts is shown, which flatters it.
"""

import statistics
import sys
import warnings
from typing import Any

import _paired

ROOT = _paired.ROOT
STEPS, SEEDS = 60, 3


def one(model: Any, relation: dict[str, Any]) -> dict[str, Any]:
    """A relation: facts asked, and (precision@1, mean reciprocal rank) of each way."""
    from probe import probe

    runs = [dict(probe(model, relation, STEPS, seed)) for seed in range(SEEDS)]
    written = [scores for template, scores in runs[0].items() if "[X]" in template]
    found: dict[str, Any] = {"asked": 8 - int(written[0]["left_out"])}
    for metric in ("p@1", "mrr"):
        found[f"written, best: {metric}"] = round(max(s[metric] for s in written), 4)
        found[f"written, mean: {metric}"] = round(statistics.mean(s[metric] for s in written), 4)
        found[f"learned: {metric}"] = [round(run["learned"][metric], 4) for run in runs]
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    _paired.threads()
    sys.path.insert(0, str(ROOT / "examples" / "probing"))
    from probe import relations

    import featherweight as fw

    model = fw.load_base(str(ROOT / "models" / "tiny-bert"), fw.Probing()).eval()
    found = {}
    for relation in relations():
        found[relation["relation"]] = one(model, relation)
        print(relation["relation"], found[relation["relation"]], flush=True)
    _paired.write("probes", {"machine": _paired.machine(), "steps": STEPS, "relations": found})


if __name__ == "__main__":
    main()
