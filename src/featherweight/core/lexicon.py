"""The field's names for the projections of a block. Structure decides first (`anatomy.py`); these settle the rest."""

QUERY = {"q", "query", "q_proj", "q_lin", "query_proj", "to_q", "wq", "q_a_proj"}
KEY = {"k", "key", "k_proj", "k_lin", "key_proj", "to_k", "wk"}
VALUE = {"v", "value", "v_proj", "v_lin", "value_proj", "to_v", "wv"}

# leaf name of a fused projection -> (its roles in order, how their rows lie); `layout.py` verifies it on the model
FUSED = {
    "c_attn": (("query", "key", "value"), "blocks"),
    "qkv_proj": (("query", "key", "value"), "blocks"),
    "Wqkv": (("query", "key", "value"), "blocks"),
    "in_proj": (("query", "key", "value"), "blocks"),
    "qkv": (("query", "key", "value"), "blocks"),
    "query_key_value": (("query", "key", "value"), "grouped"),
    "gate_up_proj": (("gate", "up"), "blocks"),
    "Wi": (("gate", "up"), "blocks"),
}

GATE = {"gate_proj", "wi_0", "w1", "gate_lin"}
UP = {"up_proj", "wi", "wi_1", "fc1", "c_fc", "dense_h_to_4h", "lin1", "fc_in", "w3", "linear_1", "linear1", "up"}
DOWN = {"down_proj", "wo", "fc2", "c_proj", "dense_4h_to_h", "lin2", "fc_out", "w2", "linear_2", "linear2", "down"}

EACH = ("query", "key", "value", "output", "gate", "up", "down", "norm", "embedding", "head")
UNIONS = {
    "attention": ("query", "key", "value", "output"),
    "mlp": ("gate", "up", "down"),
}
ROLES = (*EACH, *UNIONS, "linear")
