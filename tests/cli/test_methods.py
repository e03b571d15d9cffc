"""`fw methods`: everything on it is said by the classes, and every method says all of it."""

import inspect
import re
from importlib import import_module

import pytest

from featherweight.cli.methods_command import facts, start, told
from featherweight.cli.schema import methods
from featherweight.core.method import Method
from featherweight.methods.starts import STARTS


@pytest.mark.parametrize("width", [80, 120, 160])
def test_the_table_has_every_method_and_trait(fw, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = fw("methods").out
    assert max(map(len, shown.splitlines())) <= width
    flat = re.sub(r"\s+", "", shown)
    for name, method in methods().items():
        assert re.search(rf"^ *{name} ", shown, re.MULTILINE), name
        assert re.sub(r"\s+", "", f"{facts(method)['lr']:g}") in flat


def test_the_traits_are_the_classes_own(fw):
    found = fw("methods", "--json").json["methods"]
    assert set(found) == set(Method.known)
    lora, houlsby, full, prompt = (found[n] for n in ("lora", "houlsby", "full", "prompt"))
    assert (lora["mergeable"], lora["per_row"], lora["peft"], lora["targets"]) == (
        True,
        True,
        "LORA",
        ["query", "value"],
    )
    assert (houlsby["mergeable"], houlsby["identity"], houlsby["peft"]) == (False, True, None)
    assert (full["mergeable"], full["per_row"], full["peft"]) == (True, False, None)
    assert (prompt["mergeable"], prompt["identity"], prompt["peft"]) == (False, False, "PROMPT_TUNING")
    assert all(f["paper"] and f["place"] and f["lr_source"] and f["lr"] > 0 for f in found.values())


@pytest.mark.parametrize("name", list(methods()))
def test_a_page_shows_equation_fields_and_source(fw, name):
    page = fw("methods", name)
    assert page.code == 0, page.err
    method, fact = methods()[name], facts(methods()[name])
    assert "Source: " in page.out
    assert fact["lr_source"] in page.out
    assert start(fact) in page.out
    for field in fact["fields"]:
        assert f"--method.{field.replace('_', '-')} " in page.out
    for about in told(method).values():
        assert about in page.out
    assert fw("methods", name, "--json").json["about"] in page.out


def test_a_start_in_words():
    exact = {"identity": True, "near": 0.0}
    assert start(exact) == "the base, bit for bit"
    assert start(exact | {"near": 1e-3}) == "the base, within 0.001 of its largest output"
    assert start(exact | {"identity": False}) == "another function than the base's"


def test_fields_are_shown_as_they_are_typed(fw):
    """No linter's remark, no Python; every default that is shown can be given back as it stands."""
    page = fw("methods", "dora").out
    assert "  --method.targets  text | list  [query,value]" in page
    assert "  --method.alpha  number  [none]" in page
    assert "  --method.freeze-A  true | false  [false]\n" in page
    assert not [about for method in methods().values() for about in told(method).values() if "noqa" in about]


PAPERS = re.compile(r"arXiv:\d{4}\.\d{5}")


@pytest.mark.parametrize("start", ["eva", "loftq", "olora", "pissa"])
def test_loras_page_has_the_paper_of_every_start(fw, start):
    """The first paper that the start's own file names."""
    about = inspect.getdoc(import_module(f"featherweight.methods.starts.{start}"))
    assert PAPERS.search(about).group() in fw("methods", "lora").out
    assert start in STARTS


@pytest.mark.parametrize("name", [n for n, m in methods().items() if "skip" in facts(m)["fields"]])
def test_a_bottlenecks_page_has_adapterdrops_paper(fw, name):
    from featherweight.methods import adapter_drop

    assert PAPERS.search(adapter_drop.__doc__).group() in re.sub(r"\s+", " ", fw("methods", name).out)
