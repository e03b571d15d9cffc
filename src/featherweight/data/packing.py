"""Whether a model keeps packed rows apart: asked of the model itself, not of a table of architectures."""

from typing import Any


def packable(model: Any) -> str | None:
    """None if packed rows give this model the logits of separate rows; else why not.

    Two short rows are run alone and packed (restarting position ids, no attention mask) and compared: encoders, ALiBi
    and recurrent models look across the border or ignore position ids, and encoder-decoders fail altogether.
    """
    import torch

    vocab = int(getattr(model.config, "vocab_size", 0) or 0)
    if vocab < 8:
        return f"its vocabulary of {vocab} is too small to probe"
    device, was = next(model.parameters()).device, model.training
    rows = [
        torch.tensor([[(7 * i + k) % (vocab - 4) + 3 for i in range(n)]], device=device) for k, n in ((1, 6), (3, 9))
    ]
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([logits(model, row) for row in rows], 1).float()
            packed = logits(model, torch.cat(rows, 1), [*range(6), *range(9)]).float()
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError, IndexError) as error:
        return f"it cannot take position ids without an attention mask ({type(error).__name__}: {str(error)[:80]})"
    finally:
        model.train(was)
    if alone.shape != packed.shape:
        return f"it gives outputs of shape {tuple(packed.shape)}, not one per token"
    gap = float((alone - packed).abs().max() / alone.abs().max().clamp_min(1e-12))
    limit = 1e-4 if model.dtype == torch.float32 else 5e-2
    return (
        None if gap <= limit else f"its rows see each other: packed and separate outputs differ by {gap:.1e} (relative)"
    )


def logits(model: Any, ids: Any, places: list[int] | None = None) -> Any:
    import torch

    extra = {} if places is None else {"position_ids": torch.tensor([places], device=ids.device)}
    return model(input_ids=ids, use_cache=False, **extra).logits
