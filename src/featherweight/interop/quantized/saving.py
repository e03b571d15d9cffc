"""transformers' save_pretrained with other tensors in place of a model's codes, and another config, for once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from featherweight.interop.hf_quantizer import Config, Quantizer, without_notes


class Writer(Quantizer):
    """Gives save_pretrained `tensors` for the layers `held`, under this config."""

    def __init__(self, held: Mapping[str, Any], tensors: Mapping[str, Tensor], config: Mapping[str, Any]):
        super().__init__(Config())
        self.held, self.tensors, self.form = held, tensors, dict(config)

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        state = model.state_dict()
        without_notes(model, state, "", {})
        for path, module in self.held.items():
            for name in module.packed_names:
                del state[f"{path}.{name}"]
        return state | self.tensors, {}


@contextmanager
def saving(
    model: Any, held: Mapping[str, Any], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Iterator[None]:
    """For the length of a `with`, a model that save_pretrained writes in another maker's way."""
    before, said = vars(model).get("hf_quantizer"), vars(model.config).get("quantization_config")
    model.hf_quantizer, model.config.quantization_config = Writer(held, tensors, config), dict(config)
    try:
        yield
    finally:
        for holder, name, value in ((model, "hf_quantizer", before), (model.config, "quantization_config", said)):
            vars(holder).pop(name, None)
            if value is not None:
                setattr(holder, name, value)
