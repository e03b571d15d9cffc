"""The only files that know transformers, accelerate and datasets. Importing this registers them with core and
imports none.
"""

from typing import Any

from featherweight.core import attach, attending
from featherweight.interop import attention, cached, deberta, root

if root.settle not in attach.on_attach:
    attach.on_attach.append(root.settle)
    attach.on_detach.append(root.leave)

if deberta.settle not in attach.on_attach:
    attach.on_attach.append(deberta.settle)
    attach.on_detach.append(deberta.leave)

if not attending.doors:
    attending.doors += [attention.Registry(), cached.Handed()]

_HOME = {"load_model": "load", "load_base": "transformers", "load_tokenizer": "transformers"}
__all__ = ["load_base", "load_model", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
