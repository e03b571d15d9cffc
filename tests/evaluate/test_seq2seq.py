"""An encoder-decoder through the same verbs: loss, generated texts, questions without answers."""

import pytest

from featherweight.core.errors import InputError
from featherweight.data.types import Example, Turn
from featherweight.evaluate import evaluate, predict
from featherweight.tasks import Seq2Seq


@pytest.fixture(scope="module")
def t5():
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0,
                      decoder_start_token_id=0, eos_token_id=2)  # fmt: skip
    return T5ForConditionalGeneration(config)


PAIRS = [("name[Eagle]", "The Eagle."), ("name[The Vaults], near[Zizzi]", "The Vaults is near Zizzi."), ("x", "y")]
ROWS = [Example(f"a:{i}", turns=(Turn(a, False), Turn(b, True))) for i, (a, b) in enumerate(PAIRS)]


def test_loss_equals_one_row_at_a_time(t5, stories_tokenizer):
    import torch

    scores = evaluate(t5, ROWS, Seq2Seq(), tokenizer=stories_tokenizer, batch=2)
    t5.eval()
    total = units = 0
    for row in Seq2Seq().encode_all(ROWS, stories_tokenizer, None):
        assert row.labels[-1] == 2
        with torch.no_grad():
            own = t5(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss
        total, units = total + own.item() * len(row.labels), units + len(row.labels)
    assert scores.loss == pytest.approx(total / units, abs=1e-6)
    t5.train()


def test_texts_do_not_depend_on_the_batch(t5, stories_tokenizer):
    task = Seq2Seq(max_new_tokens=6)
    together = predict(t5, [a for a, _ in PAIRS], task, tokenizer=stories_tokenizer)
    assert together == [predict(t5, [a], task, tokenizer=stories_tokenizer)[0] for a, _ in PAIRS]
    assert all(set(answer) == {"text"} for answer in together)
    assert t5.training


def test_text_metrics(t5, stories_tokenizer):
    scores = evaluate(t5, ROWS, Seq2Seq(max_new_tokens=4), tokenizer=stories_tokenizer, metrics=("loss", "rouge"))
    assert {"perplexity", "rouge1", "rouge2", "rougeL"} == set(scores.values)


def test_text_alone_is_nothing_to_transform(t5, stories_tokenizer):
    rows = [*ROWS, *(Example(f"a:{i}", "x", turns=(Turn("x", True),)) for i in (8, 9))]
    with pytest.raises(InputError, match=r"a:8: no input text.*\na:9: no input text"):
        evaluate(t5, rows, Seq2Seq(), tokenizer=stories_tokenizer)
