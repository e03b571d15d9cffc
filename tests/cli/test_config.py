"""run.toml and flags: one spelling, one result, every problem at once with its place."""

import random

import pytest

from featherweight.cli.config import read_config
from featherweight.cli.schema import methods, noun_keys, run_keys
from featherweight.core.errors import InputError

BASE = ["--model", "m", "--data", "d.csv"]


def problems(*argv):
    with pytest.raises(InputError) as caught:
        read_config([*map(str, argv)])
    return [str(p) for p in caught.value.problems]


def test_file_first_flags_over_it(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\ndata = "d.csv"\nlr = 1e-3\nbatch = 4\n[method]\ntype = "lora"\nrank = 4\nalpha = 8\n')
    config = read_config([str(file), "--method.rank", "16", "--lr", "5e-4", "--checkpoint-every", "7"])
    assert (config.method.rank, config.method.alpha) == (16, 8)
    assert config.settings == {"lr": 5e-4, "batch": 4, "checkpoint_every": 7}
    assert config.origins["batch"] == "run.toml:4:batch"
    assert config.origins["lr"] == "--lr"


def test_dashes_underscores_equals_and_switches():
    a = read_config([*BASE, "--eval_every=5", "--resume", "--no-buckets"]).settings
    b = read_config([*BASE, "--eval-every", "5", "--resume", "true", "--buckets", "false"]).settings
    assert a == b == {"eval_every": 5, "resume": True, "buckets": False}


def test_method_values_are_read_like_toml():
    config = read_config([*BASE, "--method", "lora", "--method.targets", "query,value", "--method.rank-pattern.q", "4"])
    assert config.method.targets == ("query", "value")
    assert dict(config.method.rank_pattern) == {"q": 4}
    assert read_config([*BASE, "--method.targets", "attention"]).method.targets == "attention"


def test_another_method_drops_the_options_of_the_files(tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\ndata = "d"\n[method]\ntype = "lora"\nrank = 4\n')
    assert type(read_config([str(tmp_path / "run.toml"), "--method", "ia3"]).method).__name__ == "IA3"


def test_columns_in_all_their_spellings(tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\ndata = "d"\n[columns]\ntext = "review"\nlabel = "stars"\n')
    wanted = {"text": "review", "label": "stars"}
    assert read_config([str(tmp_path / "run.toml")]).columns == wanted
    assert read_config([*BASE, "--columns", "text=review,label=stars"]).columns == wanted
    assert read_config([*BASE, "--columns.text", "review", "--columns.label", "stars"]).columns == wanted


def test_everything_wrong_is_said_at_once_with_its_line(tmp_path):
    (tmp_path / "run.toml").write_text(
        'model = "m"\nbacth = 4\nepochs = "three"\n\n[method]\ntype = "lora"\nrnak = 8\nalpha = [1]\n'
    )
    found = problems(tmp_path / "run.toml", "--lr", "fast", "--sede", "1")
    text = "\n".join(found)
    assert "run.toml:2:bacth: unknown key; did you mean 'batch'?" in found
    assert "run.toml:7:method.rnak: unknown key; did you mean 'rank'?" in found
    assert "--sede: unknown key; did you mean '--seed'?" in found
    assert "run.toml:3:epochs: wrong value; expected" in text
    assert "run.toml:8:method.alpha: wrong value" in text
    assert "--lr: wrong value; expected number; got 'fast'" in found
    assert "data is needed" in text
    assert len(found) == 7


def test_numbers_in_quotes_are_not_numbers(tmp_path):
    (tmp_path / "run.toml").write_text('model = "m"\ndata = "d"\nbatch = "4"\n')
    assert problems(tmp_path / "run.toml") == [
        'run.toml:3:batch: wrong value; expected whole number, without quotes; got "4"'
    ]


def test_a_misspelt_model_is_one_mistake():
    assert problems("--modle", "m", "--data", "d") == ["--modle: unknown key; did you mean '--model'?"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'model = "m\n', "run.toml:1"),
        (b"a = 1\nmodel = \xff\n", "run.toml:2"),
        (b"model = 1\nmodel = 2\n", "run.toml:2"),
    ],
)
def test_files_that_are_not_toml_name_the_line(tmp_path, content, place):
    (tmp_path / "run.toml").write_bytes(content)
    assert any(p.startswith(place) for p in problems(tmp_path / "run.toml"))


def test_bom_and_crlf_are_fine(tmp_path):
    (tmp_path / "run.toml").write_bytes(b'\xef\xbb\xbfmodel = "m"\r\ndata = "d"\r\nsteps = 3\r\n')
    assert read_config([str(tmp_path / "run.toml")]).origins["steps"] == "run.toml:3:steps"


def test_missing_file_and_stray_words():
    assert "No such file" in problems("nowhere.toml")[0]
    assert (
        "a word too many; got 'b.toml'" in problems("nowhere.toml", "b.toml")[0] + problems("nowhere.toml", "b.toml")[1]
    )
    assert "--lr: a value is missing" in problems("--lr", *BASE)
    assert "epochs or steps" in problems(*BASE, "--epochs", 1, "--steps", 2)[0]


def typos(word, n=5):
    """`n` different words one edit away: a letter dropped, doubled, replaced, or two swapped."""
    draw, found = random.Random(word), set()
    for _ in range(1000):
        i = draw.randrange(len(word))
        letter = draw.choice("abcdefghijklmnopqrstuvwxyz")
        edits = [word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:], word[:i] + letter + word[i + 1 :]]
        edits += [word[:i] + word[i + 1] + word[i] + word[i + 2 :]] if i + 1 < len(word) else []
        made = draw.choice(edits)
        if made and made != word and made[0] != "_":
            found.add(made)
        if len(found) == n:
            break
    return sorted(found)


def test_five_typos_of_every_key_are_put_right():
    schema = {f"--{name.replace('_', '-')}": name.replace("_", "-") for name in run_keys()}
    methods_keys = [(kind, name) for kind, noun in methods().items() for name in noun_keys(noun)]
    right = total = 0
    for key in schema.values():
        for typo in typos(key):
            if f"--{typo}" in schema or typo.startswith("no-"):
                continue
            total += 1
            right += any(f"did you mean '--{key}'?" in p for p in problems(*BASE, f"--{typo}", "1"))
    for kind, key in methods_keys:
        for typo in typos(key):
            total += 1
            found = problems(*BASE, "--method", kind, f"--method.{typo}", "1")
            right += any(f"did you mean '{key}'?" in p for p in found)
    print(f"{right} of {total} typos put right")
    assert total > 200
    assert right / total >= 0.95


def test_adapters_to_work_over_as_pairs_and_as_a_table(tmp_path):
    line = ["--model", "m", "--data", "d.csv", "--method", "fusion", "--method.of", "my-a,b"]
    assert read_config([*line, "--over", "my-a=out/a,b=out/b"]).over == {"my-a": "out/a", "b": "out/b"}
    file = tmp_path / "run.toml"
    file.write_text('model = "m"\ndata = "d.csv"\n\n[over]\nmy-a = "out/a"\nb = "out/b"\n')
    assert read_config([str(file), "--over.b", "out/c"]).over == {"my-a": "out/a", "b": "out/c"}
    with pytest.raises(InputError, match=r"--over: not a pair; expected ours=theirs; got 'a'"):
        read_config([*line, "--over", "a"])
