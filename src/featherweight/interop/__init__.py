"""The only files that know transformers, accelerate and datasets. Importing this registers them with core and
imports none.
"""

from typing import Any

from featherweight.core import attach, attending, encoded, merge
from featherweight.interop import attention, cached, deberta, root
from featherweight.interop.quantized import live, live_bnb, live_tensors
from featherweight.quant.quantize import on_quantize

if not live.libraries:
    live.libraries += [live_bnb.Linear4bit(), live_bnb.Linear8bitLt(), live_tensors.Tensors()]
    encoded.others.append(live.known)
    attach.before_attach.append(live.settle)
    attach.on_detach.append(live.leave)

if root.settle not in attach.on_attach:
    attach.on_attach.append(root.settle)
    attach.on_detach.append(root.leave)

if root.untied not in merge.on_untie:
    merge.on_untie.append(root.untied)

if deberta.settle not in attach.on_attach:
    attach.on_attach.append(deberta.settle)
    attach.on_detach.append(deberta.leave)

if root.hold_codes not in on_quantize:
    on_quantize.append(root.hold_codes)

if not attending.doors:
    attending.doors += [attention.Registry(), cached.Handed()]

_HOME = {"load_model": "load", "load_base": "transformers", "load_tokenizer": "transformers"}
__all__ = ["load_base", "load_model", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
