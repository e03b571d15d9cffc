"""How much do the words of a question decide what a model knows? Written templates against one that P-tuning learns.

    python examples/probing/probe.py [MODEL] [--relations capital kind] [--steps 60] [--seed 0]

MODEL is the folder of a masked language model (models/tiny-bert). For every relation of relations.jsonl: precision@1 on
the facts of test.jsonl, with each of four written templates, and with [P] tokens learned from the facts of train.jsonl,
in front of the subject, between it and the object, and behind. Objects are of one token (LAMA's rule; how many are left
out is shown). The facts and the templates were written for this project.

Source of the comparison: Liu et al. 2021, "GPT understands, too", arXiv:2103.10385, table 1 (LAMA-TREx P17, BERT-base:
31.3, 19.8, 31.4 and 51.1 with four templates, 57.8 and 58.1 with P-tuning).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import featherweight as fw

HERE = Path(__file__).parent
LEARNED = "[P][P][P] [X] [P][P][P] [Y] [P]"


def rows_of(name: str, relation: str) -> list[dict[str, Any]]:
    """The facts of one relation, by subject and object alone."""
    rows = map(json.loads, (HERE / name).read_text().splitlines())
    return [{"subject": r["sub_label"], "object": r["obj_label"]} for r in rows if r["relation"] == relation]


def unused(tokenizer: Any) -> int:
    """A token that no text has: one the vocabulary keeps free, else the rarest there is, its last."""
    free = [i for token, i in tokenizer.get_vocab().items() if "unused" in token or "extra_id" in token]
    return min(free) if free else len(tokenizer) - 1


def probe(model: Any, relation: dict[str, Any], steps: int, seed: int) -> Iterator[tuple[str, Any]]:
    """(template, scores on the test facts): those written, then the learned one before and after it learned."""
    train, test = (rows_of(name, relation["relation"]) for name in ("train.jsonl", "test.jsonl"))
    for template in (relation["template"], *relation["others"]):
        yield template, fw.evaluate(model, test, fw.Probing(template=template))
    pseudo = unused(model.tokenizer)
    task = fw.Probing(template=LEARNED, pseudo=pseudo)
    yield "not yet learned", fw.evaluate(model, test, task)
    method = fw.PTuning(template=(3, 3, 1), pseudo=pseudo)
    fw.train(model, train, task, method=method, name="words", steps=steps, batch=8, lr=1e-2, seed=seed)
    yield "learned", fw.evaluate(model, test, task)
    fw.detach(model, "words")


def relations() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / "relations.jsonl").read_text().splitlines()]


def show(what: str, scores: Any) -> None:
    print(f"  {what:<52} P@1 {scores['p@1']:.3f}  MRR {scores['mrr']:.3f}  left out {scores['left_out']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default=str(HERE.parents[1] / "models" / "tiny-bert"))
    parser.add_argument("--relations", nargs="*")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = fw.load_base(given.model, fw.Probing()).eval()
    for relation in relations():
        if not given.relations or relation["relation"] in given.relations:
            print(f"\n{relation['relation']}")
            for template, scores in probe(model, relation, given.steps, given.seed):
                show(template, scores)


if __name__ == "__main__":
    main()
