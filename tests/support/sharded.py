"""Run under torchrun with two gloo ranks: an attached model sharded by FSDP2 must do what it does on one process."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    from torch.distributed.fsdp import fully_shard

    import featherweight as fw
    from support.models import disturb, inputs, logits, tiny

    dist.init_process_group("gloo")
    whole, sharded = tiny("llama"), tiny("llama")
    for model in (whole, sharded):
        torch.manual_seed(0)
        fw.attach(model, fw.LoRA(rank=2, targets="linear"))
        disturb(model)
    before = logits(whole, inputs("llama"))
    for block in sharded.model.layers:
        fully_shard(block)
    fully_shard(sharded)
    torch.testing.assert_close(logits(sharded, inputs("llama")), before, atol=1e-6, rtol=1e-6)
    for model in (whole, sharded):
        model(**inputs("llama")).logits.square().mean().backward()
    ours = {k: p.grad for k, p in whole.named_parameters() if p.requires_grad}
    theirs = {k: p.grad.full_tensor() for k, p in sharded.named_parameters() if p.requires_grad}
    assert list(ours) == list(theirs)
    for k, g in ours.items():
        torch.testing.assert_close(theirs[k], g, atol=1e-6, rtol=1e-5)
    for verb in (lambda: fw.detach(sharded), lambda: fw.merge(sharded), lambda: fw.attach(sharded, fw.IA3(), "b")):
        with pytest.raises(fw.InputError, match="fully_shard"):
            verb()
    with fw.switch(sharded, None):
        torch.testing.assert_close(
            logits(sharded, inputs("llama")), logits(tiny("llama"), inputs("llama")), atol=1e-6, rtol=1e-6
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
