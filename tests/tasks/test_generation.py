"""Questions and texts: what stands in front of an answer, and a batch that writes what each row writes alone."""

import pytest

from featherweight.core.errors import InputError
from featherweight.data.types import Example, Turn
from featherweight.tasks.asking import answer_of, asked

PROMPTS = ["Once upon a time", "One day, a big dog named Max went to the", "Lily"]


def example(*turns, messages=()):
    return Example("f.jsonl:1", turns=tuple(Turn(text, trained) for text, trained in turns), messages=messages)


def test_a_question_is_all_before_the_last_answer():
    rounds = example(("q1 ", False), ("a1", True), ("q2 ", False), (" a2 ", True))
    assert [t.text for t in asked(rounds).turns] == ["q1 ", "a1", "q2 "]
    assert not any(t.trained for t in asked(rounds).turns)
    assert answer_of(rounds) == "a2"


def test_plain_and_unlabelled_text_are_questions_without_answer():
    for row in (example(("just text", True)), example(("q ", False))):
        assert [t.text for t in asked(row).turns] == [row.turns[0].text]
        assert answer_of(row) is None


def test_answer_of_a_conversation():
    talk = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": " ho "})
    assert answer_of(example(messages=talk)) == "ho"
    assert answer_of(example(messages=talk[:1])) is None


def test_prompts_end_before_the_last_answer():
    import torch

    from featherweight.tasks.generation import prompts

    batch = {
        "input_ids": torch.tensor([[1, 5, 6, 7, 8, 9], [1, 5, 6, 7, 0, 0], [1, 2, 3, 0, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3]),
        "labels": torch.tensor([[-100, 5, -100, -100, 8, 9], [-100, -100, 6, 7, -100, -100], [-100] * 6]),
    }
    assert prompts(batch) == [[1, 5, 6, 7], [1, 5], [1, 2, 3]]
    assert prompts({"input_ids": batch["input_ids"]})[0] == [1, 5, 6, 7, 8, 9]


def test_ask_is_the_front_of_the_training_row(stories_tokenizer):
    from featherweight.tasks import CausalLM

    row = example(("name[Eagle] || ", False), ("The Eagle is a pub.", True))
    whole = CausalLM().encode(row, stories_tokenizer, None)
    question = CausalLM().ask([row], stories_tokenizer, None)[0]
    trained = next(i for i, label in enumerate(whole.labels) if label != -100)
    assert question.input_ids == whole.input_ids[:trained]
    assert set(question.labels) == {-100}


def test_chat_question_opens_the_assistants_turn(stories_tokenizer):
    from copy import deepcopy

    from featherweight.tasks import CausalLM

    tokenizer = deepcopy(stories_tokenizer)
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant:{% endif %}"
    talk = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})
    made = [CausalLM().ask([example(messages=m)], tokenizer, None)[0].input_ids for m in (talk, talk[:1])]
    assert made[0] == made[1]
    assert tokenizer.decode(made[0]).strip() == "user: hi\nassistant:"
    assert CausalLM().ask([example(messages=talk)], tokenizer, 5)[0].input_ids == made[0][-5:]


def test_a_batch_writes_what_each_prompt_writes_alone(stories, stories_tokenizer):
    from featherweight.tasks.generation import continue_prompts

    ids = stories_tokenizer(PROMPTS)["input_ids"]
    together = continue_prompts(stories, ids, stories_tokenizer, 24)
    alone = [continue_prompts(stories, [row], stories_tokenizer, 24)[0] for row in ids]
    assert together == alone
    assert len(set(together)) == 3
    assert together[0].startswith(", there was a little girl named Lily")


def test_learned_positions_and_no_pad_token():
    """GPT-2 counts positions from the first real token, whatever stands in front of it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from featherweight.tasks.generation import continue_prompts

    class Numbers:
        pad_token_id = None
        eos_token_id = None

        def batch_decode(self, rows, skip_special_tokens):
            return [" ".join(map(str, row)) for row in rows]

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=60, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    rows = [[5, 6, 7, 8, 9], [11, 12], [20]]
    together = continue_prompts(model, rows, Numbers(), 5)
    assert together == [continue_prompts(model, [row], Numbers(), 5)[0] for row in rows]
    assert len(continue_prompts(model, [[5] * 10], Numbers(), 5)[0].split()) == 2
    for bad in ([[5] * 12], [[5], []]):
        with pytest.raises(InputError, match="cannot generate; expected 1 to 11 tokens"):
            continue_prompts(model, bad, Numbers(), 5)


def test_modes_come_back(stories):
    from featherweight.tasks.modes import evaluating

    stories.model.layers[1].train()
    modes = [m.training for m in stories.modules()]
    with evaluating(stories):
        assert not any(m.training for m in stories.modules())
    assert [m.training for m in stories.modules()] == modes
    assert any(modes)
    stories.eval()


def test_the_head_gets_the_last_states_in_one_piece():
    import torch
    from support.models import tiny

    from featherweight.tasks.generation import run

    model, seen = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda _, args, __: seen.append((args[0].shape, args[0].stride())))
    for rows in (3, 1):  # torch calls a slice of one row contiguous, and copies the head for it all the same
        seen.clear()
        ids = torch.randint(3, 99, (rows, 5))
        run(model, ids, torch.ones_like(ids), 0, 4, {"eos_token_id": None})
        assert len(seen) == 4
        assert all(strides == (shape[1] * shape[2], shape[2], 1) for shape, strides in seen)
    assert len(model.lm_head._forward_pre_hooks) == 0
