"""The frozen baseline: scikit-learn on the same embeddings, served by evaluate and predict like any model."""

import numpy as np
import pytest
import torch
from support.choices import rows

import featherweight as fw
from featherweight.baselines.frozen import GRID
from featherweight.core.errors import InputError
from featherweight.data.types import Example

TEXTS = ["a b c", "a b d", "a c", "b a", "e f", "f g h", "e h", "g e", "a d", "h f"]
NAMES = ["yes", "yes", "yes", "yes", "no", "no", "no", "no", "yes", "no"]


def labelled(texts=TEXTS, names=NAMES):
    return [Example(f"f:{i}", t, label=n) for i, (t, n) in enumerate(zip(texts, names, strict=True))]


def vectors(bert, texts):
    from featherweight.tasks import Embedding

    made = []
    for text in texts:
        ids = bert.tokenizer(text, return_tensors="pt")
        made.append(Embedding().embed(bert, ids["input_ids"], ids["attention_mask"])[0].detach().numpy())
    return np.stack(made)


@pytest.mark.parametrize("names", [NAMES, ["x", "y", "z", "x", "y", "z", "x", "y", "z", "x"]])
def test_its_probabilities_are_scikit_learns(bert, names):
    from sklearn.linear_model import LogisticRegression

    model = fw.frozen(bert, labelled(names=names))
    judge = LogisticRegression(C=model.strength, max_iter=2000).fit(vectors(bert, TEXTS), names)
    found = fw.predict(model, ["b c a", "g g", "a h"])
    wanted = judge.predict_proba(vectors(bert, ["b c a", "g g", "a h"]))
    for answer, row in zip(found, wanted, strict=True):
        assert answer["probabilities"] == pytest.approx(dict(zip(judge.classes_, row, strict=True)), abs=1e-5)
    assert fw.evaluate(model, labelled(names=names))["accuracy"] == judge.score(vectors(bert, TEXTS), names)


def test_the_dev_split_chooses(bert):
    from sklearn.linear_model import LogisticRegression

    dev = [{"text": t, "label": n} for t, n in zip(TEXTS, NAMES[::-1], strict=True)]
    train = [{"text": t, "label": n} for t, n in zip(TEXTS, NAMES, strict=True)]
    model = fw.frozen(bert, {"train": train, "valid": dev})
    scores = {c: LogisticRegression(C=c, max_iter=2000).fit(vectors(bert, TEXTS), NAMES)
              .score(vectors(bert, TEXTS), NAMES[::-1]) for c in GRID}  # fmt: skip
    assert model.strength == max(scores, key=scores.__getitem__)
    assert model.chosen == "dev rows"
    assert fw.frozen(bert, labelled()).chosen == "5-fold cross-validation"
    alone = fw.frozen(bert, labelled(["a", "e"], ["yes", "no"]))
    assert (alone.strength, alone.chosen) == (1.0, "nothing: no label has two rows")
    assert fw.frozen(bert, labelled(["a", "e", "f"], ["yes", "no", "no"])).chosen == "2-fold cross-validation"


def test_the_only_row_of_a_label_is_never_held_out():
    from featherweight.baselines.frozen import folds

    parts = folds(list("aaabbbbc"), 0)
    assert len(parts) == 3
    assert all(7 in fitted and not set(fitted) & set(held) for fitted, held in parts)
    assert sorted(i for _, held in parts for i in held) == list(range(7))


def test_pairs_are_joined_as_the_tokenizer_does(bert):
    made = [Example(f"f:{i}", t, TEXTS[-i - 1], n) for i, (t, n) in enumerate(zip(TEXTS, NAMES, strict=True))]
    model = fw.frozen(bert, made)
    assert model.task.pair
    answer = fw.predict(model, [Example("q", "a", "b")])[0]
    e = vectors(bert, ["a b"])[0]  # this tokenizer joins without a separator
    with torch.no_grad():
        wanted = model.classifier(torch.as_tensor(e)).softmax(0).tolist()
    assert list(answer["probabilities"].values()) == pytest.approx(wanted, abs=1e-5)


def test_the_encoder_stays_as_it_was(bert):
    before = {k: v.clone() for k, v in bert.state_dict().items()}
    config = bert.config.to_dict()
    fw.frozen(bert, labelled())
    assert all(torch.equal(v, before[k]) for k, v in bert.state_dict().items())
    assert bert.config.to_dict() == config


def test_bad_rows_are_named(bert):
    with pytest.raises(InputError, match="pool:1: not a row of a text and one label"):
        fw.frozen(bert, rows("a", "b"))
    with pytest.raises(InputError, match="f:0: no label in a training row"):
        fw.frozen(bert, [Example("f:0", "a"), Example("f:1", "b", label="x")])
    with pytest.raises(InputError, match="fewer than two labels"):
        fw.frozen(bert, labelled(["a", "b"], ["x", "x"]))


def test_no_head_to_embed_by(llama):
    with pytest.raises(InputError, match="no states to embed by"):
        fw.frozen(llama, labelled())
