import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.train.toml import dumps

scalars = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), v, max_size=3), max_leaves=8)  # fmt: skip  # noqa: E501


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), values, max_size=5))
def test_tomllib_reads_what_is_written(form):
    assert tomllib.loads(dumps(form)) == form


def test_none_is_left_out_and_tables_come_last():
    text = dumps({"method": {"type": "lora", "rank_pattern": {"a.b": 2}}, "lr": 1e-3, "steps": None})
    assert text.index("lr = 0.001") < text.index("[method]")
    assert tomllib.loads(text) == {"lr": 1e-3, "method": {"type": "lora", "rank_pattern": {"a.b": 2}}}


def test_what_toml_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="has no TOML form"):
        dumps({"targets": len})
