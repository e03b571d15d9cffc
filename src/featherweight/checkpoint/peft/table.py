"""Which codec serves which method, and which PEFT type."""

from featherweight.checkpoint.peft import (
    adalora,
    adaption_prompt,
    experts,
    ia3,
    lora,
    norm,
    own,
    prefix,
    prompt,
    shira,
    tokens,
    vera,
)
from featherweight.checkpoint.peft.codec import Codec
from featherweight.core.errors import InputError, Problem, listed
from featherweight.core.method import Method
from featherweight.methods.adalora import AdaLoRA
from featherweight.methods.deep_prompt import DeepPrompt
from featherweight.methods.dora import DoRA
from featherweight.methods.experts import ExpertLoRA
from featherweight.methods.ia3 import IA3
from featherweight.methods.llama_adapter import LlamaAdapter
from featherweight.methods.lora import LoRA
from featherweight.methods.norm import LayerNorm
from featherweight.methods.prefix import Prefix
from featherweight.methods.prompt import Prompt
from featherweight.methods.ptuning import PTuning
from featherweight.methods.shira import SHiRA
from featherweight.methods.tokens import Tokens
from featherweight.methods.vera import VeRA

# of codecs with one PEFT type the last reads the foreign files: that on experts tells the two kinds of LORA apart
CODECS: dict[type[Method], Codec] = {
    DeepPrompt: prefix.CODEC,
    Prefix: prefix.CODEC,
    Prompt: prompt.CODEC,
    PTuning: prompt.P_TUNING,
    LlamaAdapter: adaption_prompt.CODEC,
    LoRA: lora.CODEC,
    DoRA: lora.CODEC,
    ExpertLoRA: experts.CODEC,
    AdaLoRA: adalora.CODEC,
    VeRA: vera.CODEC,
    Tokens: tokens.CODEC,
    SHiRA: shira.CODEC,
    IA3: ia3.CODEC,
    LayerNorm: norm.CODEC,
}


def for_method(method: Method) -> Codec:
    """PEFT's own type where it has the method in this form, else ours."""
    codec = CODECS.get(type(method))
    return codec if codec and (codec.fits is None or codec.fits(method)) else own.codec(type(method))


def for_type(peft_type: str, where: str) -> Codec:
    """The codec of a file's `peft_type`. Raises InputError for a type that cannot be expressed here."""
    known = {codec.peft_type: codec for codec in CODECS.values()}
    kinds = [kind for kind in Method.known.values() if issubclass(kind, Method)]
    ours = [kind for kind in kinds if kind not in CODECS or CODECS[kind].fits]
    known |= {codec.peft_type: codec for codec in map(own.codec, ours)}
    if peft_type not in known:
        raise InputError(
            Problem(
                "an adapter of a type that cannot be loaded",
                f"{where}:peft_type",
                f"one of {listed(sorted(known, key=lambda t: (t.startswith(own.MARK), t)))}",
                repr(peft_type),
                "merge it into its base with peft (merge_and_unload) and load the merged model",
            )
        )
    return known[peft_type]
