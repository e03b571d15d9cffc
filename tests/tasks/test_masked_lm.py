"""Masked language modelling: transformers' own loss, one question per text in eval mode, exact resumption."""

import pytest
import torch

import featherweight as fw
from featherweight.data.collate import collate
from featherweight.data.corruption import IGNORED
from featherweight.data.rows import examples
from featherweight.data.shape import Shape
from featherweight.data.types import Row

TEXT = "small dogs and large cats run over green hills in the bright morning sun while birds sing"
WORDS = TEXT.split()
ROWS = [{"text": " ".join(WORDS[i % 5 :] + WORDS[: i % 7])} for i in range(24)]


def shaped(rows):
    return examples([Row(row, f"row:{i}") for i, row in enumerate(rows, 1)], Shape("text", {"text": "text"}))


@pytest.fixture
def model(minilm_tokenizer):
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(minilm_tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    return BertForMaskedLM(config)


@pytest.fixture
def batch(minilm_tokenizer):
    encoded = fw.MaskedLM().encode_all(shaped(ROWS), minilm_tokenizer, None)
    return collate(encoded, minilm_tokenizer.pad_token_id).tensors


def test_the_loss_is_the_models_own_times_the_hidden_tokens(model, batch):
    model.eval()
    given, targets = fw.MaskedLM().pose(model, batch)
    loss, units = fw.MaskedLM().loss(model, batch)
    own = model(**given, labels=targets).loss
    assert units == (targets != IGNORED).sum() == sum(round(0.15 * int(n)) or 1 for n in (batch["labels"] >= 0).sum(1))
    torch.testing.assert_close(loss / units, own, rtol=1e-5, atol=1e-5)


def test_special_tokens_and_padding_are_never_hidden(model, batch, minilm_tokenizer):
    model.train()
    special = torch.tensor(minilm_tokenizer.all_special_ids)
    whole = fw.MaskedLM().ask(shaped(ROWS), minilm_tokenizer, None)
    ids = collate(whole, minilm_tokenizer.pad_token_id).tensors["input_ids"]
    for seed in range(20):
        torch.manual_seed(seed)
        given, targets = fw.MaskedLM().pose(model, batch)
        assert not torch.isin(targets[targets != IGNORED], special).any()
        still = targets == IGNORED
        assert torch.equal(given["input_ids"][still], ids[still]), "what is not hidden is the text itself"
        assert torch.equal(targets[~still], ids[~still])


def test_training_draws_anew_and_evaluation_does_not(model, batch):
    def hidden():
        return fw.MaskedLM().pose(model, batch)[1]

    model.eval()
    state = torch.random.get_rng_state()
    assert torch.equal(hidden(), hidden())
    assert torch.equal(torch.random.get_rng_state(), state), "evaluation leaves torch's generator alone"
    model.train()
    torch.manual_seed(0)
    first, second = hidden(), hidden()
    torch.manual_seed(0)
    assert torch.equal(hidden(), first)
    assert not torch.equal(first, second)


def test_scores_do_not_depend_on_the_batch(model, minilm_tokenizer):
    one = fw.evaluate(model, ROWS, fw.MaskedLM(), tokenizer=minilm_tokenizer, batch=1)
    all_ = fw.evaluate(model, ROWS, fw.MaskedLM(), tokenizer=minilm_tokenizer, batch=24)
    assert one["masked_accuracy"] == all_["masked_accuracy"]
    assert one["loss"] == pytest.approx(all_["loss"], rel=1e-5)


def test_a_run_learns_and_resumes_exactly(model, minilm_tokenizer, tmp_path):
    from copy import deepcopy

    data = {"train": ROWS, "valid": ROWS[:8]}
    options = {"method": fw.Full(), "tokenizer": minilm_tokenizer, "lr": 1e-2, "steps": 20, "batch": 8, "best": False,
               "checkpoint_every": 10, "log": 1}  # fmt: skip
    start = deepcopy(model)
    whole = fw.train(model, data, fw.MaskedLM(), output=tmp_path / "whole", **options)
    losses = [x["loss"] for x in whole.history if "loss" in x]
    assert losses[-1] < losses[0] - 2
    folder = tmp_path / "whole" / "checkpoints"
    newest = max(folder.iterdir(), key=lambda p: int(p.name.split("-")[1]))
    for file in sorted(newest.iterdir()):
        file.unlink()
    newest.rmdir()
    again = fw.train(start, data, fw.MaskedLM(), output=tmp_path / "whole", resume=True, **options)
    assert [x["loss"] for x in again.history if "loss" in x] == losses
    assert torch.equal(fw.merge(start).get_input_embeddings().weight, fw.merge(model).get_input_embeddings().weight)


def test_predictions_fill_the_masks(model, minilm_tokenizer):
    fw.train(model, [{"text": "the sky is blue"}] * 16, fw.MaskedLM(rate=0.5), method=fw.Full(), steps=120, lr=1e-2,
             tokenizer=minilm_tokenizer)  # fmt: skip
    found = fw.predict(model, [{"text": "the sky is [MASK]"}, {"text": "the [MASK] is blue"}], fw.MaskedLM())
    assert [row["text"] for row in found] == ["the sky is blue"] * 2


def test_bad_input_is_named(stories_tokenizer):
    with pytest.raises(fw.InputError, match="no mask token"):
        fw.MaskedLM().encode_all(shaped(ROWS), stories_tokenizer, None)
    with pytest.raises(fw.InputError, match="share of hidden tokens"):
        fw.MaskedLM(rate=1.5)
