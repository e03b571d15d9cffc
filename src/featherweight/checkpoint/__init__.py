"""Adapters on disk: PEFT's two files (`adapter_config.json`, `adapter_model.safetensors`), strict both ways."""

from featherweight.checkpoint.load import load
from featherweight.checkpoint.save import save

__all__ = ["load", "save"]
