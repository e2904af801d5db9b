"""`python -m tests.fuzz`: fuzz every decoder with atheris, the transcoder under AddressSanitizer.

Atheris sees what Python code runs by itself. For the transcoder's extensions it wants clang; here GCC compiles them,
and `coverage.c` translates. Fuzzers go on with what they found before, in `.cache/fuzz`. An input on which a decoder
fails is put to those that `make test` reads, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

from control.servers.process import cache_folder
from tests.fuzz import kept
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
IN_PYTHON = frozenset({"control", "pipeline"})
LONGEST = 4096
KEEP = 80  # inputs of each target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(TARGETS)}; all without")
    parser.add_argument("--seconds", type=int, default=30, help="for each of them")
    parser.add_argument(
        "--keep", action="store_true", help="write some of the inputs to the corpus that `make test` reads"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    cache = cache_folder("fuzz")
    built = build(cache)
    failed = [target for target in options.targets or TARGETS if not fuzz(target, cache, built, options.seconds)]
    if options.keep:
        for target in set(options.targets or TARGETS) - set(failed):
            keep(target, cache)
    print("failed: " + ", ".join(failed) if failed else "nothing found")
    return 1 if failed else 0


def build(cache: Path) -> Path:
    """Compile the transcoder with coverage and sanitizers, beside the ordinary one; return its folder."""
    shim = cache / "coverage.o"
    source = Path(__file__).with_name("coverage.c")
    subprocess.run(["gcc", "-O2", "-fPIC", "-c", str(source), "-o", str(shim)], check=True)
    sanitizers = "-fsanitize=address,undefined"
    environment = {
        **os.environ,
        "CFLAGS": f"-fsanitize-coverage=trace-pc,trace-cmp {sanitizers} -fno-omit-frame-pointer -g1",
        "LDFLAGS": f"{shim} {sanitizers}",
    }
    places = [f"--build-lib={cache / 'lib'}", f"--build-temp={cache / 'temp'}"]
    command = [sys.executable, "setup.py", "-q", "build_ext", *places]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return cache / "lib" / "codec"


def fuzz(target: str, cache: Path, built: Path, seconds: int) -> bool:
    """Run one fuzzer; return whether it found nothing."""
    corpus, found = cache / "corpus" / target, cache / "found" / target
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    inputs = kept.read(target)
    for data in inputs:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    before = set(found.iterdir())
    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10", "-rss_limit_mb=4096"]
    done = _child(target, built, *limits, f"-artifact_prefix={found}/", str(corpus))
    new = set(found.iterdir()) - before
    print(f"{target}: {_last(done, 'DONE') or done[-4000:]}")
    if new:
        print("\n".join(f"  {path}" for path in sorted(new)))
        kept.write(target, {*inputs, *(path.read_bytes() for path in new)})
    return not new and _last(done, "DONE") != ""


def keep(target: str, cache: Path) -> None:
    """Write down some of what the fuzzer has found to reach new code, short and long ones alike."""
    found = sorted((path.read_bytes() for path in (cache / "corpus" / target).iterdir()), key=len)
    kept.write(target, set(found[:: -(-len(found) // KEEP)]))


def _child(target: str, built: Path, *arguments: str) -> str:
    """Run a fuzzer and return what it said."""
    environment = {**os.environ}
    if target not in IN_PYTHON:
        libraries = ("libasan.so", "libubsan.so", "libstdc++.so")
        ask = [["gcc", f"-print-file-name={library}"] for library in libraries]
        preload = [subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip() for line in ask]
        environment |= {
            "LD_PRELOAD": " ".join(preload),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it has
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        }
    folder = "-" if target in IN_PYTHON else str(built)
    command = [sys.executable, "-m", "tests.fuzz.child", target, folder, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def _last(output: str, word: str) -> str:
    """Return the last line of libFuzzer's that has this word."""
    return next((line.strip() for line in reversed(output.splitlines()) if word in line), "")


if __name__ == "__main__":
    sys.exit(main())
