"""A tiny encoder-decoder and small folders of tasks, laid out as FewGLUE, RAFT and T-Few have theirs."""

import json

WORDS = (
    "yes no true false maybe undecided a complaint something else not good bad rain sun wet dry cat dog sleeps runs "
    "because so it was the is are in on at train late thanks please never always"
)
RTE = [("rain on the cat", "wet", 0), ("sun on the dog", "wet", 1), ("rain at the train", "wet cat", 0),
       ("the dog sleeps", "the cat runs", 1)]  # fmt: skip


def tiny_t5(folder):
    """A tiny encoder-decoder on disk whose tokenizer knows the templates' answers."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = ["<pad>", "</s>", "<unk>", *WORDS.split()]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    t.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>",
                              unk_token="<unk>").save_pretrained(folder)  # fmt: skip
    torch.manual_seed(3)
    config = t.T5Config(vocab_size=len(names), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=0,
                        eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0)  # fmt: skip
    model = t.T5ForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def entailment(n, names=("entailment", "not_entailment")):
    return [{"premise": f"{p} {i // 4}", "hypothesis": h, "label": names[label] if names else label, "idx": i}
            for i in range(n) for p, h, label in [RTE[i % 4]]]  # fmt: skip


def fewglue(home):
    """RTE and COPA as FewGLUE has them."""
    write(home / "RTE" / "train.jsonl", entailment(8))
    write(home / "RTE" / "val.jsonl", entailment(12))
    asked = {"premise": "the cat sleeps.", "choice1": "it was dry", "choice2": "the dog runs"}
    copa = [asked | {"question": q, "label": i}
            for i, q in enumerate(("cause", "effect"))]  # fmt: skip
    write(home / "COPA" / "train.jsonl", copa * 4)
    write(home / "COPA" / "val.jsonl", copa * 3)
    return home


TWEETS = [f"the train is late {i}" if i % 3 else f"thanks it was good {i}" for i in range(12)]


def raft(place):
    """One of RAFT's tasks, with rows to submit."""
    home = place / "twitter_complaints"
    home.mkdir(parents=True)
    rows = [f"{text},{'complaint' if i % 3 else 'no complaint'},{i}" for i, text in enumerate(TWEETS)]
    (home / "train.csv").write_text("Tweet text,Label,ID\n" + "\n".join(rows) + "\n")
    (home / "test_unlabeled.csv").write_text("Tweet text,Label,ID\nlate again,Unlabeled,50\nthe sun,Unlabeled,51\n")
    classes = {"name": "twitter_complaints", "data_columns": ["Tweet text", "ID"],
               "label_columns": {"Label": ["complaint", "no complaint"]}}  # fmt: skip
    (home / "task.json").write_text(json.dumps(classes))
    return place


def draws(home):
    """T-Few's draws of RTE: two seeds that share two rows."""
    rows = [{**row, "idx": i} for i, row in enumerate(entailment(10, names=None))]
    write(home / "rte" / "32_shot" / "0_seed.jsonl", rows[:6])
    write(home / "rte" / "32_shot" / "42_seed.jsonl", [{**row, "idx": 90} for row in rows[4:]])
    return home
