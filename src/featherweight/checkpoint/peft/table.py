"""Which codec serves which method, and which PEFT type."""

from featherweight.checkpoint.peft import ia3, lora, norm, own
from featherweight.checkpoint.peft.codec import Codec
from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.method import Method
from featherweight.methods.ia3 import IA3
from featherweight.methods.lora import LoRA
from featherweight.methods.norm import LayerNorm

CODECS: dict[type[Method], Codec] = {LoRA: lora.CODEC, IA3: ia3.CODEC, LayerNorm: norm.CODEC}


def for_method(method: Method) -> Codec:
    """PEFT's own type where it has the method, else ours."""
    return CODECS.get(type(method)) or own.codec(type(method))


def for_type(peft_type: str, where: str) -> Codec:
    """The codec of a file's `peft_type`. Raises InputError for a type that cannot be expressed here."""
    known = {codec.peft_type: codec for codec in CODECS.values()}
    methods = [kind for kind in Method.known.values() if issubclass(kind, Method) and kind not in CODECS]
    known |= {codec.peft_type: codec for codec in map(own.codec, methods)}
    if peft_type not in known:
        raise InputError(
            Problem(
                "an adapter of a type that cannot be loaded",
                f"{where}:peft_type",
                f"one of {listed(sorted(known))}",
                repr(peft_type),
                "merge it into its base with peft (merge_and_unload) and load the merged model",
            )
        )
    return known[peft_type]
