"""One fuzzer: `python -m tests.fuzz.child TARGET FOLDER ARGUMENT...`, the last ones being libFuzzer's.

FOLDER holds the instrumented transcoder; `-` stands for none, and for coverage of Python's code instead.
"""

import ctypes
import sys
from pathlib import Path

import atheris


def main() -> None:
    _, name, folder, *arguments = sys.argv
    if folder == "-":
        with atheris.instrument_imports(include=["schemas"]):
            from tests.fuzz.targets import TARGETS
    else:
        _use_instrumented(Path(folder))
        from tests.fuzz.targets import TARGETS
    atheris.Setup([name, *arguments], TARGETS[name])
    atheris.Fuzz()


def _use_instrumented(folder: Path) -> None:
    """Let the transcoder be imported from there, and tell the fuzzer of its counters."""
    import codec

    codec.__path__.insert(0, str(folder))
    (library,) = Path(atheris.__file__).parent.glob("core_with_libfuzzer.*.so")
    fuzzer = ctypes.CDLL(str(library))
    for extension in sorted(folder.glob("*.so")):
        ctypes.CDLL(str(extension)).attach(ctypes.c_void_p(fuzzer._handle))


if __name__ == "__main__":
    main()
