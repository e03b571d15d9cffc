"""Methods: one paper, one file. Each opens with its equation, its symbols and its source."""

from featherweight.methods.adalora import AdaLoRA
from featherweight.methods.bitfit import BitFit
from featherweight.methods.compacter import Compacter
from featherweight.methods.deep_prompt import DeepPrompt
from featherweight.methods.dora import DoRA
from featherweight.methods.experts import ExpertLoRA
from featherweight.methods.fishmask import FishMask
from featherweight.methods.full import Full
from featherweight.methods.fusion import Fusion
from featherweight.methods.head import Head
from featherweight.methods.houlsby import Houlsby
from featherweight.methods.ia3 import IA3
from featherweight.methods.intrinsic import Intrinsic
from featherweight.methods.lin import Lin
from featherweight.methods.llama_adapter import LlamaAdapter
from featherweight.methods.lora import LoRA
from featherweight.methods.norm import LayerNorm
from featherweight.methods.parallel import Parallel
from featherweight.methods.pfeiffer import Pfeiffer
from featherweight.methods.prefix import Prefix
from featherweight.methods.prompt import Prompt
from featherweight.methods.ptuning import PTuning
from featherweight.methods.scaling import Scaling
from featherweight.methods.shira import SHiRA
from featherweight.methods.tokens import Tokens
from featherweight.methods.vera import VeRA

__all__ = [
    "IA3",
    "AdaLoRA",
    "BitFit",
    "Compacter",
    "DeepPrompt",
    "DoRA",
    "ExpertLoRA",
    "FishMask",
    "Full",
    "Fusion",
    "Head",
    "Houlsby",
    "Intrinsic",
    "LayerNorm",
    "Lin",
    "LlamaAdapter",
    "LoRA",
    "PTuning",
    "Parallel",
    "Pfeiffer",
    "Prefix",
    "Prompt",
    "SHiRA",
    "Scaling",
    "Tokens",
    "VeRA",
]
