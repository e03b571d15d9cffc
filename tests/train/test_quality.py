"""Claims about learning, on real data."""

import csv

import featherweight as fw


def test_lora_learns_e2e_nlg_in_sixty_steps(data_dir):
    """stories260k, LoRA on all projections, 60 batches of 4 rows: the loss falls from over 4 nats to below 2."""

    def rows(name, most):
        with (data_dir / "e2e_nlg" / name).open(newline="", encoding="utf-8") as file:
            return [
                {"prompt": r["mr"] + " || ", "completion": r["ref"]}
                for r, _ in zip(csv.DictReader(file), range(most), strict=False)
            ]

    method = fw.LoRA(rank=8, alpha=16, targets="linear")
    base = str(data_dir / "stories260k/hf")
    run = fw.train(base, rows("trainset.csv", 240), method=method, steps=60, lr=1e-2, batch=4, log=5)
    losses = [r["loss"] for r in run.history]
    assert losses[0] > 3.3
    assert losses[-1] < 2.0
