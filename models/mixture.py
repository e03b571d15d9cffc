"""The second phase of tiny-t5: prompts of many tasks, so that it reads a question and answers it ("T0 in miniature").

    prompt  ->  answer              Sanh et al. 2022, arXiv:2110.08207: fine-tuned on prompted tasks, asked about others

Every task is made of the same texts as the first phase, with prompts written for this project; two prompts in ten go on
with restoring spans. Kept out: every row of T-Few's held-out tasks (HELD_OUT) and their kind: no inference between
sentences, no choice of an ending or of a cause, no pronouns, no senses of words. For few-shot experiments with a
signal, a third of banking77's intents (`held_intent`) and every question after a restaurant's food are kept out too.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from texts import DEV, jsonl, reasoning, table, texts

HELD_OUT = ("rte", "cb", "anli", "copa", "hellaswag", "winogrande", "wsc", "wic", "story_cloze")
LONGEST = 240  # characters of a text inside of a prompt
YES = ("yes", "no")


@dataclass(frozen=True)
class Item:
    """One prompt. `choices` is empty where the answer is free text."""

    task: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


Draw = random.Random
Made = tuple[dict[str, str], str, tuple[str, ...]]  # fields of the prompt, answer, choices

PROMPTS = {
    "describe": ("Describe this restaurant in a sentence: {facts}", "{facts}\nWrite these facts as a text.",
                 "Data: {facts}\nText:"),
    "details": ("{text}\nList the facts.", "What do we learn about the place? {text}", "Text: {text}\nData:"),
    "place": ("{text}\nWhat is the place called?", "Which place is this about? {text}",
              "Text: {text}\nThe name of the place is"),
    "kind": ("{text}\nIs it a {options}?", "A {options}: which is meant here? {text}"),
    "area": ("{text}\nWhere is it, {options}?", "Text: {text}\nQuestion: {options}?\nAnswer:"),
    "family": ("{text}\nCan one bring children?", "Is this a place for families? {text}",
               "Text: {text}\nQuestion: is it good for children? Answer yes or no:"),
    "near": ("{text}\nIs it near {other}?", "Passage: {text}\nQuestion: is the place close to {other}?\nAnswer:"),
    "same_place": ("First: {one}\nSecond: {two}\nDo both say the same?", "{one}\nCould one write instead: {two}",
                   "Are these two descriptions of one place? {one} And: {two}"),
    "intent": ("{text}\nIs this about {options}?", "Options: {options}.\nMessage: {text}\nThe message is about",
               "A customer writes: {text}\nThe subject is one of {options}. It is"),
    "is_intent": ("{text}\nIs this about {other}?", "Subject: {other}\nMessage: {text}\nDoes the message fit?"),
    "same_intent": ("A: {one}\nB: {two}\nDo A and B ask for the same?",
                    "{one}\n{two}\nAre these two questions about one matter? Answer yes or no:"),
    "solve": ("{question}", "Question: {question}\nAnswer:", "Solve this step by step. {question}"),
    "belongs": ("Question: {question}\nAnswer: {text}\nDoes the answer belong to the question?",
                "{text}\nDoes this solve the following? {question}"),
    "word": ("{text}\nWhich word is missing: {options}?", "Options: {options}\nFind the missing word. {text}"),
    "mentions": ("{text}\nDoes the text have the word {other}?", "Is the word {other} in this text? {text}"),
    "source": ("{text}\nIs this from {options}?", "Where was this written? Options: {options}. {text}",
               "Text: {text}\nThe text is from"),
    "instruct": ("{text}",),
    "restore": ("{text}",),
}  # fmt: skip
WEIGHTS = {"describe": 3, "details": 2, "place": 1, "kind": 1, "area": 1, "family": 1, "near": 2, "same_place": 3,
           "intent": 5, "is_intent": 4, "same_intent": 4, "solve": 3, "belongs": 2, "word": 4, "mentions": 5,
           "source": 2, "instruct": 1, "restore": 10}  # fmt: skip
PLACES = {
    "wikitext2": "an encyclopedia", "calib_text": "a web page", "tinystories_sample": "a story for children",
    "tinyshakespeare": "a play", "gsm8k": "a school book", "banking77": "a letter to a bank",
}  # fmt: skip


def held_intent(name: str) -> bool:
    """Whether no prompt of the mixture is about this intent of banking77."""
    return crc32(intent_name(name).encode()) % 3 == 0


class Mixture:
    """The tasks over one split of the data: "train" or "valid" (the rows whose text falls into one part in DEV)."""

    def __init__(self, data: Path, split: str):
        self.split = split
        self.documents = {name: parts[split == "valid"] for name, parts in texts(data).items()}
        self.meals = [(facts_of(row["mr"]), row["ref"]) for row in table(data / "e2e_nlg" / "trainset.csv")
                      if self.own(row["mr"])]  # fmt: skip
        self.by_facts: dict[str, list[str]] = {}
        for facts, ref in self.meals:
            self.by_facts.setdefault(str(facts), []).append(ref)
        self.intents: dict[str, list[str]] = {}
        for row in table(data / "banking77" / "train.csv"):
            if not held_intent(row["category"]) and self.own(row["text"]):
                self.intents.setdefault(intent_name(row["category"]), []).append(row["text"].strip())
        self.sums = [r for r in jsonl(data / "gsm8k" / "train.jsonl") if self.own(r["question"])]
        self.orders = [
            ("\n".join(p for p in (row["instruction"], case["input"]) if p), case["output"])  # type: ignore[index]
            for name in ("seed_tasks.jsonl", "user_oriented_instructions.jsonl")
            for row in jsonl(data / "self_instruct" / name)
            for case in row["instances"]
            if self.own(row["instruction"]) and case["output"].strip()  # type: ignore[index]
        ]
        self.sentences = [s for docs in self.documents.values() for d in docs for s in sentences(d)]
        self.words = sorted({w for s in self.sentences for w in content(s)})

    def own(self, text: str) -> bool:
        return (crc32(text.encode()) % DEV == 0) == (self.split == "valid")

    def items(self, count: int, seed: int) -> Iterator[Item]:
        """So many prompts, tasks by their weights."""
        draw = Draw(f"{seed} {self.split}")
        tasks = draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
        for task in tasks:
            made = None
            while made is None:
                made = TASKS[task](self, draw)
            fields, answer, choices = made
            prompt = draw.choice(PROMPTS[task])
            yield Item(task, prompt.format(options=listed(choices, draw), **fields), answer, choices)


def facts_of(mr: str) -> dict[str, str]:
    return dict(re.findall(r"(\w[\w ]*)\[(.*?)\]", mr))


def intent_name(category: str) -> str:
    return category.lower().replace("_", " ").strip("?")


def sentences(text: str) -> list[str]:
    """Sentences of 5 to 40 words that lost nothing."""
    found = re.split(r"(?<=[.!?])\s+", text.replace("\n", " "))
    return [s for s in found if 5 <= len(s.split()) <= 40 and "<unk>" not in s]


def content(sentence: str) -> list[str]:
    return list(re.findall(r"\b[a-z]{4,}\b", sentence))


def listed(choices: tuple[str, ...], draw: Draw) -> str:
    """a, b or c: in any order, so that the place says nothing."""
    order = draw.sample(choices, len(choices))
    return " or ".join([", ".join(order[:-1]), order[-1]] if len(order) > 1 else order)


def describe(of: Mixture, draw: Draw) -> Made:
    facts, ref = draw.choice(of.meals)
    return {"facts": ", ".join(f"{k}: {v}" for k, v in facts.items())}, ref, ()


def details(of: Mixture, draw: Draw) -> Made:
    facts, ref = draw.choice(of.meals)
    known = {k: v for k, v in facts.items() if k != "food"}
    return {"text": ref}, ", ".join(f"{k}: {v}" for k, v in known.items()), ()


def place(of: Mixture, draw: Draw) -> Made | None:
    facts, ref = draw.choice(of.meals)
    return ({"text": ref}, facts["name"], ()) if facts["name"] in ref else None


def chosen(key: str, choices: tuple[str, ...]) -> Callable[[Mixture, Draw], Made | None]:
    def make(of: Mixture, draw: Draw) -> Made | None:
        facts, ref = draw.choice(of.meals)
        value = facts.get(key, "")
        return ({"text": ref}, value, choices) if value in choices and value in ref else None

    return make


def family(of: Mixture, draw: Draw) -> Made | None:
    facts, ref = draw.choice(of.meals)
    value = facts.get("familyFriendly")
    told = re.search(r"famil|child|kid", ref)
    return (
        ({"text": ref}, value, YES) if value in YES and told and draw.random() < (1 if value == "no" else 0.5) else None
    )


def near(of: Mixture, draw: Draw) -> Made | None:
    facts, ref = draw.choice(of.meals)
    if facts.get("near", "?") not in ref:
        return None
    other = draw.choice([f["near"] for f, _ in draw.sample(of.meals, 20) if "near" in f] or [facts["near"]])
    asked = facts["near"] if draw.random() < 0.5 else other
    return {"text": ref, "other": asked}, YES[asked != facts["near"]], YES


def same_place(of: Mixture, draw: Draw) -> Made | None:
    facts, one = draw.choice(of.meals)
    if draw.random() < 0.5:
        rest = [r for r in of.by_facts[str(facts)] if r != one]
        return ({"one": one, "two": draw.choice(rest)}, "yes", YES) if rest else None
    other, two = draw.choice(of.meals)
    return ({"one": one, "two": two}, "no", YES) if other != facts else None


def intent(of: Mixture, draw: Draw) -> Made:
    names = draw.sample(sorted(of.intents), draw.choice((2, 3, 4)))
    return {"text": draw.choice(of.intents[names[0]])}, names[0], tuple(sorted(names))


def is_intent(of: Mixture, draw: Draw) -> Made:
    one, two = draw.sample(sorted(of.intents), 2)
    yes = draw.random() < 0.5
    return {"text": draw.choice(of.intents[one]), "other": one if yes else two}, YES[not yes], YES


def same_intent(of: Mixture, draw: Draw) -> Made | None:
    one, two = draw.sample(sorted(of.intents), 2)
    yes = draw.random() < 0.5
    pair = draw.choice(of.intents[one]), draw.choice(of.intents[one if yes else two])
    return ({"one": pair[0], "two": pair[1]}, YES[not yes], YES) if pair[0] != pair[1] else None


def solve(of: Mixture, draw: Draw) -> Made:
    row = draw.choice(of.sums)
    return {"question": row["question"]}, reasoning(row["answer"]), ()


def belongs(of: Mixture, draw: Draw) -> Made:
    one, two = draw.sample(of.sums, 2)
    yes = draw.random() < 0.5
    text = reasoning((one if yes else two)["answer"])
    return {"question": short(one["question"]), "text": short(text)}, YES[not yes], YES


def word(of: Mixture, draw: Draw) -> Made | None:
    sentence = draw.choice(of.sentences)
    if not (found := content(sentence)):
        return None
    right = draw.choice(found)
    wrong = [w for w in draw.sample(of.words, 3) if w not in sentence]
    told = re.sub(rf"\b{right}\b", "___", sentence)
    return {"text": told}, right, tuple(sorted([right, *wrong]))


def mentions(of: Mixture, draw: Draw) -> Made | None:
    sentence = draw.choice(of.sentences)
    yes = draw.random() < 0.5
    pool = content(sentence) if yes else content(draw.choice(of.sentences))
    pool = pool if yes else [w for w in pool if w not in sentence]
    return ({"text": sentence, "other": draw.choice(pool)}, YES[not yes], YES) if pool else None


def source(of: Mixture, draw: Draw) -> Made:
    names = draw.sample(sorted(PLACES), draw.choice((2, 3, 4)))
    text = draw.choice(of.documents[names[0]])
    start = draw.randrange(max(1, len(text) - 240))
    cut = text[start : start + 240]
    return (
        {"text": cut[cut.find(" ") + 1 :].replace("<unk>", "")},
        PLACES[names[0]],
        tuple(sorted(PLACES[n] for n in names)),
    )


def instruct(of: Mixture, draw: Draw) -> Made | None:
    order, answer = draw.choice(of.orders)
    return ({"text": order[-LONGEST:]}, answer[:LONGEST], ()) if len(order) < 2 * LONGEST else None


def restore(of: Mixture, draw: Draw) -> Made | None:
    """The first phase's task goes on, so that it is not forgotten: 2 to 4 spans of 1 to 4 of a text's words."""
    words = draw.choice(of.documents[draw.choice(sorted(of.documents))]).replace("<unk>", "").split()
    start = draw.randrange(max(1, len(words) - 40))
    words = words[start : start + 40]
    if len(words) < 20:
        return None
    starts = sorted(draw.sample(range(0, len(words) - 5, 6), draw.choice((2, 3, min(4, (len(words) - 1) // 6)))))
    text, hidden, last = "", "", 0
    for i, begin in enumerate(starts):
        end = begin + draw.randint(1, 4)
        text += " ".join(words[last:begin]) + f" <extra_id_{i}> "
        hidden += f" <extra_id_{i}> " + " ".join(words[begin:end])
        last = end
    return {"text": text + " ".join(words[last:])}, hidden.strip(), ()


def short(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST].rsplit(" ", 1)[0] + " ..."


TASKS: dict[str, Callable[[Mixture, Draw], Made | None]] = {
    "describe": describe, "details": details, "place": place, "family": family, "near": near, "same_place": same_place,
    "kind": chosen("eatType", ("pub", "coffee shop", "restaurant")),
    "area": chosen("area", ("riverside", "city centre")),
    "intent": intent, "is_intent": is_intent, "same_intent": same_intent, "solve": solve, "belongs": belongs,
    "word": word, "mentions": mentions, "source": source, "instruct": instruct, "restore": restore,
}  # fmt: skip
