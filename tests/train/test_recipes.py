"""Recipes: the same as their settings put together by hand, below everything that is given; started from an adapter."""

import json
import tomllib

import pytest
import torch
from safetensors.torch import load_file

import featherweight as fw
from featherweight.core.errors import InputError
from featherweight.core.state import state
from featherweight.tasks import task_for
from featherweight.tasks.language import head_of
from featherweight.train import run as verb
from featherweight.train.loop import Loop
from featherweight.train.recipes import RunRecipe, recipe_of, under
from featherweight.train.schedule import factor, warmup_steps
from featherweight.train.settings import settings

WORDS = ("good", "bad", "warm", "cold", "fast", "slow")
ROWS = [{"prompt": f"the {WORDS[i % 6]} {WORDS[(i * 5 + 1) % 6]} pub is", "choices": ["good", "bad"], "label": i % 2}
        for i in range(8)]  # fmt: skip


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(verb, "curve", lambda *_: [])


@pytest.fixture
def t5(tokenizer):
    """t5() -> a tiny encoder-decoder, always the same."""
    import transformers as t

    def build():
        with torch.random.fork_rng():
            torch.manual_seed(5)
            config = t.T5Config(vocab_size=23, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, pad_token_id=0,
                                eos_token_id=1, decoder_start_token_id=0, dropout_rate=0.0)  # fmt: skip
            made = t.T5ForConditionalGeneration(config)
            for parameter in made.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
        return made

    return build


@pytest.fixture
def folder(t5, tokenizer, tmp_path):
    """The same on disk, with rows."""
    place = tmp_path / "t5"
    t5().save_pretrained(place)
    tokenizer.save_pretrained(place)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return place


def test_the_published_numbers():
    """Liu et al. 2022, section 3.3: 1,000 steps of 8 rows, Adafactor at 3e-3, linear decay after 60 warm-up steps."""
    chosen = settings(under(fw.TFew(), {}))
    assert (chosen.steps, chosen.batch, chosen.optimizer, chosen.lr) == (1000, 8, "adafactor", 3e-3)
    assert (chosen.schedule, warmup_steps(chosen.warmup, 1000), chosen.decay) == ("linear", 60, 0.0)
    assert factor("linear", 30, 1000, 60) == 0.5
    assert factor("linear", 61, 1000, 60) == 1.0
    assert fw.TFew().method == fw.IA3()
    task = fw.TFew().task(None)
    assert (task.language, task.unlikelihood, task.normalized, task.per_token) == (1.0, 1.0, 1.0, True)


def test_the_word_is_the_settings_put_together_by_hand(t5, tokenizer):
    one, two = t5(), t5()
    run = fw.train(one, ROWS, recipe="tfew", steps=4, tokenizer=tokenizer, log=1)
    given = {"optimizer": "adafactor", "lr": 3e-3, "batch": 8, "schedule": "linear", "warmup": 60, "decay": 0.0}
    by_hand = fw.train(two, ROWS, fw.Seq2SeqChoices(), method=fw.IA3(), clip=1.0, steps=4, tokenizer=tokenizer, log=1,
                       **given)  # fmt: skip
    ours, theirs = state(one, "default"), state(two, "default")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert [line["loss"] for line in run.history] == [line["loss"] for line in by_hand.history]


def test_what_is_given_goes_over_the_recipe(t5, tokenizer, folder, tmp_path, capsys):
    out = tmp_path / "out"
    fw.train(str(folder), folder / "rows.jsonl", fw.Seq2SeqChoices(unlikelihood=0.0), recipe="tfew", epochs=2, lr=1e-2,
             method=fw.LoRA(rank=2), output=out)  # fmt: skip
    record = tomllib.loads((out / "run.toml").read_text())
    assert (record["recipe"], record["epochs"], record["lr"]) == ("tfew", 2.0, 1e-2)
    assert (record["optimizer"], record["batch"], record["warmup"]) == ("adafactor", 8, 60)
    assert "steps" not in record
    assert record["task"] == {"type": "seq2seqchoices", "unlikelihood": 0.0}
    assert record["method"] == {"type": "lora", "rank": 2}
    told = capsys.readouterr().err
    assert "recipe tfew (Liu et al. 2022): IA3(), Seq2SeqChoices(), optimizer adafactor, lr 0.003" in told
    assert "instead of these: lr 0.01, epochs 2.0, Seq2SeqChoices(unlikelihood=0.0), LoRA(rank=2)" in told
    assert "| recipe | tfew |" in (out / "README.md").read_text()
    assert under(fw.TFew(), {"steps": 5})["steps"] == 5
    assert under(None, {"steps": 5}) == {"steps": 5}


def test_a_record_runs_again(folder, tmp_path):
    """run.toml alone makes the same adapter."""
    from featherweight.cli.main import main

    first = ["train", "--model", folder, "--data", folder / "rows.jsonl", "--recipe", "tfew", "--steps", 2]
    assert main([*map(str, [*first, "--output", tmp_path / "a"])]) == 0
    assert main(["train", str(tmp_path / "a" / "run.toml"), "--output", str(tmp_path / "b")]) == 0
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize(
    ("config", "head", "choices"),
    [
        ({"is_encoder_decoder": True}, "AutoModelForSeq2SeqLM", "Seq2SeqChoices"),
        ({"is_encoder_decoder": False, "architectures": ["LlamaForCausalLM"]}, "AutoModelForCausalLM", "Choices"),
        ({"is_encoder_decoder": False, "architectures": None}, "AutoModelForCausalLM", "Choices"),
    ],
)
def test_the_task_follows_the_architecture(config, head, choices):
    from types import SimpleNamespace

    made = SimpleNamespace(**config)
    assert head_of(made) == head
    assert type(fw.TFew().task(made)).__name__ == choices
    assert type(task_for("completion", made)).__name__ == ("Seq2Seq" if "Seq2Seq" in head else "CausalLM")
    assert type(task_for("classification", made)).__name__ == "Classification"


def test_masked_language_models_are_known_by_their_head():
    from types import SimpleNamespace

    masked = SimpleNamespace(is_encoder_decoder=False, architectures=["BertForMaskedLM"])
    assert head_of(masked) == "AutoModelForMaskedLM"
    assert task_for("choices", masked) == fw.TFew().task(masked) == fw.MaskedChoices()


def test_the_model_decides_the_task_without_a_recipe_too(t5, tokenizer):
    model = t5()
    fw.train(model, ROWS, method=fw.IA3(), steps=1, tokenizer=tokenizer)
    assert model.task == fw.Seq2SeqChoices()
    assert fw.evaluate(t5(), ROWS, tokenizer=tokenizer).rows == 8


def test_adapters_that_are_there_stay_the_ones_that_train(t5, tokenizer, capsys):
    model = fw.attach(t5(), fw.LoRA(rank=2))
    fw.train(model, ROWS, recipe="tfew", steps=1, tokenizer=tokenizer)
    assert {key.rsplit(".", 2)[-2] for key in state(model, "default")} == {"lora_A", "lora_B"}
    assert "the adapter that is there" in capsys.readouterr().err


def test_step_0_of_a_run_that_starts_from_an_adapter_is_that_adapter(folder, tmp_path, monkeypatch):
    """(IA)³ trained on one thing and gone on with on another: same tensors, and the loss that evaluation finds."""
    rows = folder / "rows.jsonl"
    fw.train(str(folder), rows, recipe="tfew", steps=6, lr=0.5, warmup=0, output=tmp_path / "first")
    saved = load_file(tmp_path / "first" / "adapter_model.safetensors")
    assert any(float((tensor - 1).abs().max()) > 0.1 for tensor in saved.values())
    before = fw.evaluate(fw.load_model(tmp_path / "first"), rows)
    seen, real = {}, Loop.run

    def started(self):
        seen.update({key: tensor.clone() for key, tensor in state(self.model, "default").items()})
        return real(self)

    monkeypatch.setattr(Loop, "run", started)
    run = fw.train(None, rows, start=tmp_path / "first", recipe="tfew", steps=2, log=1, output=tmp_path / "second")
    first = state(fw.load_model(tmp_path / "first"), "default")
    assert seen.keys() == first.keys()
    assert all(torch.equal(tensor, first[key]) for key, tensor in seen.items())
    assert run.history[0]["loss"] == pytest.approx(before["loss"], abs=1e-6)  # all 8 rows are the first batch
    record = tomllib.loads((tmp_path / "second" / "run.toml").read_text())
    assert record["from"] == str(tmp_path / "first")
    assert "method" not in record


def test_templates_word_the_rows_and_are_on_record(folder, tmp_path):
    rows = [{"sentence": f"the pub is {word}", "label": i % 2} for i, word in enumerate(WORDS)]
    (folder / "sst2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"recipe": "tfew", "steps": 1, "template": "sst2/review"}
    fw.train(str(folder), folder / "sst2.jsonl", output=tmp_path / "out", **given)
    assert tomllib.loads((tmp_path / "out" / "run.toml").read_text())["template"] == "sst2/review"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "sst2.jsonl: 6 training and 0 dev rows" in card
    assert "| template | sst2/review |" in card


def test_columns_stand_for_the_fields_of_templates(folder, tmp_path):
    """The same run as of a file whose columns have the templates' names, and on record as given."""
    rows = [{"review": f"the pub is {word}", "stars": i % 2} for i, word in enumerate(WORDS)]
    named = [{"sentence": row["review"], "label": row["stars"]} for row in rows]
    for name, made in (("theirs", rows), ("ours", named)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    given = {"recipe": "tfew", "steps": 2, "template": "sst2/review"}
    columns = {"sentence": "review", "label": "stars"}
    theirs = fw.train(str(folder), tmp_path / "theirs.jsonl", output=tmp_path / "out", columns=columns, **given)
    ours = fw.train(str(folder), tmp_path / "ours.jsonl", **given)
    assert [r["loss"] for r in theirs.history] == [r["loss"] for r in ours.history]
    assert tomllib.loads((tmp_path / "out" / "run.toml").read_text())["columns"] == columns
    wrong = {"text": "review", "label": "star"}
    with pytest.raises(InputError) as caught:
        fw.train(str(folder), tmp_path / "theirs.jsonl", columns=wrong, **given)
    said = [str(p) for p in caught.value.problems]
    assert said[0] == "columns.label: no such column; got 'star'; did you mean 'stars'?"
    assert said[1].startswith("columns.text: the templates have no such field; choose from sentence, label")


def test_rows_without_choices_are_refused(t5, tokenizer):
    """One problem, not one a row."""
    with pytest.raises(InputError, match=r"data:1: rows without choices.*say which templates") as error:
        fw.train(t5(), [{"text": "good", "label": "a"}] * 4, recipe="tfew", tokenizer=tokenizer)
    assert len(error.value.problems) == 1


def test_names_of_recipes():
    assert recipe_of(None) is None
    assert recipe_of("TFew") == recipe_of(fw.TFew()) == fw.TFew()
    assert set(RunRecipe.known) == {"tfew"}
    with pytest.raises(InputError, match="unknown recipe; got 'tfw'; did you mean 'tfew'"):
        recipe_of("tfw")
