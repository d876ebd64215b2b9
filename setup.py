"""Build of the one compiled module, `samplicator._fastpath`, and (on request) of the test-only probe over its sources.

Environment: SAMPLICATOR_SANITIZE=1 builds with ASan and UBSan, SAMPLICATOR_MARCH=NAME passes -march=NAME (appliances
only; wheels stay baseline), SAMPLICATOR_INSIDE=1 builds the test extension `_inside`, too. Compiler warnings are
always errors.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("SAMPLICATOR_SANITIZE") == "1"
MARCH = os.environ.get("SAMPLICATOR_MARCH")
PROBE = os.environ.get("SAMPLICATOR_INSIDE") == "1"

cflags = [
    "-O3",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unused-parameter",
    # Cython's own generated helpers, not our code:
    "-Wno-missing-field-initializers",
    "-Wno-unused-function",
    "-Wno-cast-function-type",
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


extensions = [extension("samplicator._fastpath", "fastpath/_fastpath.pyx")]
if PROBE:
    extensions.append(extension("samplicator._inside", "tests/ext/_inside.pyx"))
    extensions.append(extension("samplicator._inside_flow", "tests/ext/_inside_flow.pyx", "FLOW_COUNT_STEPS"))

setup(
    ext_modules=cythonize(
        extensions,
        include_path=["fastpath"],
        build_dir="build/cython-asan" if SANITIZE else "build/cython",
        show_all_warnings=True,
        compiler_directives={
            "language_level": 3,
            "binding": True,
            "embedsignature": False,
            "freethreading_compatible": True,
        },
    ),
)
