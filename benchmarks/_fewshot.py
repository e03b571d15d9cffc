"""The tasks of the few-shot ablation: rows with choices, 32 to learn from for each seed, at most 200 to answer.

held out        rte, cb, copa, wic, wsc: T-Few's draws, scored on FewGLUE's validation sets
not prompted    sst2 (T-Few's draws), subj, trec: no row of these was ever read; intents: banking77's messages, four
                intents to choose from that no prompt of the mixture was about; food: which food a restaurant serves,
                a question that no prompt of the mixture asked. Texts like those of the last two were read.
"""

import csv
import re
import sys
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

from _paired import DATA, ROOT

SEEDS = (0, 1, 32, 42, 1024)  # T-Few's
ROWS, ASKED = 32, 200
Rows = list[dict[str, Any]]
Split = tuple[Rows, Rows]

SUBJ = ("{text}\nIs this an opinion or a fact?", "Text: {text}\nAnswer with opinion or fact:")
TREC = ("{text}\nWhat kind of answer is wanted: {options}?", "Question: {text}\nIt asks for one of {options}. It is")
INTENT = ("{text}\nIs this about {options}?", "Options: {options}.\nMessage: {text}\nThe message is about")
FOOD = (
    "{text}\nWhich food is served: {options}?",
    "Text: {text}\nQuestion: what does one eat there, {options}?\nAnswer:",
)
KINDS = ("a number", "a thing", "a description", "an abbreviation", "a person", "a place")  # of trec's labels, below
FOODS = ("Japanese", "Italian", "Fast food", "French", "Indian", "English", "Chinese")


def glue(name: str, seed: int) -> Split:
    """T-Few's draw of a seed and FewGLUE's validation set, by the product's templates in turn."""
    from featherweight.data.templates import prompted

    folder = {"rte": "RTE", "cb": "CB", "copa": "COPA", "wic": "WiC", "wsc": "WSC"}[name]
    draw = DATA / "tfew_fewshot" / name / "32_shot" / f"{seed}_seed.jsonl"
    train, test = (prompted(str(p), name).train for p in (draw, DATA / "fewglue" / folder / "val.jsonl"))
    return [row.fields for row in train], some([row.fields for row in test], name)


def sst2(seed: int) -> Split:
    from featherweight.data.templates import prompted

    draw = DATA / "tfew_fewshot" / "sst2" / "16_shot" / f"{seed}_seed.jsonl"
    lines = (DATA / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    asked = [dict(zip(("sentence", "label"), line.split("\t"), strict=True)) for line in lines]
    asked = [{**row, "label": int(row["label"])} for row in asked]
    return [r.fields for r in prompted(str(draw), "sst2").train], some(
        [r.fields for r in prompted(asked, "sst2").train], "sst2"
    )


def labelled(file: str) -> list[tuple[int, str]]:
    lines = (DATA / "sentconv" / file).read_text(encoding="latin-1").rstrip("\n").split("\n")
    return [(int(line[0]), line[2:].strip()) for line in lines]


def subj(seed: int) -> Split:
    """Label 0 is a review's opinion, 1 a plot's fact."""
    rows = [
        row(SUBJ, i, {"text": text}, ("opinion", "fact"), label) for i, (label, text) in enumerate(labelled("subj.all"))
    ]
    Random("subj").shuffle(rows)
    return drawn(rows[ASKED:], seed), rows[:ASKED]


def trec(seed: int) -> Split:
    made = [[row(TREC, i, {"text": text}, KINDS, TRECS[label]) for i, (label, text) in enumerate(labelled(file))]
            for file in ("TREC.train.all", "TREC.test.all")]  # fmt: skip
    return drawn(made[0], seed), some(made[1], "trec")


TRECS = (2, 1, 3, 4, 0, 5)


def intents(seed: int) -> Split:
    sys.path.insert(0, str(ROOT / "models"))
    from mixture import held_intent, intent_name

    def made(file: str) -> Rows:
        with (DATA / "banking77" / file).open(encoding="utf-8", newline="") as text:
            rows = [r for r in csv.DictReader(text) if held_intent(r["category"])]
        names = sorted({intent_name(r["category"]) for r in rows})
        found = []
        for i, r in enumerate(rows):
            draw, right = Random(f"{file} {i}"), intent_name(r["category"])
            options = [*draw.sample([n for n in names if n != right], 3), right]
            draw.shuffle(options)
            found.append(row(INTENT, i, {"text": r["text"].strip()}, tuple(options), options.index(right)))
        return found

    return drawn(made("train.csv"), seed), some(made("test.csv"), "intents")


def food(seed: int) -> Split:
    """Of the training file, split as the mixture splits it: the dev file knows two of the seven foods alone."""
    with (DATA / "e2e_nlg" / "trainset.csv").open(encoding="utf-8-sig", newline="") as text:
        rows = [(r["mr"], r["ref"], re.search(r"food\[(.*?)\]", r["mr"])) for r in csv.DictReader(text)]
    parts: tuple[Rows, Rows] = ([], [])
    for i, (mr, ref, kind) in enumerate(rows):
        if kind and kind[1] in FOODS:
            parts[crc32(mr.encode()) % 20 == 0].append(row(FOOD, i, {"text": ref}, FOODS, FOODS.index(kind[1])))
    return drawn(parts[0], seed), some(parts[1], "food")


def row(
    prompts: tuple[str, ...], number: int, fields: dict[str, str], choices: tuple[str, ...], label: int
) -> dict[str, Any]:
    text = prompts[number % len(prompts)].format(options=", ".join(choices), **fields)
    return {"text": text, "choices": list(choices), "label": label}


def drawn(rows: Rows, seed: int) -> Rows:
    return Random(f"draw {seed}").sample(rows, ROWS)


def some(rows: Rows, name: str) -> Rows:
    return rows if len(rows) <= ASKED else Random(name).sample(rows, ASKED)


TASKS: dict[str, Callable[[int], Split]] = {
    "intents": intents, "food": food, "subj": subj, "sst2": sst2, "rte": lambda s: glue("rte", s),
    "copa": lambda s: glue("copa", s), "cb": lambda s: glue("cb", s), "wic": lambda s: glue("wic", s),
    "wsc": lambda s: glue("wsc", s), "trec": trec,
}  # fmt: skip
