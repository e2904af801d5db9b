"""Inputs that are kept: a file for each target, an input in base64 on each line."""

import base64
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")


def read(target: str) -> list[bytes]:
    file = FOLDER / f"{target}.txt"
    return [base64.b64decode(line) for line in file.read_text().splitlines()] if file.exists() else []


def write(target: str, inputs: set[bytes]) -> None:
    lines = [base64.b64encode(data).decode() for data in sorted(inputs, key=lambda data: (len(data), data))]
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines))
