"""Build of llmos: four top-level folders installed as one import package, and the C core."""

from pathlib import Path

from setuptools import Extension, setup

FOLDERS = ("compiler", "passes", "runtime", "models")


def packages() -> list[str]:
    found = ["llmos"]
    for folder in FOLDERS:
        found += sorted("llmos." + str(init.parent).replace("/", ".") for init in Path(folder).rglob("__init__.py"))
    return found


setup(
    packages=packages(),
    package_dir={"llmos": "llmos", **{f"llmos.{folder}": folder for folder in FOLDERS}},
    package_data={
        "llmos": ["py.typed"],
        "llmos.runtime.native": ["include/llmos/*.h", "examples/*.c"],
        "llmos.runtime.server.rpc": ["*.proto"],
        "llmos.runtime.server.console": ["page.*"],
        "llmos.compiler.bench": ["*.c"],
    },
    # A plain shared library, loaded by ctypes and linked by C programs; it uses nothing of Python.
    ext_modules=[
        Extension(
            "llmos.runtime.native._core",
            sources=sorted(str(path) for path in Path("runtime/native").glob("*.c")),
            depends=sorted(str(path) for path in Path("runtime/native").rglob("*.h")),
            include_dirs=["runtime/native/include"],
            extra_compile_args=[
                "-std=c11",
                "-O2",
                "-g0",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Werror=implicit-function-declaration",
            ],
            # Never unloaded: its worker threads run as long as the process.
            extra_link_args=["-lpthread", "-ldl", "-Wl,-z,nodelete"],
        )
    ],
)
