"""Tests of the stubs of the native modules: each says what its module has, and nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastsock import _native

PREFIX = "fastsock._native."
MODULES = sorted(
    module.name.removeprefix(PREFIX)
    for module in pkgutil.walk_packages(_native.__path__, PREFIX)
    if not module.ispkg
)

#: Modules that a build may be without.
OPTIONAL = {"server.uring.uring"}

#: Special methods that a stub names when the class defines them itself.
SPECIAL = {"__len__"}

Function = ast.FunctionDef


def stub_of(name: str) -> list[ast.stmt]:
    return ast.parse(path_of(name).read_text()).body


def folder() -> Path:
    return Path(_native.__path__[0])


def path_of(name: str) -> Path:
    return folder() / f"{name.replace('.', '/')}.pyi"


def names_of_stub(body: list[ast.stmt]) -> set[str]:
    return {
        node.name
        for node in body
        if isinstance(node, Function | ast.ClassDef) and is_public(node.name)
    }


def names_of_module(module: ModuleType) -> set[str]:
    """What a user of the module finds there; modules that it imports are not its own."""
    return {
        name
        for name, value in vars(module).items()
        if is_public(name) and not inspect.ismodule(value)
    }


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in SPECIAL


def classes() -> list[tuple[str, str]]:
    return [
        (module, node.name)
        for module in MODULES
        for node in stub_of(module)
        if isinstance(node, ast.ClassDef)
    ]


def functions() -> list[tuple[str, str]]:
    """Every function and method of the stubs, as (module, dotted name), properties left out."""
    found = []
    for module in MODULES:
        for node in stub_of(module):
            if isinstance(node, Function):
                found.append((module, node.name))
            elif isinstance(node, ast.ClassDef):
                found += [
                    (module, f"{node.name}.{member.name}")
                    for member in node.body
                    if isinstance(member, Function)
                    and not member.decorator_list
                    and is_public(member.name)
                ]
    return found


def find(body: list[ast.stmt], dotted: str) -> Any:
    """The node of a class, function or method."""
    name, _, rest = dotted.partition(".")
    (node,) = (n for n in body if isinstance(n, Function | ast.ClassDef) and n.name == name)
    return find(node.body, rest) if rest else node


def parameters_of_stub(node: Function) -> list[tuple[str, str | None]]:
    """(name, source of the default) of every parameter, `self` left out."""
    plain = node.args.posonlyargs + node.args.args
    missing: list[ast.expr | None] = [None] * (len(plain) - len(node.args.defaults))
    both = list(zip(plain, [*missing, *node.args.defaults], strict=True))
    both += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [
        (argument.arg, ast.unparse(default) if default else None)
        for argument, default in both
        if argument.arg != "self"
    ]


def test_every_native_module_has_a_stub() -> None:
    """There is a stub for each native module, and none for a module that is not there."""
    assert MODULES
    found = (path.relative_to(folder()) for path in folder().rglob("*.pyi"))
    stubs = {str(path.with_suffix("")).replace("/", ".") for path in found}
    assert stubs - OPTIONAL <= set(MODULES) <= stubs


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_names_what_its_module_has(name: str) -> None:
    """The public classes and functions of a module are those of its stub."""
    module = importlib.import_module(f"fastsock._native.{name}")
    assert names_of_stub(stub_of(name)) == names_of_module(module)


@pytest.mark.parametrize(("module", "name"), classes())
def test_a_stub_names_what_its_class_has(module: str, name: str) -> None:
    """The public methods and properties of a class, not those of its bases, are in its stub."""
    real = getattr(importlib.import_module(f"fastsock._native.{module}"), name)
    stub = find(stub_of(module), name)
    assert names_of_stub(stub.body) == {member for member in vars(real) if is_public(member)}
    bases = [ast.unparse(base) for base in stub.bases] or ["object"]
    assert bases == [base.__name__ for base in real.__bases__]
    for member in stub.body:
        if isinstance(member, Function) and member.decorator_list:
            assert inspect.isgetsetdescriptor(vars(real)[member.name])


@pytest.mark.parametrize(("module", "name"), functions())
def test_a_signature_is_the_real_one(module: str, name: str) -> None:
    """Names, defaults and result of each function and method are as in the module."""
    real: Any = importlib.import_module(f"fastsock._native.{module}")
    for part in name.split("."):
        real = getattr(real, part)
    stub = find(stub_of(module), name)
    if name.rpartition(".")[2] in SPECIAL:
        return
    signature = inspect.signature(real)
    assert parameters_of_stub(stub) == [
        (each.name, None if each.default is each.empty else repr(each.default))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    result = stub.returns.value if isinstance(stub.returns, ast.Subscript) else stub.returns
    assert ast.unparse(result) == str(signature.return_annotation).strip("'")


@pytest.mark.parametrize(("module", "name"), classes())
def test_a_constructor_is_the_real_one(module: str, name: str) -> None:
    """The constructor's names and defaults are those at the head of the class's docstring."""
    real = getattr(importlib.import_module(f"fastsock._native.{module}"), name)
    head = re.match(rf"{name}\((.*)\)\n", real.__doc__)
    members = [node.name for node in find(stub_of(module), name).body if hasattr(node, "name")]
    assert ("__init__" in members) is bool(head)
    if not head:
        return
    parts = [part.strip() for part in head[1].split(",") if part.strip() != "*"]
    expected = []
    for part in parts:
        declaration, _, default = part.partition("=")
        expected.append((declaration.split()[-1], default or None))
    assert parameters_of_stub(find(stub_of(module), f"{name}.__init__")) == expected


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_is_short(name: str) -> None:
    """A stub has no docstrings: they stand in the module itself."""
    text = path_of(name).read_text()
    assert '"""' not in text and "#" not in text
