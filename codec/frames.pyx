# cython: language_level=3, boundscheck=False, wraparound=False
"""Framed blocks: records of the log one after the other.

Frame: u32 little-endian length of the key, the same of the value (0xFFFFFFFF: there is none), key, value.
"""

import io

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from codec.buffer cimport *
from codec.layout cimport malformed

Record = tuple[bytes | None, bytes | None]


def pack(records):
    cdef list parts = []
    cdef size_t total = 0
    cdef uint8_t* at
    for key, value in records:
        if (key is not None and len(key) >= NONE) or (value is not None and len(value) >= NONE):
            raise ValueError("a record of 4 GiB or more")
        parts.append((None if key is None else bytes(key), None if value is None else bytes(value)))
        total += 8 + (0 if key is None else len(key)) + (0 if value is None else len(value))
    block = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>total)
    at = <uint8_t*>PyBytes_AS_STRING(block)
    for key, value in parts:
        store32_little(at, NONE if key is None else <uint32_t>PyBytes_GET_SIZE(key))
        store32_little(at + 4, NONE if value is None else <uint32_t>PyBytes_GET_SIZE(value))
        at += 8
        if key is not None:
            memcpy(at, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            at += PyBytes_GET_SIZE(key)
        if value is not None:
            memcpy(at, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
            at += PyBytes_GET_SIZE(value)
    return block


def pack_parts(key, parts):
    cdef size_t before, size
    frame = io.BytesIO()  # hands its buffer over, where joining a list would hold everything twice
    before = frame.write(pack([(key, b"")]))
    for part in parts:
        frame.write(part)
    size = frame.tell() - before
    if size >= NONE:
        raise ValueError("a record of 4 GiB or more")
    frame.seek(4)
    frame.write(int(size).to_bytes(4, "little"))
    return frame.getvalue()


cdef inline void start_reading(bytes block, Reader* reader) noexcept:
    reader.at = <const uint8_t*>PyBytes_AS_STRING(block)
    reader.end = reader.at + PyBytes_GET_SIZE(block)


cdef inline object piece(Reader* part):
    if part.at == NULL:
        return None
    return PyBytes_FromStringAndSize(<const char*>part.at, part.end - part.at)


def unpack(data):
    cdef Reader reader, key = Reader(NULL, NULL), value = Reader(NULL, NULL)
    cdef bytes block
    cdef list records = []
    block = bytes(data)
    start_reading(block, &reader)
    while reader.at < reader.end:
        next_frame(&reader, &key, &value)
        records.append((piece(&key), piece(&value)))
    return records


def views(bytes block not None):
    cdef Reader reader, key = Reader(NULL, NULL), value = Reader(NULL, NULL)
    cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(block)
    cdef list records = []
    whole = memoryview(block)
    start_reading(block, &reader)
    while reader.at < reader.end:
        next_frame(&reader, &key, &value)
        records.append((piece(&key), None if value.at == NULL else whole[value.at - start : value.end - start]))
    return records


def count(data):
    cdef Reader reader, key = Reader(NULL, NULL), value = Reader(NULL, NULL)
    cdef bytes block
    cdef Py_ssize_t records = 0
    block = bytes(data)
    start_reading(block, &reader)
    while reader.at < reader.end:
        next_frame(&reader, &key, &value)
        records += 1
    return records


def cut(data, Py_ssize_t skip, Py_ssize_t take):
    cdef Reader reader, key = Reader(NULL, NULL), value = Reader(NULL, NULL)
    cdef bytes block
    cdef const uint8_t* start
    if skip < 0 or take < 0:
        raise ValueError("skip and take are counts")
    block = bytes(data)
    start_reading(block, &reader)
    while skip > 0:
        next_frame(&reader, &key, &value)
        skip -= 1
    start = reader.at
    while take > 0:
        next_frame(&reader, &key, &value)
        take -= 1
    return PyBytes_FromStringAndSize(<const char*>start, reader.at - start)


def schema_ids(data):
    cdef Reader reader, key = Reader(NULL, NULL), value = Reader(NULL, NULL)
    cdef bytes block
    cdef uint32_t last = 0
    cdef bint any_seen = False
    cdef set ids = set()
    block = bytes(data)
    start_reading(block, &reader)
    while reader.at < reader.end:
        next_frame(&reader, &key, &value)
        if value.at == NULL:
            continue
        if left(&value) < 5 or value.at[0] != 0:
            malformed(b"a record without magic byte and schema id")
        if not any_seen or load32(value.at + 1) != last:
            last = load32(value.at + 1)
            any_seen = True
            ids.add(last)
    return ids
