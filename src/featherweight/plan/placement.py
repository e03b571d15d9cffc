"""Where the bytes of a planned step lie when they are spread: over devices that share the work, or into CPU memory.

    one device       everything
    ZeRO-2           gradients and optimizer states cut in n, the rest whole
    FSDP2, ZeRO-3    weights, adapters, gradients and optimizer states cut in n; two blocks gathered at a time
    CPU offload      as ZeRO-3 on one device, with all that is cut in CPU memory instead

The batch is that of one device. Source: Rajbhandari et al. 2020, ZeRO; two blocks: the next is fetched ahead.
"""

from dataclasses import dataclass

from featherweight.plan.plan import Plan
from featherweight.plan.traced import ADAPTERS, BASE, CODES, GRADIENTS, OPTIMIZER

STATES = (GRADIENTS, OPTIMIZER)
MODEL = (BASE, CODES, ADAPTERS)


@dataclass(frozen=True)
class Placement:
    """Bytes at the peak of a step on each device, and in CPU memory for each device."""

    name: str
    device: int
    host: int = 0


def placements(plan: Plan, devices: int = 8) -> list[Placement]:
    """The ways to place a training step, the simplest first. Raises ValueError for fewer than one device."""
    if devices < 1:
        raise ValueError(f"placements: expected at least one device, got {devices}")
    states = sum(plan.memory.get(name, 0) for name in STATES)
    model = sum(plan.memory.get(name, 0) for name in MODEL)
    work = plan.train_bytes - states - model
    gathered = min(model, 2 * plan.largest_block)
    return [
        Placement("one device", plan.train_bytes),
        Placement(f"ZeRO-2 over {devices}", model + work + states // devices),
        Placement(f"FSDP2 or ZeRO-3 over {devices}", work + gathered + (model + states) // devices),
        Placement("CPU offload", work + gathered, model + states),
    ]
