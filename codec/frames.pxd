from libc.stdint cimport uint32_t, uint64_t

from codec.buffer cimport Reader, left, load32_little
from codec.layout cimport malformed

cdef enum:
    NONE = 0xFFFFFFFF  # as a length: there is no key, or no value

cdef inline int next_frame(Reader* reader, Reader* key, Reader* value) except -1:
    """Read one frame; a key or value that is not there gets NULL."""
    cdef uint32_t key_size, value_size
    cdef uint64_t size
    if left(reader) < 8:
        return malformed(b"a block ends inside a frame's head")
    key_size = load32_little(reader.at)
    value_size = load32_little(reader.at + 4)
    reader.at += 8
    size = <uint64_t>(0 if key_size == NONE else key_size) + (0 if value_size == NONE else value_size)
    if size > left(reader):
        return malformed(b"a block ends inside a record")
    key.at = NULL
    key.end = NULL
    value.at = NULL
    value.end = NULL
    if key_size != NONE:
        key.at = reader.at
        reader.at += key_size
        key.end = reader.at
    if value_size != NONE:
        value.at = reader.at
        reader.at += value_size
        value.end = reader.at
    return 0
