"""Compile the transcoder; everything else about the project is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# Relative paths, because setuptools refuses absolute ones; it runs this file in its own folder.
SOURCES = sorted(Path("codec").glob("*.pyx"))

setup(
    ext_modules=cythonize(
        # -w: what a compiler says of generated C is for nobody who reads the build's output.
        [Extension(f"codec.{source.stem}", [str(source)], extra_compile_args=["-O3", "-w"]) for source in SOURCES],
        language_level=3,
        nthreads=2,
        quiet=True,
    )
)
