"""AdapterHub's bottleneck config and our methods, both ways. Every field is known; one that asks for something else
is refused.
"""

from collections.abc import Mapping
from typing import Any

from featherweight.core.errors import InputError, Problem, raise_all
from featherweight.core.method import Method
from featherweight.methods.compacter import Compacter
from featherweight.methods.houlsby import Houlsby
from featherweight.methods.parallel import Parallel
from featherweight.methods.pfeiffer import Pfeiffer

VERSION = "1.3.0"  # the release of `adapters` whose fields these are
# a sequential bottleneck behind a sublayer; the fields where the methods differ from it follow
PLAIN: dict[str, Any] = {
    "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True,
    "factorized_phm_rule": False, "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
    "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None, "is_parallel": False,
    "learn_phm": True, "leave_out": [], "ln_after": False, "ln_before": False, "mh_adapter": False,
    "non_linearity": "relu", "original_ln_after": True, "original_ln_before": False, "output_adapter": True,
    "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False,
    "phm_rank": 1, "reduction_factor": 16, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False,
    "shared_phm_rule": True, "stochastic_depth": 0.0, "use_gating": False,
}  # fmt: skip
HOULSBY = {"mh_adapter": True}
PFEIFFER = {"original_ln_before": True}
PARALLEL = {"is_parallel": True}
# fields that shape the method or only its start; all others must be what PLAIN and the kind say
FREE = (
    "cross_adapter", "dropout", "hypercomplex_nonlinearity", "init_weights", "init_weights_seed", "leave_out",
    "non_linearity", "phm_c_init", "phm_dim", "phm_init_range", "phm_layer", "phm_rank", "reduction_factor", "scaling",
    "shared_phm_rule", "stochastic_depth", "adapter_residual_before_ln", "inv_adapter_reduction_factor",
)  # fmt: skip
OLD = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # names of activations in files without a version
NAMES = {"silu": "swish"}


def method_of(form: Mapping[str, Any], where: str) -> Method:
    """The method that a config means. Raises one InputError over all fields that cannot be expressed."""
    config = PLAIN | dict(form["config"])
    if config.get("architecture") is not None:
        fix = "only bottleneck adapters are read from AdapterHub's folders"
        raise InputError(Problem("another method", f"{where}:config.architecture", got=config["architecture"], fix=fix))
    kind = PARALLEL if config["is_parallel"] else HOULSBY if config["mh_adapter"] else PFEIFFER
    wanted = {k: v for k, v in (PLAIN | kind).items() if k not in FREE}
    problems = [
        Problem("not supported: it computes something else", f"{where}:config.{k}", repr(v), repr(config[k]))
        for k, v in wanted.items()
        if config[k] != v
    ]
    raise_all([*problems, *odd(config, kind, where)])
    activation = str(config["non_linearity"]).lower()
    shared: dict[str, Any] = {
        "reduction": config["reduction_factor"],
        "activation": activation if "version" in form else OLD.get(activation, activation),
        "dropout": config["dropout"],
        "skip": len(config["leave_out"] or []),
    }
    cross = bool(config["cross_adapter"]) and kind is HOULSBY
    if config["phm_layer"]:
        rule = {"n": config["phm_dim"], "rank": config["phm_rank"], "shared_rule": config["shared_phm_rule"]}
        return Compacter(**shared, **rule, plus=kind is PFEIFFER)
    if kind is PARALLEL:
        return Parallel(**shared, scale=config["scaling"], reads="residual")
    return Houlsby(**shared, norms=False, cross=cross) if kind is HOULSBY else Pfeiffer(**shared)


def odd(config: Mapping[str, Any], kind: Mapping[str, Any], where: str) -> list[Problem]:
    """Fields whose values, or combinations, no method here has."""
    out = sorted(config["leave_out"] or [])
    scales = ("a number", '"learned"') if kind is PARALLEL else ("1.0",)
    number = isinstance(config["scaling"], int | float)
    fits = (number or config["scaling"] == "learned") if kind is PARALLEL else config["scaling"] == 1.0
    checks = {
        "leave_out": (out == list(range(len(out))), "the first blocks", out),
        "reduction_factor": (
            isinstance(config["reduction_factor"], int | float),
            "one number",
            config["reduction_factor"],
        ),
        "scaling": (fits, " or ".join(scales), config["scaling"]),
        "cross_adapter": (not config["cross_adapter"] or (kind is HOULSBY and not config["phm_layer"]), "False", True),
        "phm_layer": (not config["phm_layer"] or kind is not PARALLEL, "False", True),
    }
    return [
        Problem("not supported: it computes something else", f"{where}:config.{k}", wanted, repr(got))
        for k, (fine, wanted, got) in checks.items()
        if not fine
    ]


def config_of(method: Method, width: int, where: str) -> dict[str, Any]:
    """The config that `adapters` reads as this method, on hidden states of `width`."""
    if not isinstance(method, Houlsby | Pfeiffer | Parallel | Compacter):
        fix = "fw.save writes every method"
        raise InputError(
            Problem(
                "no bottleneck that AdapterHub has", where, "Houlsby, Pfeiffer, Parallel, Compacter", repr(method), fix
            )
        )
    if getattr(method, "norms", False) and not getattr(method, "plus", False):
        raise InputError(
            Problem("AdapterHub has no trained norms", where, "norms=False", repr(method), "fw.save keeps them")
        )
    first = method.plus if isinstance(method, Compacter) else isinstance(method, Pfeiffer)
    kind = PARALLEL if isinstance(method, Parallel) else PFEIFFER if first else HOULSBY
    own: dict[str, Any] = {
        "reduction_factor": method.reduction if method.bottleneck is None else factor(width, method.bottleneck),
        "non_linearity": NAMES.get(method.activation, method.activation),
        "dropout": method.dropout,
        "leave_out": list(range(method.skip)),
    }
    if isinstance(method, Compacter):
        own |= {"phm_layer": True, "phm_dim": method.n, "phm_rank": method.rank, "shared_phm_rule": method.shared_rule}
    if isinstance(method, Parallel):
        own |= {
            "scaling": method.scale if method.scale == "learned" else float(method.scale),
            "init_weights": "mam_adapter",
        }
    if isinstance(method, Houlsby):
        own |= {"cross_adapter": method.cross}
    return PLAIN | kind | own


def factor(width: int, bottleneck: int) -> float:
    """A reduction factor whose ⌊width / factor⌋ is the bottleneck; the half keeps clear of rounding."""
    return width // bottleneck if width % bottleneck == 0 else width / (bottleneck + 0.5)
