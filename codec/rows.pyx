# cython: language_level=3, boundscheck=False, wraparound=False
"""Row records one at a time, as Python objects: for people, heals and tests, not for the hot path."""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport INT64_MAX, INT64_MIN, int64_t, uint8_t

from codec.buffer cimport *
from codec.layout cimport *
from codec.values cimport (
    Field,
    Head as RawHead,
    fields_of,
    get_head,
    get_prefix,
    get_unchanged,
    put_key_of,
    put_prefix,
    put_row,
    texts_of_key,
    texts_of_row,
)

from schemas.errors import DecodeError
from schemas.record import Op

Change = namedtuple(
    "Change", "op epoch position xid ordinal commit_time unchanged before after", module="codec.rows"
)
Head = namedtuple("Head", "schema_id op epoch position xid ordinal commit_time", module="codec.rows")


cdef object get_change(Layout layout, Reader* reader, uint8_t* flags, Buffer* scratch):
    cdef RawHead head
    cdef int i
    get_head(reader, &head)
    unchanged = ()
    if get_unchanged(layout, reader, flags):
        unchanged = tuple([i for i in range(layout.width) if flags[i]])
    before = texts_of_row(layout, reader, scratch) if get_branch(reader) else None
    after = texts_of_row(layout, reader, scratch) if get_branch(reader) else None
    return Change(
        Op(head.op), head.epoch, head.position, head.xid, head.ordinal, head.commit_time, unchanged, before, after
    )


cdef object get_changes(Layout layout, value, bint batch):
    cdef bytes whole = bytes(value)
    cdef Reader reader
    cdef Buffer scratch
    cdef int64_t items, size
    cdef uint8_t* flags
    scratch.data = NULL
    scratch.size = scratch.capacity = 0
    flags = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
    try:
        if flags == NULL:
            raise MemoryError
        reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
        reader.end = reader.at + PyBytes_GET_SIZE(whole)
        get_prefix(&reader, layout.id)
        if not batch:
            found = get_change(layout, &reader, flags, &scratch)
        else:
            found = []
            while True:
                get_long(&reader, &items)
                if items == 0:
                    break
                if items < 0:
                    get_long(&reader, &size)
                while items != 0:
                    items += 1 if items < 0 else -1
                    found.append(get_change(layout, &reader, flags, &scratch))
        if reader.at != reader.end:
            malformed(b"a record with bytes left over")
        return found
    finally:
        PyMem_RawFree(scratch.data)
        PyMem_RawFree(flags)


def decode(Layout layout not None, value):
    return get_changes(layout, value, False)


def decode_batch(Layout layout not None, value):
    return get_changes(layout, value, True)


def decode_key(Layout layout not None, key):
    cdef bytes whole = bytes(key)
    cdef Reader reader
    cdef Buffer scratch
    scratch.data = NULL
    scratch.size = scratch.capacity = 0
    try:
        reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
        reader.end = reader.at + PyBytes_GET_SIZE(whole)
        get_prefix(&reader, layout.id + 1)
        texts = texts_of_key(layout, &reader, &scratch)
        if reader.at != reader.end:
            malformed(b"a key with bytes left over")
        return texts
    finally:
        PyMem_RawFree(scratch.data)


def head(value):
    cdef bytes whole = bytes(value)
    cdef Reader reader
    cdef RawHead found
    reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
    reader.end = reader.at + PyBytes_GET_SIZE(whole)
    if left(&reader) < 5 or reader.at[0] != 0:
        malformed(b"a record without magic byte and schema id")
    schema_id = load32(reader.at + 1)
    reader.at += 5
    get_head(&reader, &found)
    return Head(
        schema_id, Op(found.op), found.epoch, found.position, found.xid, found.ordinal, found.commit_time
    )


def encode(Layout layout not None, change):
    cdef Buffer out
    cdef Field* fields
    cdef int op = change.op
    cdef int64_t number
    if op < OP_INSERT or op > OP_RESTART:
        raise ValueError(f"operation {op} does not exist")
    out.data = NULL
    out.size = out.capacity = 0
    fields = <Field*>PyMem_RawMalloc((layout.width + 1) * sizeof(Field))
    try:
        if fields == NULL:
            raise MemoryError
        key = None
        row = change.before if change.after is None else change.after
        if layout.key_width and row is not None:
            fields_of(layout, row, fields)
            put_key_of(layout, fields, &out)
            key = PyBytes_FromStringAndSize(<const char*>out.data, <Py_ssize_t>out.size)
            out.size = 0
        put_prefix(layout.id, &out)
        reserve(&out, 64)
        put_byte(&out, <uint8_t>(2 * op))
        for number in (change.epoch, change.position, change.xid, change.ordinal, change.commit_time):
            put_long(&out, number)
        if change.unchanged:
            reserve(&out, 16 + 10 * len(change.unchanged))
            put_long(&out, len(change.unchanged))
            for number in change.unchanged:
                if not 0 <= number < layout.width:
                    raise ValueError(f"column {number} does not exist")
                put_long(&out, number)
        put_byte(&out, 0)
        for row in (change.before, change.after):
            reserve(&out, 1)
            if row is None:
                put_byte(&out, 0)
            else:
                put_byte(&out, 2)
                fields_of(layout, row, fields)
                put_row(layout, fields, &out)
        return key, PyBytes_FromStringAndSize(<const char*>out.data, <Py_ssize_t>out.size)
    finally:
        PyMem_RawFree(fields)
        PyMem_RawFree(out.data)
