"""Featherweight: adapt a frozen transformer by training almost none of it.

    import featherweight as fw
    fw.attach(model, fw.LoRA(rank=8, targets="attention"), name="fr")

Verbs take (model, noun, ...); methods and tasks are nouns, frozen dataclasses. Everything is imported on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "featherweight.core.attach": ("attach", "detach"),
    "featherweight.core.switch": ("switch",),
    "featherweight.core.prepare": ("prepare",),
    "featherweight.core.merge": ("merge", "merged", "merge_report"),
    "featherweight.core.count": ("trainable",),
    "featherweight.core.errors": ("FeatherweightError", "InputError", "NotMergeable"),
    "featherweight.methods": (
        "Full",
        "Head",
        "BitFit",
        "LayerNorm",
        "LoRA",
        "IA3",
        "Prefix",
        "DeepPrompt",
        "LlamaAdapter",
    ),
    "featherweight.methods.adapter_drop": ("drop",),
    "featherweight.methods.compacter": ("Compacter",),
    "featherweight.methods.fishmask": ("FishMask",),
    "featherweight.methods.fusion": ("Fusion",),
    "featherweight.methods.houlsby": ("Houlsby",),
    "featherweight.methods.intrinsic": ("Intrinsic",),
    "featherweight.methods.lin": ("Lin",),
    "featherweight.methods.parallel": ("Parallel",),
    "featherweight.methods.pfeiffer": ("Pfeiffer",),
    "featherweight.methods.prompt": ("Prompt",),
    "featherweight.methods.ptuning": ("PTuning",),
    "featherweight.methods.dora": ("DoRA",),
    "featherweight.methods.adalora": ("AdaLoRA",),
    "featherweight.methods.experts": ("ExpertLoRA",),
    "featherweight.methods.scaling": ("Scaling",),
    "featherweight.methods.shira": ("SHiRA",),
    "featherweight.methods.tokens": ("Tokens",),
    "featherweight.methods.vera": ("VeRA",),
    "featherweight.quant": ("Half", "Absmax", "ZeroPoint", "Blockwise", "Quantile", "NF4", "FP4", "GPTQ"),
    "featherweight.quant.llmint8": ("LLMInt8",),
    "featherweight.quant.qat": ("QAT",),
    "featherweight.quant.convert": ("convert",),
    "featherweight.quant.quantize": ("quantize",),
    "featherweight.quant.quantized": ("dequantize",),
    "featherweight.checkpoint": ("save", "load"),
    "featherweight.combine": (
        "combine",
        "extract",
        "Linear",
        "Cat",
        "SVD",
        "TIES",
        "DARE",
        "MagnitudePrune",
        "Geometric",
    ),
    "featherweight.interop": ("load_model", "load_base"),
    "featherweight.interop.quantized.adopt": ("adopt",),
    "featherweight.interop.quantized.export": ("save_quantized",),
    "featherweight.tasks": (
        "Classification",
        "MultiLabel",
        "Regression",
        "CausalLM",
        "ChainOfThought",
        "Seq2Seq",
        "Seq2SeqChainOfThought",
        "Choices",
        "Seq2SeqChoices",
        "MaskedChoices",
        "Embedding",
        "MultipleChoice",
        "QuestionAnswering",
        "TokenClassification",
        "Probing",
        "CausalProbing",
        "MaskedLM",
        "SpanCorruption",
    ),
    "featherweight.data.templates": ("prompted",),
    "featherweight.data.pairs": ("pairs_by_label", "pairs_of_pairs", "pairs_of_passages"),
    "featherweight.baselines.shots": ("in_context",),
    "featherweight.baselines.passages": ("with_passages",),
    "featherweight.baselines.verbal": ("as_choices",),
    "featherweight.baselines.frozen": ("frozen",),
    "featherweight.baselines.compare": ("compare",),
    "featherweight.evaluate.averaged": ("averaged",),
    "featherweight.evaluate.embed": ("embed", "mine"),
    "featherweight.evaluate": ("evaluate", "predict", "generate"),
    "featherweight.train": ("train",),
    "featherweight.train.recipes": ("TFew",),
    "featherweight.train.repeats": ("repeat",),
    "featherweight.fewshot": ("fewshot", "FewGLUE", "RAFT"),
    "featherweight.plan": ("plan",),
    "featherweight.distill.augment": ("augmented",),
    "featherweight.distill.report": ("distill_report",),
    "featherweight.distill.rounding": ("quantized_teacher",),
    "featherweight.distill.importance": ("importance",),
    "featherweight.distill": (
        "distill",
        "student",
        "KD",
        "DistilBERT",
        "DistilGPT2",
        "TinyBERT",
        "MiniLM",
        "GKD",
        "TeacherCache",
        "SequenceKD",
    ),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}
# These register themselves with core, so they must be there before anything is attached, loaded or trained.
_PLUGINS = ("featherweight.kernels", "featherweight.interop")
_PLUGGED = (
    "core.attach",
    "quant",
    "quant.quantize",
    "quant.quantized",
    "checkpoint",
    "interop",
    "evaluate",
    "train",
    "plan",
    "distill",
    "distill.rounding",
    "baselines.shots",
    "baselines.passages",
    "baselines.frozen",
    "baselines.compare",
)

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'featherweight' has no attribute {name!r}")
    if _WHERE[name].removeprefix("featherweight.") in _PLUGGED:
        for plugin in _PLUGINS:
            import_module(plugin)
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
