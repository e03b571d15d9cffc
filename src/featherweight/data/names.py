"""The names under which people keep texts, labels, prompts and answers."""

import re

TEXT = [
    "text", "sentence", "content", "review", "comment", "document", "article", "query", "tweet", "tweet_text",
    "utterance", "body", "message", "question", "title", "abstract",
]  # fmt: skip
PAIRS = [pair.split() for pair in (
    "text text_pair", "text1 text2", "text_a text_b", "sentence1 sentence2", "sentence_a sentence_b", "string1 string2",
    "1_string 2_string", "premise hypothesis", "question1 question2", "question sentence", "question passage",
    "question context", "query passage", "query document", "claim evidence",
)]  # fmt: skip
LABEL = [
    "label", "class", "category", "intent", "sentiment", "stars", "rating", "quality", "gold_label", "target",
    "topic", "emotion",
]  # fmt: skip
SCORE = ["score", "similarity", "similarity_score", "relatedness", "relatedness_score"]
LABELS = ["labels", "tags", "categories", "classes", "topics", "emotions"]
PROMPTS = [pair.split() for pair in (
    "prompt completion", "prompt response", "prompt output", "prompt answer", "question answer", "query answer",
    "query response", "input output", "input target", "source target", "src tgt", "mr ref", "context response",
    "dialogue summary", "document summary", "article highlights", "article summary", "text summary",
)]  # fmt: skip
CHOICES = ["choices", "options", "endings", "answer_choices"]
CONTEXT = [*TEXT, "prompt", "input", "ctx", "context"]
ANCHOR = ["anchor", *TEXT, "premise"]
ASKED = [pair.split() for pair in ("text text_pair", "question context", "question paragraph", "query context")]
SPANS = ["answers", "answer"]
TOKENS = ["tokens", "words"]
TAGS = ["tags", "ner_tags", "ner", "entities", "labels", "pos_tags", "chunk_tags"]
SUBJECT = ["subject", "sub_label"]
OBJECT = ["object", "obj_label"]
RELATION = ["relation", "predicate_id"]
OUTPUT = ["output", "response", "completion", "answer"]
MESSAGES = ["messages", "conversations", "conversation"]
ROLES = ("text", "text_pair", "label", "score", "labels", "prompt", "completion", "instruction", "input", "output",
         "system", "history", "messages", "choices", "anchor", "positive", "negative", "answers", "start", "tokens",
         "tags", "subject", "object", "relation", "template")  # fmt: skip
ANSWERS = ("label", "score", "labels", "completion", "output", "answers", "tags", "object")  # what a question lacks
KNOWN = frozenset(
    [*TEXT, *LABEL, *SCORE, *LABELS, *CHOICES, *OUTPUT, *MESSAGES, *ROLES, *SUBJECT, *OBJECT]
    + [n for pair in (*PAIRS, *PROMPTS) for n in pair]
) - {"positive", "negative", "start", "subject", "object"}  # in a first line they are as likely classes


def plain_name(name: str) -> str:
    """`#1 String` → `1_string`: lower case, every run of other characters an underscore."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
