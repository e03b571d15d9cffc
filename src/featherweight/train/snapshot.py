"""What resumes a run: the trained adapters' tensors (frozen halves and buffers too) and the optimizer's state."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featherweight.core import state as core
from featherweight.core.errors import FeatherweightError, InputError, Problem
from featherweight.train import optimizers

SEP = "/"  # <adapter's name>/<key in its state>; an adapter's name has no dot but may have anything else


def weights(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Copies on the CPU. Raises FeatherweightError rather than hand out a number that is not finite."""
    found = {f"{n}{SEP}{k}": t.cpu().clone().contiguous() for n in names for k, t in core.state(model, n).items()}
    bad = [key for key, t in found.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        raise FeatherweightError(f"not saved: {len(bad)} tensors hold NaN or infinity, the first is {bad[0]}")
    return found


def load_weights(model: nn.Module, names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> None:
    """Copy back what `weights` gave, strictly."""
    known = {f"{n}{SEP}": n for n in names}
    foreign = [k for k in tensors if not any(k.startswith(prefix) for prefix in known)]
    if foreign:
        raise InputError(Problem("the checkpoint holds an adapter that is not trained now", foreign[0],
                                 f"one of {', '.join(names)}"))  # fmt: skip
    for prefix, name in known.items():
        core.load_state(model, name, {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)})


def names_of(model: nn.Module, names: tuple[str, ...]) -> dict[int, str]:
    """id of each trained tensor -> its key."""
    return {id(t): f"{n}{SEP}{k}" for n in names for k, t in core.live(model, n).items()}


def training_state(
    model: nn.Module, names: tuple[str, ...], optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, Tensor]]:
    """The two tensor files of a checkpoint."""
    moments = optimizers.state_of(optimizer, names_of(model, names))
    return {"adapter": weights(model, names), "optimizer": moments}


def restore(model: nn.Module, names: tuple[str, ...], optimizer: torch.optim.Optimizer,
            files: Mapping[str, Mapping[str, Tensor]]) -> None:  # fmt: skip
    """Put a checkpoint's tensors back into the model and the optimizer."""
    load_weights(model, names, files["adapter"])
    optimizers.load_state(optimizer, names_of(model, names), files["optimizer"])
