"""TinyBERT's augmentation: candidates by brute force, chance by counting, everything else as it was."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support.distilling import SMALL, WORDS, bert

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.distill.augment.augment import rewritten
from featherweight.distill.augment.words import Lexicon, Place


@pytest.fixture(scope="module")
def filler(tokenizer: Any) -> Any:
    made = bert(masked=True)
    made.tokenizer = tokenizer
    return made


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A masked LM over pieces of words: `superb` is super ##b."""
    import transformers as hf
    from tokenizers import BertWordPieceTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "super", "##b", "##s", "the", "inn", "is", "good", "a", "7"]
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("\n".join([*words, ".", ",", "'", "t", "don"]))
    torch.manual_seed(0)
    made = hf.BertForMaskedLM(hf.BertConfig(**{**SMALL, "vocab_size": 19})).eval()
    core = BertWordPieceTokenizer(str(file))
    named = {
        name: f"[{name[:-6].upper()}]" for name in ("mask_token", "pad_token", "unk_token", "cls_token", "sep_token")
    }
    made.tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, **named)
    return made


def test_in_context_by_brute_force(filler: Any, tokenizer: Any) -> None:
    text = "good food near river"
    found = Lexicon(filler, tokenizer, count=4).candidates(text)
    ids = tokenizer(text)["input_ids"]
    words = set(tokenizer(" ".join(WORDS))["input_ids"])
    assert len(found) == 4
    for at, (_, candidates) in enumerate(found):
        hidden = [tokenizer.mask_token_id if i == at else t for i, t in enumerate(ids)]
        with torch.no_grad():
            logits = filler(input_ids=torch.tensor([hidden]), attention_mask=torch.ones(1, 4).long()).logits[0, at]
        best = [i for i in logits.argsort(descending=True).tolist() if i in words][:4]
        assert candidates == tokenizer.convert_ids_to_tokens(best)


def test_words_of_several_tokens_take_their_neighbors(pieces: Any) -> None:
    lexicon = Lexicon(pieces, pieces.tokenizer, count=2)
    text = "The superb inn, don't!"
    found = {text[p.start : p.end]: (p, c) for p, c in lexicon.candidates(text)}
    assert list(found) == ["The", "superb", "inn", "don't"]
    assert set(lexicon.known.values()) == {"super", "the", "inn", "is", "good", "a", "t", "don"}
    table = pieces.get_input_embeddings().weight.detach()
    of = pieces.tokenizer.convert_tokens_to_ids
    mean = (table[of("super")] + table[of("##b")]) / 2
    near = {w: float(torch.cosine_similarity(mean, table[of(w)], dim=0)) for w in lexicon.known.values()}
    assert found["superb"][1] == sorted(near, key=lambda w: -near[w])[:2]
    assert len(found["superb"][0].tokens) == 2
    assert all(w[0].isupper() for w in found["The"][1])


def test_a_text_keeps_what_is_no_word(pieces: Any) -> None:
    rows = [{"text": "  The 7 superb inn,\tis GOOD.  ", "label": "x"}]
    made = fw.augmented(rows, pieces, samples=30, share=1.0).train
    assert made[0].fields == rows[0]
    for row in made[1:]:
        text = row.fields["text"]
        assert text[:2] == text[-2:] == "  "
        assert (text.count("7"), text.count(",\t"), text.count(".")) == (1, 1, 1)
        assert text.strip()[0].isupper()
        assert text.rstrip(" .").split()[-1].isupper()
        assert row.fields["label"] == "x"


def test_chance_is_share() -> None:
    """Of 10,000 words 4,000 are drawn, within four deviations; each candidate alike."""
    text = " ".join(["good"] * 100)
    places = [(Place(5 * i, 5 * i + 4, (i,)), ["x", "y", "z"]) for i in range(100)]
    chance = Random(0)
    counts = Counter(word for _ in range(100) for word in rewritten(text, places, 0.4, chance).split())
    assert counts["good"] == pytest.approx(6000, abs=4 * 49)
    for word in "xyz":
        assert counts[word] == pytest.approx(4000 / 3, abs=4 * 34)
    assert rewritten(text, [(p, []) for p, _ in places], 1.0, chance) == text


def test_the_seed_decides_and_other_rows_do_not(filler: Any, rows: Any) -> None:
    def copies(given: Any, **more: Any) -> list[str]:
        return [r.fields["text"] for r in fw.augmented(given, filler, samples=3, **more).train]

    alone = copies(rows[:1])
    assert copies(rows[:5])[: len(alone)] == alone
    assert copies([*rows[3:5], rows[0]])[-len(alone) :] == alone
    assert copies(rows[:5], seed=1) != copies(rows[:5])
    assert copies(rows[:5], batch=1) == copies(rows[:5])


def test_pairs_change_one_text_at_a_time(filler: Any) -> None:
    rows = [{"text": "good food near river", "text_pair": "cheap thai inn", "label": "x"}]
    made = [(r.fields["text"], r.fields["text_pair"]) for r in fw.augmented(rows, filler, samples=10, share=1.0).train]
    kept = Counter((a == rows[0]["text"], b == rows[0]["text_pair"]) for a, b in made[1:])
    assert kept[True, False] >= 3
    assert kept[False, True] >= 3
    assert kept[False, False] == 0


def test_data_sets_keep_their_other_splits_and_places(filler: Any, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("review,stars\ngood thai food,5\nslow dull staff,1\n")
    columns = {"text": "review", "label": "stars"}
    made = fw.augmented(tmp_path, filler, samples=2, share=0.9, columns=columns)
    assert len(made.train) > 2 == len(made.valid)
    assert {row.where.rsplit("/", 1)[-1] for row in made.train} == {"train.csv:2", "train.csv:3"}
    assert made.notes[-1] == f"2 rows became {len(made.train)}"
    assert {row.fields["stars"] for row in made.train} == {"5", "1"}


def test_any_encoder_has_neighbors(rows: Any, tokenizer: Any) -> None:
    encoder = bert()
    encoder.tokenizer = tokenizer
    made = fw.augmented(rows[:3], encoder, samples=2, context=False)
    assert len(made.train) > 3
    lexicon = Lexicon(encoder, tokenizer, count=3, context=False)
    (_, near), *_ = lexicon.candidates("good")
    assert "good" not in near
    assert len(near) == 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"samples": 0}, "samples: no copies"),
    ({"share": 0.0}, "share: no share of words; expected above 0, at most 1"),
    ({"words": 0}, "words: no candidates"),
    ({"data": [{"prompt": "good", "completion": "bad"}]}, "data: there is no text whose words may change"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_bad_options(given: dict[str, Any], said: str, filler: Any, rows: Any) -> None:
    with pytest.raises(InputError, match=said):
        fw.augmented(**{"data": rows, "model": filler, **given})


def test_models_that_fill_nothing_in(rows: Any, tokenizer: Any, filler: Any) -> None:
    encoder = bert()
    encoder.tokenizer = tokenizer
    with pytest.raises(InputError, match=r"the model fills in no masks.*context=False"):
        fw.augmented(rows, encoder)
    bare = type(tokenizer)(tokenizer_object=tokenizer._tokenizer, pad_token="<pad>")
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        fw.augmented(rows, filler, tokenizer=bare)
