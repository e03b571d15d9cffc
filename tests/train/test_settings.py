import pytest

from featherweight.core.errors import InputError
from featherweight.train import Settings, settings


def test_unknown_keys_are_all_reported_with_a_suggestion():
    with pytest.raises(InputError) as caught:
        settings({"eval_evry": 3, "bach": 4, "lr": -1}, where="run.toml")
    told = str(caught.value)
    assert "run.toml:eval_evry: unknown setting; got 3; did you mean 'eval_every'?" in told
    assert "did you mean 'batch'?" in told
    assert "run.toml:lr: wrong value; expected greater than 0; got -1" in told
    assert len(caught.value.problems) == 3


def test_epochs_and_steps_exclude_each_other():
    with pytest.raises(InputError, match="give epochs or steps, not both"):
        settings({"epochs": 1, "steps": 10})


@pytest.mark.parametrize(
    ("key", "value"), [("batch", 0), ("precision", "int8"), ("lr", float("nan")), ("keep", 0), ("steps", 1.5)]
)
def test_values_out_of_range_are_refused(key, value):
    with pytest.raises(InputError, match=f"^{key}: "):
        settings({key: value})


def test_settings_are_frozen_and_every_one_is_explained():
    with pytest.raises(ValueError, match="frozen"):
        settings({}).lr = 1
    assert all(f.description and f.description.endswith(".") for f in Settings.model_fields.values())
