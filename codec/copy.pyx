# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""COPY of PostgreSQL, text and binary, to batches and back."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp

from codec.buffer cimport *
from codec.layout cimport *
from codec.values cimport (
    Field,
    Head,
    copy_row,
    fields_of,
    get_head,
    get_prefix,
    get_unchanged,
    put_row,
    skip_row,
)

from schemas.errors import DecodeError

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

cdef bytes SIGNATURE = b"PGCOPY\n\xff\r\n\0"

cdef enum:
    AT_HEADER = 0
    AT_ROWS = 1
    AT_END = 2

# Operation READ, five zeros, no unchanged columns, no row before, a row after.
cdef const char* READ_HEAD = b"\x08\0\0\0\0\0\0\0\x02"
cdef size_t READ_HEAD_SIZE = 9


cdef bytes batch_of(Layout layout, size_t rows, Buffer* records):
    """One batch value of records in Avro."""
    cdef uint8_t room[32]
    cdef Buffer head
    cdef uint8_t* at
    head.data = room
    head.capacity = sizeof(room)
    head.size = 0
    put_byte(&head, 0)
    put32(&head, layout.id)
    if rows:
        put_long(&head, <int64_t>rows)
    value = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(head.size + records.size + 1))
    at = <uint8_t*>PyBytes_AS_STRING(value)
    memcpy(at, room, head.size)
    if records.size:
        memcpy(at + head.size, records.data, records.size)
    at[head.size + records.size] = 0
    return value


@cython.final
cdef class CopyDecoder:
    cdef readonly Layout layout
    cdef readonly bint binary
    cdef size_t all_rows, new_rows
    cdef int state
    cdef Field* fields
    cdef Buffer out
    cdef Buffer scratch

    def __cinit__(self, Layout layout not None, *, bint binary):
        self.layout = layout
        self.binary = binary
        self.state = AT_HEADER if binary else AT_ROWS
        self.fields = <Field*>PyMem_RawMalloc((layout.width + 1) * sizeof(Field))
        if self.fields == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_RawFree(self.fields)
        PyMem_RawFree(self.out.data)
        PyMem_RawFree(self.scratch.data)

    def feed(self, data):
        cdef Py_buffer view
        cdef Reader reader
        if type(data) is bytes:
            reader.at = <const uint8_t*>PyBytes_AS_STRING(data)
            reader.end = reader.at + PyBytes_GET_SIZE(data)
            self.decode(&reader)
            return self.out.size
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            reader.at = <const uint8_t*>view.buf
            reader.end = reader.at + view.len
            self.decode(&reader)
        finally:
            PyBuffer_Release(&view)
        return self.out.size

    cdef int decode(self, Reader* reader) except -1:
        cdef size_t start
        if self.state == AT_HEADER and reader.at < reader.end:
            self.get_header(reader)
        while reader.at < reader.end:
            start = self.out.size
            try:
                if self.binary:
                    if not self.get_binary(reader):
                        return 0
                else:
                    self.get_text(reader)
                append(&self.out, READ_HEAD, READ_HEAD_SIZE)
                put_row(self.layout, self.fields, &self.out)
            except:
                self.out.size = start
                raise
            self.new_rows += 1
            self.all_rows += 1
        return 0

    cdef int get_header(self, Reader* reader) except -1:
        cdef uint32_t flags, extension
        if left(reader) < 19 or memcmp(reader.at, PyBytes_AS_STRING(SIGNATURE), 11) != 0:
            return malformed(b"a binary COPY without its header")
        flags = load32(reader.at + 11)
        extension = load32(reader.at + 15)
        reader.at += 19
        if flags != 0:
            return malformed(b"a binary COPY with unknown flags")
        if extension > left(reader):
            return malformed(b"a binary COPY with a header that is cut off")
        reader.at += extension
        self.state = AT_ROWS
        return 0

    cdef int get_binary(self, Reader* reader) except -1:
        """Read one row into the fields; 0 at the trailer."""
        cdef int i, width = self.layout.width
        cdef uint32_t size
        cdef int count
        if self.state == AT_END:
            return malformed(b"a binary COPY that goes on behind its trailer")
        if left(reader) < 2:
            return malformed(b"a COPY row that is cut off")
        count = <int16_t>load16(reader.at)
        reader.at += 2
        if count == -1:
            if reader.at != reader.end:
                return malformed(b"a binary COPY that goes on behind its trailer")
            self.state = AT_END
            return 0
        if count != width:
            raise DecodeError(f"a COPY row of {count} columns for a table of {width}")
        for i in range(width):
            if left(reader) < 4:
                return malformed(b"a COPY row that is cut off")
            size = load32(reader.at)
            reader.at += 4
            if size == <uint32_t>0xFFFFFFFF:
                self.fields[i].tag = 110
                continue
            if size > left(reader):
                return malformed(b"a COPY row that is cut off")
            self.fields[i].tag = 98
            self.fields[i].data = reader.at
            self.fields[i].size = size
            reader.at += size
        return 1

    cdef int get_text(self, Reader* reader) except -1:
        cdef const uint8_t* end
        cdef const uint8_t* stop
        cdef const uint8_t* at = reader.at
        cdef int i, width = self.layout.width
        cdef Field* field
        end = <const uint8_t*>memchr(reader.at, 10, left(reader))
        if end == NULL:
            return malformed(b"a COPY row that is cut off")
        reader.at = end + 1
        if width == 0:
            if at != end:
                return malformed(b"a COPY row of columns for a table without any")
            return 0
        # Unescaped text is never longer, so the scratch does not move under the fields that point into it.
        self.scratch.size = 0
        reserve(&self.scratch, end - at + 1)
        for i in range(width):
            stop = <const uint8_t*>memchr(at, 9, end - at) if at < end else NULL
            if i == width - 1:
                if stop != NULL:
                    return malformed(b"a COPY row with more columns than its table")
                stop = end
            elif stop == NULL:
                return malformed(b"a COPY row with fewer columns than its table")
            field = &self.fields[i]
            if stop - at == 2 and at[0] == 92 and at[1] == 78:
                field.tag = 110
            else:
                field.tag = 116
                field.data = at
                field.size = stop - at
                if at < stop and memchr(at, 92, stop - at) != NULL:
                    self.unescape(field)
            at = stop + 1
        return 0

    cdef int unescape(self, Field* field) except -1:
        cdef const uint8_t* at = field.data
        cdef const uint8_t* end = at + field.size
        cdef uint8_t byte
        cdef uint8_t* start = self.scratch.data + self.scratch.size
        while at < end:
            byte = at[0]
            at += 1
            if byte == 92:
                if at == end:
                    return malformed(b"a COPY text that ends in an escape")
                byte = at[0]
                at += 1
                if byte == 110:
                    byte = 10
                elif byte == 116:
                    byte = 9
                elif byte == 114:
                    byte = 13
                elif byte == 98:
                    byte = 8
                elif byte == 102:
                    byte = 12
                elif byte == 118:
                    byte = 11
                elif byte != 92:
                    return malformed(b"a COPY text with an unknown escape")
            put_byte(&self.scratch, byte)
        field.data = start
        field.size = self.scratch.data + self.scratch.size - start
        return 0

    @property
    def rows(self):
        return self.all_rows

    @property
    def pending_rows(self):
        return self.new_rows

    @property
    def pending_bytes(self):
        return self.out.size

    @property
    def finished(self):
        return self.state == AT_END

    def take(self):
        value = batch_of(self.layout, self.new_rows, &self.out)
        self.out.size = 0
        self.new_rows = 0
        return value


def load_rows(Layout layout not None, value, *, bint binary):
    cdef bytes whole = bytes(value)
    cdef Reader reader
    cdef Head head
    cdef Buffer out
    cdef int64_t rows, size
    cdef uint8_t* flags = NULL
    binary = binary and layout.binary
    reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
    reader.end = reader.at + PyBytes_GET_SIZE(whole)
    out.data = NULL
    out.size = out.capacity = 0
    try:
        get_prefix(&reader, layout.id)
        flags = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
        if flags == NULL:
            raise MemoryError
        reserve(&out, left(&reader) + 64)
        while True:
            get_long(&reader, &rows)
            if rows == 0:
                break
            if rows < 0:
                get_long(&reader, &size)
            while rows != 0:
                rows += 1 if rows < 0 else -1
                if left(&reader) > READ_HEAD_SIZE and memcmp(reader.at, READ_HEAD, READ_HEAD_SIZE) == 0:
                    reader.at += READ_HEAD_SIZE
                else:
                    get_head(&reader, &head)
                    if get_unchanged(layout, &reader, flags):
                        malformed(b"a row of a load with unchanged columns")
                    if get_branch(&reader):
                        skip_row(layout, &reader)
                    if get_branch(&reader) == 0:
                        malformed(b"a row of a load that is not there")
                copy_row(layout, &reader, NULL, NULL, binary, &out)
        if reader.at != reader.end:
            malformed(b"a batch with bytes left over")
        return PyBytes_FromStringAndSize(<const char*>out.data, <Py_ssize_t>out.size)
    finally:
        PyMem_RawFree(out.data)
        PyMem_RawFree(flags)


def encode_batch(Layout layout not None, rows):
    cdef Buffer out
    cdef Field* fields
    cdef size_t count = 0
    cdef int op
    fields = <Field*>PyMem_RawMalloc((layout.width + 1) * sizeof(Field))
    out.data = NULL
    out.size = out.capacity = 0
    try:
        if fields == NULL:
            raise MemoryError
        for operation, before, after in rows:
            op = operation
            if op < OP_INSERT or op > OP_READ:
                raise ValueError(f"operation {op} does not exist")
            reserve(&out, 16)
            put_byte(&out, <uint8_t>(2 * op))
            put(&out, b"\0\0\0\0\0\0", 6)
            for row in (before, after):
                reserve(&out, 1)
                if row is None:
                    put_byte(&out, 0)
                else:
                    put_byte(&out, 2)
                    fields_of(layout, row, fields)
                    put_row(layout, fields, &out)
            count += 1
        return batch_of(layout, count, &out)
    finally:
        PyMem_RawFree(fields)
        PyMem_RawFree(out.data)
