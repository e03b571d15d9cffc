"""Scoring the choices of a text with what is computed of the text shared, against rows of the text with each choice.

    python benchmarks/shared_context.py                about 2 minutes on 2 cores; goes on where it stopped
    python benchmarks/shared_context.py --only gpt2    cells whose name contains a word
    python benchmarks/shared_context.py --fresh        measure again

Four texts with 2, 4 or 8 choices of 4 tokens each and an end token, scored without gradients in one process:

shared          `Choices` and `Seq2SeqChoices` as they are: the text once, then its choices
pairs           every text with each of its choices in one batch, logits of the choices' tokens alone
transformers    the plain way: the same batch through the model's own forward, logits of all positions; for
                encoder-decoders the encoder reads the text once for each choice too

All three give the same log-likelihoods (checked first). stories260k is real; the shapes of GPT-2 and T5 are smaller
ones with their vocabularies, random weights. With k choices of n tokens the shared way reads s + k (n - 1) tokens
instead of k (s + n - 1): below k times fewer, so that 2 choices stay below a factor of 2 against `pairs` by arithmetic.
"""

import argparse
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import _paired
import _real
import torch
from torch import Tensor

ROWS, TOKENS = 4, 5  # texts; tokens of a choice, its end among them
SHAPES = ("stories260k", "gpt2", "t5")
CONTEXTS, CHOICES = (256, 480), (2, 4, 8)
ROUNDS = 3


def model_of(shape: str) -> Any:
    import transformers as tf

    torch.manual_seed(0)
    if shape == "stories260k":
        return tf.AutoModelForCausalLM.from_pretrained(_real.stories()).eval()
    if shape == "gpt2":
        return tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=256, n_layer=4, n_head=4)).eval()
    config = tf.T5Config(d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4, decoder_start_token_id=0)
    return tf.T5ForConditionalGeneration(config).eval()


def batch_of(vocabulary: int, context: int, choices: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, vocabulary, (ROWS, context), generator=draw)
    answers = torch.randint(3, vocabulary, (ROWS, choices, TOKENS), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "choices": answers}


def contenders(shape: str, model: Any, batch: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
    import featherweight as fw
    from featherweight.tasks.choice_losses import token_log_probabilities
    from featherweight.tasks.shared_context import joined

    task = fw.Seq2SeqChoices() if shape == "t5" else fw.Choices()
    ids, answers = batch["input_ids"], batch["choices"]
    targets = answers.flatten(0, 1)  # (pairs, tokens)
    rows = torch.arange(ROWS).repeat_interleave(answers.shape[1])
    mask = torch.ones_like(ids)

    def shared() -> Tensor:
        log_p, _, real = task.tokens(model, batch)
        return task.scores(log_p, real)

    def pairs() -> Tensor:
        if shape == "t5":
            logits = model(input_ids=ids[rows], attention_mask=mask[rows], labels=targets).logits
        else:
            logits = joined(model, ids, mask, rows, targets)
        return token_log_probabilities(logits, targets)[0].mean(1).view(ROWS, -1)

    def plain() -> Tensor:
        if shape == "t5":
            logits = model(input_ids=ids[rows], attention_mask=mask[rows], labels=targets).logits
        else:
            logits = model(input_ids=torch.cat([ids[rows], targets], 1)).logits[:, -TOKENS - 1 : -1]
        return logits.log_softmax(-1).gather(-1, targets[..., None]).mean((1, 2)).view(ROWS, -1)

    ways = {"shared": shared, "pairs": pairs, "transformers": plain}
    if shape == "t5":
        del ways["pairs"]  # a decoder's logits are of the choices alone already: the same thing
    return ways


def measure(shape: str, context: int, choices: int) -> dict[str, Any]:
    model = model_of(shape)
    ways = contenders(shape, model, batch_of(model.config.vocab_size, context, choices))
    with torch.inference_mode():
        found = {name: way() for name, way in ways.items()}
        for name, scores in found.items():
            if (scores - found["shared"]).abs().max() > 1e-4:
                raise RuntimeError(f"{shape}: {name} scores something else")
        return _paired.compare(_paired.paired(ways, ROUNDS, warmup=0), ours="shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    _paired.threads()
    cells = {} if options.fresh else _paired.load("shared_context").get("cells", {})
    for shape, context, choices in itertools.product(SHAPES, CONTEXTS, CHOICES):
        name = f"{shape}, {context} tokens, {choices} choices"
        if options.only not in name or name in cells:
            continue
        cells[name] = measure(shape, context, choices)
        shown = {k: round(1 / v, 2) for k, v in cells[name].items() if k.startswith("ratio") and "q" not in k}
        print(name, shown, flush=True)
        _paired.write("shared_context", {"machine": _paired.machine(), "cells": cells})


if __name__ == "__main__":
    main()
