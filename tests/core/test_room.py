"""Learned positions: virtual tokens take of them, and what is too much is said with its numbers before torch fails."""

from typing import Any

import pytest
import torch
from support.models import tiny
from support.words import word_tokenizer

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.room import places, taken
from featherweight.tasks.check import check_length, position_limit
from featherweight.tasks.generation import continue_prompts

LEARNED = {"gpt2": 64, "bert": 64, "opt": 64, "distilbert": 64}
COMPUTED = ["llama", "t5", "bloom", "falcon"]


@pytest.mark.parametrize("arch", LEARNED)
def test_a_table_of_positions_is_found_and_virtual_tokens_take_of_it(arch: str) -> None:
    model = tiny(arch)
    table = next(m for n, m in model.named_modules() if n.endswith(("wpe", "position_embeddings", "embed_positions")))
    limit = position_limit(model)
    assert limit == places(model)
    assert limit == table.num_embeddings - (2 if arch == "opt" else 0)
    fw.attach(model, fw.Prompt(tokens=limit - 5), "a")
    fw.attach(model, fw.Prompt(tokens=3), "b")
    assert (taken(model), position_limit(model)) == (3, limit - 3)
    fw.switch(model, ("a", "b"))
    assert position_limit(model) == 2
    fw.switch(model, rows=["a", "b", None])
    assert position_limit(model) == 5
    fw.switch(model, None)
    assert position_limit(model) == limit


@pytest.mark.parametrize("arch", COMPUTED)
def test_computed_positions_have_no_such_end(arch: str) -> None:
    model = tiny(arch)
    before = position_limit(model)
    fw.attach(model, fw.Prompt(tokens=3))
    assert (taken(model), position_limit(model)) == (0, before)
    length = 70
    ids = torch.arange(length)[None] % 90
    given = {"decoder_input_ids": ids[:, :3]} if arch == "t5" else {}
    assert model(input_ids=ids, **given).logits.isfinite().all()


@pytest.mark.parametrize("method", [fw.Prompt(tokens=40), fw.PTuning(template=(40,)), fw.Prefix(tokens=40)], ids=repr)
def test_a_row_that_does_not_fit_is_an_error_with_its_numbers(method: Any) -> None:
    model = fw.attach(tiny("gpt2"), method)
    limit = places(tiny("gpt2"))
    assert limit is not None
    room = limit - 40
    ids = torch.arange(room + 1)[None] % 90
    model(input_ids=ids[:, :room])
    with pytest.raises(InputError, match=rf"at most {limit}.*{limit + 1}: {room + 1} of the row and 40 virtual"):
        model(input_ids=ids)
    cache = model(input_ids=ids[:, :room], use_cache=True).past_key_values
    with pytest.raises(InputError, match=rf"{room + 1} of the row and 40 virtual"):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_pads_take_no_position() -> None:
    model = fw.attach(tiny("gpt2"), fw.Prompt(tokens=40)).eval()
    ids = torch.arange(30)[None] % 90
    mask = torch.ones_like(ids)
    mask[:, :10] = 0
    padded = model(input_ids=ids, attention_mask=mask).logits[:, 10:]
    torch.testing.assert_close(padded, model(input_ids=ids[:, 10:]).logits, atol=1e-5, rtol=1e-4)


def test_a_length_is_refused_before_anything_runs_and_so_are_prompts_that_leave_nothing() -> None:
    model = tiny("gpt2")
    limit = places(model)
    assert limit is not None
    fw.attach(model, fw.Prompt(tokens=40))
    assert check_length(model, None) == limit - 40
    with pytest.raises(
        InputError, match=rf"1 to {limit - 40}: {limit} positions less 40 virtual tokens.*fewer virtual"
    ):
        check_length(model, limit)
    fw.attach(model, fw.Prompt(tokens=limit), "long")
    with pytest.raises(InputError, match=rf"leave no position.*fewer than the {limit} positions.*{limit}"):
        check_length(model, None)


def test_a_prompt_that_leaves_no_room_to_write_says_what_takes_it() -> None:
    model = fw.attach(tiny("gpt2"), fw.Prompt(tokens=40))
    limit = places(model)
    assert limit is not None
    room, words = limit - 40, word_tokenizer(["a"])
    assert isinstance(continue_prompts(model, [[3] * (room - 1)], words, 5)[0], str)
    with pytest.raises(InputError, match=rf"1 to {room - 1} tokens: {limit} positions less 40 virtual.*{room}"):
        continue_prompts(model, [[3] * room], words, 5)


def test_training_cuts_rows_to_what_a_prompt_leaves_and_evaluating_does_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Known before the first step, of a method that is attached only then."""
    words = word_tokenizer(["a", "cat", "and", "dog"])
    rows = [{"text": "a cat and a dog " * 40, "label": "yes"}, {"text": "a dog", "label": "no"}] * 2
    options: dict[str, Any] = {"tokenizer": words, "method": fw.Prompt(tokens=40), "steps": 1, "batch": 2}
    model = tiny("bert")
    limit = places(model)
    assert limit is not None
    options["task"] = fw.Classification(labels=("maybe", "no", "yes"))
    with pytest.raises(InputError, match=rf"1 to {limit - 40}: {limit} positions less 40 virtual tokens"):
        fw.train(model, rows, length=limit, **options)
    assert not taken(model), "nothing was attached"
    fw.train(model, rows, **options)
    assert f"2 of 4 rows are longer than {limit - 40} tokens and are cut" in capsys.readouterr().err
    assert 0 <= fw.evaluate(model, rows, tokenizer=words)["accuracy"] <= 1
