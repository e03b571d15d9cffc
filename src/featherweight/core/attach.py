"""attach and detach: put a method's adapters on a model in place, and take them off bit-exactly."""

from collections import defaultdict
from collections.abc import Callable

from torch import nn

from featherweight.core.adapter import Adapter, parts_of
from featherweight.core.anatomy import anatomy
from featherweight.core.errors import InputError, Problem, alike, did_you_mean, listed, raise_all
from featherweight.core.host import base_modules, base_parameters, become_host, hosts, leave_host, refuse_sharded
from featherweight.core.method import Method
from featherweight.core.part import Part, Parts
from featherweight.core.replace import Copies, replacement
from featherweight.core.site import Site
from featherweight.core.switch import Attached, Switch, joined, refresh, switch_of

Made = dict[str, tuple[nn.Module, Adapter]]  # path of the host -> the module, its new adapter

# Called with the model before an attach looks at it, after every attach, and after the last detach or an attach that
# failed: interop keeps other libraries at ease here.
before_attach: list[Callable[[nn.Module], None]] = []
on_attach: list[Callable[[nn.Module], None]] = []
on_detach: list[Callable[[nn.Module], None]] = []


def attach(
    model: nn.Module,
    method: Method,
    name: str = "default",
    *,
    head: bool | str = "auto",
    stack: bool = False,
    train: bool = True,
) -> nn.Module:
    """Put `method` on the model under `name`, in place, and make it the only active one (`stack=True`: the top one).

    The base is frozen at the first attach. `head="auto"` also trains a copy of the task's head (a classifier,
    never a language-model head), kept with the adapter; True demands one, False leaves the head frozen. `train=False`
    attaches for use only.
    Raises InputError when the name is taken or the method hits nothing; the model is then as it was.
    """
    switch = joined(model)
    check(method, name, switch)
    refuse_sharded(model, "attach", "attach first, then shard")
    made, heads = prepared(model, method, head, switch)
    freeze(model, switch)
    for path, (module, adapter) in made.items():
        become_host(module, switch, path)
        for part in parts_of(adapter):
            vars(part)["training"] = module.training  # eval mode: no dropout
        vars(module)["_modules"]["adapters"][name] = adapter
    switch.attached[name] = Attached(method, bool(heads), train)
    switch.set((*switch.active, name) if stack else (name,), None, switch.strength if stack else {})
    refresh(model)
    for hook in on_attach:
        hook(model)
    return model


def prepared(model: nn.Module, method: Method, head: bool | str, switch: Switch) -> tuple[Made, list[Site]]:
    """The new adapters and the sites of the head that train along; what was made ready is undone where this fails."""
    try:
        for hook in before_attach:
            hook(model)
        sites = list(method.hosts(model))
        if not sites:
            there = listed([p for p, _ in base_modules(model) if p], 40)
            raise InputError(Problem(f"{method!r} hits nothing in {type(model).__name__}", fix=f"modules: {there}"))
        made = build(model, method, sites)
        heads = heads_beside(model, head, made)
        shared: Copies = {}
        return made | {s.path: (s.module, replacement(s, shared)) for s in heads}, heads
    except BaseException:
        if not switch.attached:
            for hook in on_detach:
                hook(model)
        raise


def heads_beside(model: nn.Module, head: bool | str, made: Made) -> list[Site]:
    """The sites of the task head that train along with the method and are not its own already."""
    if not head:
        return []
    there = anatomy(model)
    if head is True and not there.sites("head"):
        raise InputError(Problem("the model has no head to train", "head", got=type(model).__name__, fix="head=False"))
    if head is not True and there.generates:
        return []
    return [s for s in there.sites("head") if s.path not in made]


def check(method: Method, name: str, switch: Switch) -> None:
    if not isinstance(method, Method):
        raise InputError(
            Problem("not a method", "attach", expected="a method such as fw.LoRA(rank=8)", got=repr(method))
        )
    if not name or set(name) & set("./\\"):  # a part of a module's path, and of a file's
        expected = "text without a dot or a slash"
        raise InputError(Problem("not a name for an adapter", "name", expected=expected, got=repr(name)))
    if name in switch.attached:
        raise InputError(
            Problem(
                "an adapter of this name is attached already",
                "name",
                got=repr(name),
                fix="detach it first, or choose another name",
            )
        )


def build(model: nn.Module, method: Method, sites: list[Site]) -> Made:
    """The adapters by path, made before anything in the model is touched; slices of one module go together."""
    shared = method.shared(model)
    made: Made = {}
    parts: defaultdict[str, dict[str, tuple[Part, Adapter]]] = defaultdict(dict)
    wrong: list[Problem] = []
    for site in sites:
        try:
            adapter = method.build(site, shared)
        except InputError as error:
            wrong += error.problems
            continue
        made[site.path] = (site.module, adapter)
        if not site.whole:
            parts[site.path][site.role if site.rows is not None else "whole"] = (site.host, adapter)
    raise_all(alike(wrong))
    for path, of in parts.items():
        both = Parts({role: part for role, (part, _) in of.items()}, {role: a for role, (_, a) in of.items()})
        made[path] = (made[path][0], both)
    return made


def freeze(model: nn.Module, switch: Switch) -> None:
    """Freeze each part of the base once, and remember for detach what trained before."""
    known = {id(p) for p in switch.frozen}
    new = [p for _, p in base_parameters(model) if id(p) not in known]
    switch.frozen += new
    switch.thawed += [p for p in new if p.requires_grad]
    for p in new:
        p.requires_grad_(False)


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Take one adapter off, or all of them; after the last the model is bit for bit, and class for class, as before."""
    refuse_sharded(model, "detach", "switch it off instead: fw.switch(model, None)")
    switch = switch_of(model)
    names = list(switch.attached) if name is None else [name]
    if name is not None and name not in switch.attached:
        raise InputError(
            Problem("no adapter of this name", "detach", got=repr(name), fix=did_you_mean(name, switch.attached))
        )
    for _, host in list(hosts(model)):
        for n in names:
            if n in host.adapters:
                del host.adapters[n]
        if not host.adapters:
            leave_host(host)
    for n in names:
        switch.attached.pop(n)
    rows = None if any(n in names for n in switch.on) else switch.rows
    switch.set(
        tuple(n for n in switch.active if n in switch.attached),
        rows,
        {n: c for n, c in switch.strength.items() if n not in names},
    )
    if switch.attached:
        refresh(model)
        return model
    for p in switch.thawed:
        p.requires_grad_(True)
    for hook in on_detach:
        hook(model)
    return model
