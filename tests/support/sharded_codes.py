"""Run under torchrun with two gloo ranks: FSDP2 over a quantized model replicates its codes and shards its adapters."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent.parent))


def main() -> None:
    from torch.distributed.fsdp import fully_shard

    import featherweight as fw
    from support.codes import quantized_modules, with_codes
    from support.models import disturb, inputs, logits, tiny

    dist.init_process_group("gloo")
    whole, sharded = with_codes(tiny("llama")), with_codes(tiny("llama"))
    for model in (whole, sharded):
        torch.manual_seed(0)
        fw.attach(model, fw.LoRA(rank=2, targets="linear"))
        disturb(model)
    codes = {p: m.packed["codes"].clone() for p, m in quantized_modules(whole).items()}
    before = logits(whole, inputs("llama"))
    for block in sharded.model.layers:
        fully_shard(block)
    fully_shard(sharded)
    torch.testing.assert_close(logits(sharded, inputs("llama")), before, atol=1e-6, rtol=1e-6)
    for model in (whole, sharded):
        learns = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learns, lr=0.1)
        model(**inputs("llama")).logits.square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(logits(sharded, inputs("llama")), logits(whole, inputs("llama")), atol=1e-5, rtol=1e-5)
    assert (logits(sharded, inputs("llama")) - before).abs().max() > 1e-5
    held = quantized_modules(sharded)
    assert set(held) == set(codes)
    assert all(torch.equal(m.packed["codes"], codes[p]) for p, m in held.items())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
