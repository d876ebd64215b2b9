"""Build of the one compiled module, `samplicator._fastpath`, and (on request) of the test-only probe over its sources.

Environment: SAMPLICATOR_SANITIZE=1 builds with ASan and UBSan, SAMPLICATOR_MARCH=NAME passes -march=NAME (appliances
only; wheels stay baseline), SAMPLICATOR_INSIDE=1 builds the test extension `_inside`, too. Compiler warnings are
always errors.

What is built does not depend on where the tree is: two wheels of the same sources are equal byte for byte if
SOURCE_DATE_EPOCH is set.
"""

import os
import re
import shutil
import subprocess
import tomllib
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SANITIZE = os.environ.get("SAMPLICATOR_SANITIZE") == "1"
MARCH = os.environ.get("SAMPLICATOR_MARCH")
PROBE = os.environ.get("SAMPLICATOR_INSIDE") == "1"

TOP = Path(__file__).resolve().parent

cflags = [
    "-O3",
    f"-ffile-prefix-map={TOP}=.",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    # Cython's own generated helpers, not our code:
    "-Wno-missing-field-initializers",
    "-Wno-unused-function",
    "-Wno-cast-function-type",
    # Nobody reads how generated code is indented, and to look at it takes gcc 14 a third of its time:
    "-Wno-misleading-indentation",
]
ldflags: list[str] = []
if SANITIZE:
    cflags += ["-O1", "-g", "-fno-omit-frame-pointer"]
    cflags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    # no vptr or alignment games in Cython's object code: -Werror stays, its sanitizer-only false alarms do not
    cflags += ["-Wno-maybe-uninitialized", "-Wno-stringop-overflow"]
    ldflags += ["-fsanitize=address,undefined"]
if MARCH:
    cflags.append(f"-march={MARCH}")

depends = sorted(p for kind in ("pxd", "pxi", "h") for p in glob(f"fastpath/**/*.{kind}", recursive=True))


def extension(name: str, source: str, *macros: str) -> Extension:
    return Extension(
        name,
        [source],
        include_dirs=["fastpath"],
        depends=depends,
        define_macros=[(macro, "1") for macro in macros],
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


def index_readme() -> str:
    """README.md with absolute links: what is relative in a checkout leads nowhere on a package index."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository, tag = project["urls"]["Repository"], f"v{project['version']}"
    raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")

    def absolute(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        base = f"{raw}/{tag}" if picture else f"{repository}/blob/{tag}"
        return f"{picture}[{text}]({base}/{target})"

    readme = (TOP / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", absolute, readme)
    return re.sub(r'((?:src|srcset)=")(?![a-z]+:)([^"]+")', rf"\g<1>{raw}/{tag}/\g<2>", readme)


extensions = [extension("samplicator._fastpath", "fastpath/_fastpath.pyx")]
if PROBE:
    extensions.append(extension("samplicator._inside", "tests/ext/_inside.pyx"))
    extensions.append(extension("samplicator._inside_flow", "tests/ext/_inside_flow.pyx", "FLOW_COUNT_STEPS"))


class Build(build_ext):
    """Runs Cython when something is compiled: an sdist and the metadata need neither Cython nor its seconds."""

    def build_extensions(self) -> None:
        translated = cythonize(
            self.extensions,
            include_path=["fastpath"],
            build_dir="build/cython-asan" if SANITIZE else "build/cython",
            show_all_warnings=True,
            compiler_directives={
                "language_level": 3,
                "binding": True,
                "embedsignature": False,
                "freethreading_compatible": True,
            },
        )
        for given, made in zip(self.extensions, translated, strict=True):
            given.sources = made.sources
        self.compile_bpf(Path(self.build_lib))
        self.parallel = self.parallel or len(os.sched_getaffinity(0))
        super().build_extensions()

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        self.compile_bpf(TOP / "pysrc")

    def compile_bpf(self, library: Path) -> None:
        """The programs for the kernel, where there is a compiler for them; without, samplicator says so when asked."""
        if not shutil.which("clang"):
            print("no clang here: built without BPF programs")
            return
        machine = subprocess.run(["cc", "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
        for source in glob("fastpath/bpf/*.bpf.c"):
            out = library / "samplicator" / "bpf" / Path(source).with_suffix(".o").name
            out.parent.mkdir(parents=True, exist_ok=True)
            words = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror"]
            words += ["-fno-strict-aliasing"]
            words += [f"-ffile-prefix-map={TOP}=.", "-fdebug-compilation-dir=.", f"-I/usr/include/{machine}"]
            subprocess.run([*words, "-c", source, "-o", str(out)], check=True)


setup(
    long_description=index_readme(),
    long_description_content_type="text/markdown",
    ext_modules=extensions,
    cmdclass={"build_ext": Build},
)
