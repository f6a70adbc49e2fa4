"""Tests of a source tree that is not built, of what a build needs, and of what pip installs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from importlib import metadata
from pathlib import Path

import pytest
from layers import ROOT

NOT_SOURCE = (".*", "build", "dist", "bin", "*.egg-info", "__pycache__", "*.so")
NOT_SOURCE += ("pytest-benchmark.json",)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree as it is checked out: nothing is built in it."""
    target = tmp_path_factory.mktemp("source") / "fastsock"
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return target


def run(
    source: Path, *command: str, timeout: float = 50, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run it in the source tree, which Python finds first, and with no variable of make's."""
    left_out = {"FASTSOCK_CFLAGS", "FASTSOCK_LDFLAGS", "PYTEST_ADDOPTS", "CC", "CFLAGS"}
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        command,
        cwd=source,
        env={**inherited, "PYTHONPATH": str(source), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def not_built(source: Path) -> list[str]:
    return [
        f"the extension modules in {source} are not built for this Python.",
        "To build them: `make build` or `pip install -e .`; to use an installed one: cd /",
    ]


@pytest.mark.parametrize(
    "use", ["fastsock.Server()", "fastsock.load('tcp://127.0.0.1:1')", "fastsock.serve()"]
)
def test_a_source_tree_that_is_not_built_says_so(source: Path, use: str) -> None:
    """Importing alone costs nothing and says nothing; the first use says what to type."""
    done = run(source, sys.executable, "-c", f"import fastsock; print(1); {use}")
    assert done.stdout == "1\n"
    first, second = not_built(source)
    assert done.stderr.splitlines()[-2:] == [f"ImportError: {first}", second]


def test_the_command_is_not_built(source: Path) -> None:
    done = run(source, sys.executable, "-m", "fastsock", "info")
    assert (done.stdout, done.returncode) == ("", 1)
    first, second = not_built(source)
    assert done.stderr.splitlines() == [f"fastsock: {first}", second]


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed"
)
def test_the_benchmarks_are_not_built(source: Path) -> None:
    done = run(source, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "benchmarks")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    first, second = not_built(source)
    assert done.stderr.rstrip().splitlines() == [f"ERROR: {first}", second]
    assert done.stdout == ""


def test_the_twin_needs_no_build(source: Path) -> None:
    """fastsock/pure is a link to pysrc/, so it is imported from a fresh checkout."""
    if not (source / "fastsock/pure").is_symlink():
        pytest.skip("a source distribution has no links")
    code = """
import socket
from fastsock import pure
with pure.Server("tcp://127.0.0.1:0") as server:
    port = int(str(server.endpoint).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
"""
    done = run(source, sys.executable, "-c", code)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_module_that_does_not_load_keeps_its_own_error(source: Path, tmp_path: Path) -> None:
    tree = tmp_path / "built"
    shutil.copytree(source / "fastsock", tree / "fastsock", symlinks=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for module in ("server/worker", "server/datagram"):
        (tree / f"fastsock/_native/{module}{suffix}").write_text("not a shared object")
    done = run(tree, sys.executable, "-c", "import fastsock; fastsock.Server()")
    assert "not built" not in done.stderr
    assert f"datagram{suffix}: " in done.stderr.splitlines()[-1]


def build(source: Path, *before: str, **env: str) -> str:
    """What a build says that fails before it compiles."""
    pytest.importorskip("setuptools")
    pytest.importorskip("Cython")
    command = [*before, *([] if before else [sys.executable]), "setup.py", "--quiet", "build_ext"]
    done = run(source, *command, **env)
    assert done.returncode == 1
    assert not (source / "build").exists()
    (line,) = done.stderr.splitlines()
    return line


def test_a_build_without_compiler(source: Path, tmp_path: Path) -> None:
    line = build(source, PATH=str(tmp_path))
    assert line.startswith("fastsock: the C compiler ")
    assert line.partition(": apt-get install ")[2].startswith("gcc libc6-dev")
    for name in ("clang-0", "musl-gcc-0"):
        line = build(source, CC=name)
        assert line == f"fastsock: the C compiler {name} is missing: install it, or set CC=gcc"
    for empty in ("", "  "):
        assert build(source, CC=empty) == "fastsock: CC is empty: unset CC"


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("/usr/include", "the headers of the C library are missing: apt-get install libc6-dev"),
        (sysconfig.get_path("include"), "the headers of Python {}.{} (Python.h) are missing: "),
    ],
    ids=["libc", "Python"],
)
def test_a_build_without_headers(source: Path, tmp_path: Path, hidden: str, said: str) -> None:
    mounted = f"mount --bind {tmp_path} {hidden}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip(f"only root can hide {hidden}")
    command = f'{mounted} && exec {sys.executable} "$@"'
    line = build(source, "unshare", "-m", "sh", "-c", command, "sh")
    assert line.startswith(f"fastsock: {said.format(*sys.version_info)}")


def up_to_cython(source: Path, *arguments: str, **env: str) -> str:
    """The last line of a build in which importing Cython.Build fails."""
    code = """
import sys
sys.modules["Cython.Build"] = None
sys.argv[0] = "setup.py"
exec(open("setup.py").read())
"""
    done = run(source, sys.executable, "-c", code, *arguments, **env)
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("passes", "env", "arguments"),
    [
        (False, {}, ["build_ext"]),
        (False, {}, ["develop"]),
        (False, {"CFLAGS": "-std=c89 -pedantic-errors -Werror -MMD"}, ["build_ext", "-i"]),
        (True, {"CPPFLAGS": "-I/opt/include"}, ["build_ext"]),
        (True, {"CFLAGS": "-O2 -isystem /opt/include"}, ["build_ext"]),
        (True, {"CFLAGS": "--sysroot=/opt"}, ["build_ext"]),
        (True, {"FASTSOCK_CFLAGS": "-g -I /opt/include"}, ["build_ext"]),
        (True, {}, ["build_ext", "-I", "/opt/include"]),
        (True, {}, ["build_ext", "--include-dirs=/opt/include"]),
    ],
    ids=str,
)
def test_headers_in_other_folders(
    source: Path, tmp_path: Path, passes: bool, env: dict[str, str], arguments: list[str]
) -> None:
    """Where they may be in one that the user names, the build goes on; here to Cython."""
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file' >&2\nexit 1\n")
    compiler.chmod(0o755)
    line = up_to_cython(source, *arguments, CC=str(compiler), **env)
    assert ("Cython.Build" in line, "(Python.h) are missing" in line) == (passes, not passes)


@pytest.mark.parametrize("env", [{"CFLAGS": '-DX="a b'}, {"CC": 'gcc "'}, {"CC": "false"}], ids=str)
def test_the_compiler_speaks_for_itself(source: Path, env: dict[str, str]) -> None:
    """What the check cannot read is no error of the check."""
    assert "Cython.Build" in up_to_cython(source, "build_ext", **env)


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("Cython", None, "Cython is missing: pip install 'Cython>=3.3,<4'"),
        ("Cython", "3.0.11", "Cython 3.0.11 does not fit: pip install 'Cython>=3.3,<4'"),
        ("Cython", "4.0", "Cython 4.0 does not fit: pip install 'Cython>=3.3,<4'"),
        ("setuptools", "66.1.1", "setuptools 66.1.1 does not fit: pip install 'setuptools>=77'"),
    ],
)
def test_a_build_with_the_wrong_packages(
    source: Path, tmp_path: Path, package: str, version: str | None, said: str
) -> None:
    """As pip builds with --no-build-isolation; here with a directory of packages of its own."""
    setuptools = metadata.distribution("setuptools")
    folders = {path.parts[0] for path in setuptools.files or [] if path.suffix != ".pth"}
    for name in folders - {"..", "__pycache__"}:
        if version is None or package != "setuptools" or not name.endswith("-info"):
            (tmp_path / name).symlink_to(Path(str(setuptools.locate_file(name))))
    if version:
        described = tmp_path / f"{package}-{version}.dist-info"
        described.mkdir()
        described.joinpath("METADATA").write_text(f"Name: {package}\nVersion: {version}\n")
    line = build(source, sys.executable, "-S", PYTHONPATH=str(tmp_path))
    assert line == f"fastsock: {said}"


def test_the_source_distribution_is_whole(source: Path, tmp_path: Path) -> None:
    """It needs neither a compiler nor Cython, and holds every file except those of git and CI."""
    pytest.importorskip("setuptools")
    made = {"pure", "__pycache__", "fastsock.egg-info"}  # pure: the link
    files = {
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.is_file() and made.isdisjoint(path.parts)
    }
    command = ["setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    done = run(source, sys.executable, *command, "sdist", "--dist-dir", str(tmp_path), PATH="")
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    added = {name for name in names if "egg-info" in name} | {"PKG-INFO", "setup.cfg"}
    assert names - added == files - added


def test_what_is_installed(source: Path, tmp_path: Path) -> None:
    """The modules in Python, the types and the twin; no tests, no source of the extensions."""
    pytest.importorskip("setuptools")
    command = ["setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path / "lib")]
    done = run(source, sys.executable, *command)
    assert done.returncode == 0, done.stderr
    files = [path.relative_to(tmp_path / "lib") for path in (tmp_path / "lib").rglob("*.*")]
    assert {path.parts[0] for path in files} == {"fastsock"}
    assert {path.suffix for path in files} == {".py", ".pyi", ".typed"}
    assert Path("fastsock/pure/__main__.py") in files


USES = """
import fastsock
from fastsock import pure
assert "site-packages" in fastsock.__file__
for package in (fastsock, pure):
    with package.Server("tcp://127.0.0.1:0") as server:
        report = fastsock.load(server.endpoint, messages=1000, connections=4)
        assert report.messages == 1000
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["directory", "sdist", "wheel"])
def test_pip_install(source: Path, tmp_path: Path, form: str) -> None:
    """Into a new environment, and used from another directory."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTSOCK"))}

    def call(*command: str | Path) -> str:
        return subprocess.run(
            list(map(str, command)),
            check=True,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
        ).stdout

    bin_folder = tmp_path / "venv/bin"
    call(sys.executable, "-m", "venv", "venv")
    what = source
    if form != "directory":
        pytest.importorskip("build")
        call(sys.executable, "-m", "build", "--sdist", "--outdir", "sdist", source)
        (what,) = tmp_path.glob("sdist/*.tar.gz")
    if form == "wheel":
        call(bin_folder / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheel", what)
        (what,) = tmp_path.glob("wheel/*.whl")
    call(bin_folder / "pip", "install", "--quiet", what)
    python = bin_folder / "python"
    assert call(bin_folder / "fastsock", "--version") == call(python, "-m", "fastsock", "--version")
    assert "epoll" in call(bin_folder / "fastsock", "info")
    assert "serve" in call(python, "-m", "fastsock.pure", "--help")
    call(python, "-c", USES)
