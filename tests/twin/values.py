"""Values: canonical text to what Avro carries, to Avro bytes and to PostgreSQL's binary form."""

import datetime
import math
import re
import struct
import uuid
from decimal import Decimal
from fractions import Fraction

from schemas.types import Kind

INT32_MAX, INT32_MIN = 2**31 - 1, -(2**31)
INT64_MAX, INT64_MIN = 2**63 - 1, -(2**63)
CYCLE_DAYS, CYCLE_YEARS = 146097, 400
EPOCH = datetime.date(1970, 1, 1).toordinal()
FROM_1970_TO_2000 = 10957
DAY = 86400 * 1000000

Native = bool | int | float | bytes | str


def days_of(text: str) -> int:
    """Days since 1970 of an ISO date of any year, by moving it into Python's range in cycles of 400 years."""
    before_christ = text.endswith(" BC")
    year, month, day = text.removesuffix(" BC").split("-")
    number = 1 - int(year) if before_christ else int(year)
    cycles = number // CYCLE_YEARS - 5
    moved = datetime.date(number - cycles * CYCLE_YEARS, int(month), int(day))
    return moved.toordinal() - EPOCH + cycles * CYCLE_DAYS


def date_text(days: int) -> str:
    cycles = days // CYCLE_DAYS
    moved = datetime.date(1970, 1, 1) + datetime.timedelta(days - cycles * CYCLE_DAYS)
    year = moved.year + cycles * CYCLE_YEARS
    text = f"{year if year > 0 else 1 - year:04d}-{moved.month:02d}-{moved.day:02d}"
    return text if year > 0 else f"{text} BC"


def clock_micros(text: str) -> int:
    found = re.fullmatch(r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?", text)
    assert found
    hours, minutes, seconds, fraction = found.groups()
    return (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1000000 + int((fraction or "").ljust(6, "0"))


def clock_text(micros: int) -> str:
    seconds, fraction = divmod(micros, 1000000)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{fraction:06d}".rstrip("0") if fraction else text


def timestamp_micros(text: str) -> int:
    found = re.fullmatch(r"(\d+-\d\d-\d\d) ([\d:.]+?)(?:([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?)?( BC)?", text)
    assert found
    day, clock, sign, hours, minutes, seconds, era = found.groups()
    offset = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
    if sign == "-":
        offset = -offset
    return days_of(day + (era or "")) * DAY + clock_micros(clock) - offset * 1000000


def timestamp_text(micros: int, zone: str) -> str:
    days, clock = divmod(micros, DAY)
    day = date_text(days)
    era = " BC" if day.endswith(" BC") else ""
    return f"{day.removesuffix(' BC')} {clock_text(clock)}{zone}{era}"


def carried(micros: int) -> int:
    """What a record holds of a moment: those that 64 bits can't hold lie behind both infinities, from below."""
    return micros if micros < INT64_MAX else micros - 2**64 + 2


def single(value: float) -> float:
    """The float of 32 bits next to a double, as a double."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def nearest_single(text: str) -> float:
    """The float of 32 bits next to a decimal number, without a double in between."""
    exact = Fraction(text)
    bits = struct.unpack("<I", struct.pack("<f", float(exact)))[0]
    near = [struct.unpack("<f", struct.pack("<I", bits + step))[0] for step in (-1, 0, 1) if 0 <= bits + step < 2**32]
    finite = [value for value in near if abs(value) < float("inf")]
    return float(
        min(finite, key=lambda v: (abs(Fraction(v) - exact), struct.unpack("<I", struct.pack("<f", v))[0] & 1))
    )


def float_text(value: float, narrow: bool) -> str:
    """The shortest decimal that reads back equal, plain from 1e-4 up to 6 (narrow) or 15 places, else with exponent."""
    if math.isnan(value):
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.17e}"
    if narrow:
        for places in range(9):
            text = f"{value:.{places}e}"
            if places == 8 or single(float(text)) == value:
                break
    else:
        text = repr(value)
    number = Decimal(text)
    digits = "".join(map(str, number.as_tuple().digits)).rstrip("0")
    sign = "-" if number.is_signed() else ""
    if not digits:
        return f"{sign}0"
    exponent = number.adjusted()
    if -4 <= exponent < (6 if narrow else 15):
        plain = f"{abs(number):f}"
        return sign + (plain.rstrip("0").rstrip(".") if "." in plain else plain)
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"


def native(kind: int, text: str) -> Native:
    """What an Avro reader gets to see of a value."""
    if kind == Kind.BOOL:
        return text == "t"
    if kind in (Kind.INT16, Kind.INT32, Kind.INT64):
        return int(text)
    if kind == Kind.FLOAT64:
        return float(text)
    if kind == Kind.FLOAT32:
        return nearest_single(text) if text.strip("-") not in ("NaN", "Infinity") and float(text) else float(text)
    if kind == Kind.DATE:
        return {"infinity": INT32_MAX, "-infinity": INT32_MIN}.get(text) or days_of(text)
    if kind == Kind.TIME:
        return clock_micros(text)
    if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        return {"infinity": INT64_MAX, "-infinity": INT64_MIN}.get(text) or carried(timestamp_micros(text))
    if kind == Kind.BYTES:
        return bytes.fromhex(text.removeprefix("\\x"))
    return text


def long(number: int) -> bytes:
    """An integer in Avro."""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def avro(kind: int, text: str) -> bytes:
    """A value in Avro."""
    value = native(kind, text)
    if isinstance(value, bool):
        return b"\x01" if value else b"\x00"
    if isinstance(value, int):
        return long(value)
    if isinstance(value, float):
        return struct.pack("<f" if kind == Kind.FLOAT32 else "<d", value)
    data = value.encode() if isinstance(value, str) else value
    return long(len(data)) + data


def numeric_binary(text: str) -> bytes:
    special = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}.get(text)
    if special is not None:
        return struct.pack(">hhHH", 0, 0, special, 0)
    negative = text.startswith("-")
    whole, _, fraction = text.removeprefix("-").partition(".")
    scale = len(fraction)
    whole = whole.lstrip("0")
    whole = whole.zfill(-(-len(whole) // 4) * 4)
    fraction = fraction.ljust(-(-scale // 4) * 4, "0")
    both = whole + fraction
    groups = [int(both[i : i + 4]) for i in range(0, len(both), 4)]
    weight = len(whole) // 4 - 1
    while groups and not groups[0]:
        groups.pop(0)
        weight -= 1
    while groups and not groups[-1]:
        groups.pop()
    if not groups:
        return struct.pack(">hhHH", 0, 0, 0, scale)
    return struct.pack(f">hhHH{len(groups)}H", len(groups), weight, 0x4000 if negative else 0, scale, *groups)


def binary(kind: int, text: str) -> bytes:
    """A value in PostgreSQL's binary form; text for a type that has none here."""
    value = native(kind, text)
    if kind == Kind.BOOL:
        return b"\x01" if value else b"\x00"
    if kind == Kind.NUMERIC:
        return numeric_binary(text)
    if kind == Kind.UUID:
        return uuid.UUID(text).bytes
    if kind == Kind.JSONB:
        return b"\x01" + text.encode()
    if kind == Kind.FLOAT32:
        return struct.pack(">f", value)
    if kind == Kind.FLOAT64:
        return struct.pack(">d", value)
    if isinstance(value, int):
        if kind == Kind.DATE and value not in (INT32_MAX, INT32_MIN):
            value -= FROM_1970_TO_2000
        if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ) and value not in (INT64_MAX, INT64_MIN):
            value = timestamp_micros(text) - FROM_1970_TO_2000 * DAY
        size = {Kind.INT16: 2, Kind.INT32: 4, Kind.DATE: 4}.get(Kind(kind), 8)
        return value.to_bytes(size, "big", signed=True)
    return value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[arg-type]
