"""The texts that the models read, from the development data, with the licence of each; every 20th document is dev.

Left out, and why: dialogsum, mrpc (non-commercial), sst2, trec, subj, customer reviews, mpqa, cola, rte, raft (research
use, or no licence stated), stsb (its texts have many owners), stories260k (a model, not a text). FewGLUE's and T-Few's
rows are what the models are asked later: none of them is read, whatever its licence. Test splits are not read either.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DEV = 20  # one document in so many


@dataclass(frozen=True)
class Source:
    """A data set: its licence, its files that are read, and its documents."""

    name: str
    licence: str
    files: tuple[str, ...]

    def documents(self, data: Path) -> list[str]:
        texts = (re.sub(r"[ \t]+", " ", text).strip() for text in READERS[self.name](data / self.name, self.files))
        return [text for text in texts if len(text) > 20]


SOURCES = (
    Source("wikitext2", "CC BY-SA 3.0", ("valid.txt",)),
    Source("calib_text", "ODC-BY (C4)", ("c4_demo.jsonl",)),
    Source("tinystories_sample", "CDLA-Sharing-1.0", ("tinystories.txt",)),
    Source("gsm8k", "MIT", ("train.jsonl",)),
    Source("self_instruct", "Apache-2.0", ("seed_tasks.jsonl", "user_oriented_instructions.jsonl")),
    Source("tinyshakespeare", "public domain", ("input.txt",)),
    Source("e2e_nlg", "CC BY-SA 4.0", ("trainset.csv",)),
    Source("banking77", "CC BY 4.0", ("train.csv",)),
)


def texts(data: Path) -> dict[str, tuple[list[str], list[str]]]:
    """source -> (training documents, dev documents)."""
    found = {}
    for source in SOURCES:
        every = source.documents(data)
        found[source.name] = ([t for i, t in enumerate(every) if i % DEV], every[::DEV])
    return found


def jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def wiki(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """Articles, spelt as text is; sentences that lost more than two words to the data set's <unk> are left out."""
    text = (folder / files[0]).read_text(encoding="utf-8")
    for article in re.split(r"\n(?= = [^=])", text):
        paragraphs = (whole(line.strip()) for line in article.splitlines())
        yield "\n".join(p for p in paragraphs if p)


def whole(line: str) -> str:
    kept = [s for s in re.split(r"(?<= \.) ", line) if s.count("<unk>") < 3]
    text = re.sub(r" @(.)@ ", r"\1", " ".join(kept).strip("= "))
    text = re.sub(r" ([.,;:!?)\]%])", r"\1", re.sub(r"([(\[$£]) ", r"\1", text))
    return re.sub(r" ('s|'t|'re|n't)\b", r"\1", re.sub(r'" ([^"]*?) "', r'"\1"', text))


def web(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    return (row["text"] for row in jsonl(folder / files[0]))


def stories(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """About ten paragraphs at a time: the file does not say where a story ends."""
    text = (folder / files[0]).read_text(encoding="utf-8")
    for wrong, right in (("â€œ", '"'), ("â€\x9d", '"'), ("â€™", "'"), ("â€”", "-"), ("â€“", "-"), ("â€", '"')):
        text = text.replace(wrong, right)
    paragraphs = [p for p in re.split(r"\n+", text) if p]
    return ("\n".join(paragraphs[i : i + 10]) for i in range(0, len(paragraphs), 10))


def plays(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """The first 90 %, as the file is usually split, twenty speeches at a time."""
    text = (folder / files[0]).read_text(encoding="utf-8")
    speeches = text[: len(text) * 9 // 10].split("\n\n")
    return ("\n\n".join(speeches[i : i + 20]) for i in range(0, len(speeches), 20))


def maths(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    for row in jsonl(folder / files[0]):
        yield row["question"] + "\n" + reasoning(row["answer"])


def reasoning(answer: str) -> str:
    """An answer without its marks for a calculator; the last line as a sentence."""
    return re.sub(r"\n#### (.*)", r"\nThe answer is \1.", re.sub(r"<<.*?>>", "", answer))


def instructions(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    for name in files:
        for row in jsonl(folder / name):
            for case in row["instances"]:  # type: ignore[attr-defined]
                yield "\n".join(part for part in (row["instruction"], case["input"], case["output"]) if part)


def meals(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    """One description of each restaurant: the others say the same."""
    return iter({row["mr"]: row["ref"] for row in table(folder / files[0])}.values())


def bank(folder: Path, files: tuple[str, ...]) -> Iterator[str]:
    rows = table(folder / files[0])
    return ("\n".join(row["text"].strip() for row in rows[i::997]) for i in range(997))


READERS = {
    "wikitext2": wiki, "calib_text": web, "tinystories_sample": stories, "gsm8k": maths, "self_instruct": instructions,
    "tinyshakespeare": plays, "e2e_nlg": meals, "banking77": bank,
}  # fmt: skip
