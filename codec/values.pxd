from libc.stdint cimport int64_t, uint8_t, uint32_t

from codec.buffer cimport Buffer, Reader
from codec.layout cimport Layout


cdef struct Field:
    uint8_t tag  # as in pgoutput: n null, u unchanged, t text, b binary
    const uint8_t* data
    size_t size


cdef struct Head:
    int64_t op
    int64_t epoch
    int64_t position
    int64_t xid
    int64_t ordinal
    int64_t commit_time


cdef int put_row(Layout layout, const Field* fields, Buffer* out) except -1
cdef int put_key_of(Layout layout, const Field* fields, Buffer* out) except -1
cdef int put_prefix(uint32_t schema_id, Buffer* out) except -1
cdef int fields_of(Layout layout, object row, Field* fields) except -1

cdef int get_prefix(Reader* reader, uint32_t schema_id) except -1
cdef int get_head(Reader* reader, Head* head) except -1
cdef int get_unchanged(Layout layout, Reader* reader, uint8_t* flags) except -1
cdef int skip_row(Layout layout, Reader* reader) except -1
cdef int skip_value(int kind, Reader* reader) except -1
cdef int key_of_row(Layout layout, Reader* reader, Buffer* out) except -1

cdef int copy_row(Layout layout, Reader* reader, const uint8_t* blank, Reader* key, bint binary, Buffer* out) except -1
cdef int copy_key(Layout layout, Reader* key, bint binary, Buffer* out) except -1
cdef tuple texts_of_row(Layout layout, Reader* reader, Buffer* scratch)
cdef tuple texts_of_key(Layout layout, Reader* reader, Buffer* scratch)
