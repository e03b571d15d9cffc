"""Native kernels: csrc/*.cpp -> one shared library with a C ABI, loaded with ctypes, linked against nothing of torch.

Each instruction level is a file of its own flags and is chosen at run time, so one library serves every processor of an
architecture. Without a C++ compiler the package installs all the same and computes with plain torch.
"""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

SOURCES = ("api", "scalar", "avx2", "avx512")
HEADERS = ("kernels", "common", "linear", "token", "avx512_linear", "avx512_few", "parallel")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DNDEBUG")
LEVELS = {
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16"),
}


def compiler() -> str:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        raise CompileError("no C++ compiler: the native kernels are left out and plain torch computes in their place")
    return found


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def build_object(cxx: str, source: str, out: Path) -> str:
    """Compile one file; a level that the processor's family or the compiler does not have becomes an empty one."""
    target, path = str(out / f"{Path(source).stem}.o"), Path(source)
    flags = LEVELS.get(path.stem, ())
    if flags and platform.machine().lower() in ("x86_64", "amd64"):
        try:
            run(cxx, *FLAGS, *flags, "-c", source, "-o", target)
        except CompileError as error:
            print(f"{path.name} is left out: {error}")
        else:
            return target
    run(cxx, *FLAGS, *(("-DABSENT",) if flags else ()), "-c", source, "-o", target)
    return target


class BuildLibrary(build_ext):
    """A plain shared library, not a Python module: its name carries no Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', os.sep)}.so"

    def build_extension(self, ext: Extension) -> None:
        cxx, out, target = compiler(), Path(self.build_temp), Path(self.get_ext_fullpath(ext.name))
        out.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: build_object(cxx, source, out), ext.sources))
        staged = target.with_suffix(".new")
        run(cxx, "-shared", *objects, "-o", str(staged))
        staged.replace(target)  # a library that is loaded keeps its file


class AnyPython(bdist_wheel):
    """One wheel serves every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


library: Any = Extension(
    "featherweight.kernels._native",
    [f"csrc/{name}.cpp" for name in SOURCES],
    depends=[f"csrc/{name}.h" for name in HEADERS],
    optional=True,
)
setup(ext_modules=[library], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython})
