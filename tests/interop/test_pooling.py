"""The head reads the mean of the tokens: what it computes, what it leaves alone, where it is refused."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import disturb, tiny

from featherweight.checkpoint.save import save
from featherweight.core.attach import attach, detach
from featherweight.core.errors import InputError
from featherweight.core.merge import merge
from featherweight.interop.load import load_model
from featherweight.interop.pooling import pool_of, set_pool
from featherweight.interop.transformers import load_base
from featherweight.methods import LoRA
from featherweight.tasks import Classification

LABELS = ("bad", "good", "fine")
MEAN = Classification(labels=LABELS, pool="mean")
TEXTS = ["the cat is good", "a bad dog"]


def words(model: Any, texts: list[str] = TEXTS) -> Any:
    return model.tokenizer(texts, padding=True, return_tensors="pt")


def ask(model: Any, texts: list[str] = TEXTS) -> torch.Tensor:
    with torch.no_grad():
        return model(**words(model, texts)).logits


@pytest.fixture
def pooled(bert: Path) -> Any:
    return load_base(bert, MEAN).eval()


def test_the_mean_of_the_real_tokens(pooled: Any, bert: Path) -> None:
    """As computed from the last states of the plain trunk, one text at a time without padding."""
    plain = load_base(bert, Classification(labels=LABELS)).eval()
    for text, logits in zip(TEXTS, ask(pooled), strict=True):
        with torch.no_grad():
            states = plain.bert(**words(plain, [text])).last_hidden_state[0]
            expected = pooled.classifier(states.mean(0))
        torch.testing.assert_close(logits, expected)
    assert not torch.allclose(ask(pooled), ask(plain))


def test_the_mask_may_be_positional_or_absent(pooled: Any) -> None:
    given, trunk = words(pooled), pooled.bert
    with torch.no_grad():
        masked = trunk(given["input_ids"], attention_mask=given["attention_mask"]).pooler_output
        assert torch.equal(trunk(given["input_ids"], given["attention_mask"]).pooler_output, masked)
        bare = trunk(given["input_ids"])
        states, state = trunk(given["input_ids"], return_dict=False)
        assert torch.equal(states, bare.last_hidden_state)
        assert torch.equal(state, bare.pooler_output)
    torch.testing.assert_close(bare.pooler_output, bare.last_hidden_state.mean(1))


def test_tensors_and_names_stay(pooled: Any, bert: Path) -> None:
    plain = load_base(bert, Classification(labels=LABELS)).eval()
    assert list(pooled.state_dict()) == list(plain.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(pooled.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    assert isinstance(pooled.bert, type(plain.bert))
    assert str(type(pooled.bert)) == str(type(plain.bert))


def test_copies_pool_too(pooled: Any) -> None:
    expected = ask(pooled)
    for twin in (copy.deepcopy(pooled), pickle.loads(pickle.dumps(pooled))):
        assert torch.equal(ask(twin), expected)


def test_attach_and_detach_leave_it(pooled: Any) -> None:
    before, cls = ask(pooled), type(pooled.bert)
    attach(pooled, LoRA(rank=2))
    assert torch.equal(ask(pooled), before)
    disturb(pooled)
    assert not torch.equal(ask(pooled), before)
    assert torch.equal(ask(detach(pooled)), before)
    assert type(pooled.bert) is cls


def test_saved_with_the_adapter(pooled: Any, tmp_path: Path) -> None:
    model = attach(pooled, LoRA(rank=2))
    disturb(model)
    save(model, tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter")
    assert loaded.task == MEAN
    assert torch.equal(ask(loaded), ask(model))


def test_a_merged_folder_says_so(pooled: Any, tmp_path: Path) -> None:
    """load_base reads what config.json says, whatever the task."""
    disturb(attach(pooled, LoRA(rank=2)))
    expected = ask(pooled)
    plain = merge(pooled)
    plain.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["featherweight_pool"] == "mean"
    pooled.tokenizer.save_pretrained(tmp_path / "merged")
    for task in (None, Classification(labels=LABELS), MEAN):
        torch.testing.assert_close(ask(load_base(tmp_path / "merged", task).eval()), expected)


def test_own_changes_nothing(bert: Path) -> None:
    model = load_base(bert, Classification(labels=LABELS))
    cls = type(model.bert)
    set_pool(model, "own")
    assert type(model.bert) is cls
    assert pool_of(model) == "own"
    assert not hasattr(model.config, "featherweight_pool")


@pytest.mark.parametrize("family", ["roberta", "llama"])
def test_refused_without_a_pooler(family: str) -> None:
    model = tiny(family)
    before = [type(m) for m in model.modules()]
    with pytest.raises(InputError, match="does not read a pooled state"):
        set_pool(model, "mean")
    assert [type(m) for m in model.modules()] == before


def test_an_unknown_pool(bert: Path) -> None:
    with pytest.raises(InputError, match="'own' or 'mean'"):
        load_base(bert, Classification(labels=LABELS, pool="max"))


def test_a_model_loaded_otherwise_is_refused(bert: Path) -> None:
    model = load_base(bert, Classification(labels=LABELS)).eval()
    with pytest.raises(InputError, match="reads something else"):
        MEAN.predict(model, words(model), model.tokenizer)


def test_trained_from_a_path(bert: Path, tmp_path: Path) -> None:
    """The run's document, its card and what is loaded again all say which states the head reads."""
    from featherweight.train.run import train

    rows = [{"text": "the cat is good", "label": "good"}, {"text": "a bad dog", "label": "bad"}]
    train(str(bert), rows, Classification(pool="mean"), output=tmp_path / "run", method=LoRA(rank=2), steps=2, batch=2)
    assert 'pool = "mean"' in (tmp_path / "run" / "run.toml").read_text()
    assert "pool='mean'" in (tmp_path / "run" / "README.md").read_text()
    loaded = load_model(tmp_path / "run")
    assert loaded.task == Classification(labels=("bad", "good"), pool="mean")
    assert pool_of(loaded) == "mean"
