# cython: language_level=3, boundscheck=False, wraparound=False
"""Records with some of their columns only."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memset

from codec.buffer cimport *
from codec.frames cimport NONE, next_frame
from codec.layout cimport *
from codec.values cimport Head, get_head, get_prefix, get_unchanged, put_prefix, skip_value


cdef class Narrow:
    cdef readonly Layout layout
    cdef readonly Layout narrow
    cdef uint8_t* kept  # one flag a column
    cdef uint8_t* flags
    cdef Buffer out

    def __cinit__(self, Layout layout not None, places):
        cdef int i
        chosen = sorted({int(place) for place in places})
        if any(not 0 <= place < layout.width for place in chosen):
            raise ValueError(f"columns {chosen} do not fit {layout.width} columns")
        if any(place not in chosen for place in layout.key):
            raise ValueError("a key can't do without one of its columns")
        self.layout = layout
        self.narrow = Layout(
            layout.schema_id,
            [layout.kinds[place] for place in chosen],
            [chosen.index(place) for place in layout.key],
        )
        self.kept = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
        self.flags = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
        if self.kept == NULL or self.flags == NULL:
            raise MemoryError
        for i in range(layout.width):
            self.kept[i] = i in chosen

    def __dealloc__(self):
        PyMem_RawFree(self.kept)
        PyMem_RawFree(self.flags)
        PyMem_RawFree(self.out.data)

    def block(self, data):
        cdef bytes whole = bytes(data)
        cdef Reader reader, key, value
        cdef size_t frame
        reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
        reader.end = reader.at + PyBytes_GET_SIZE(whole)
        self.out.size = 0
        reserve(&self.out, left(&reader) + 64)
        while reader.at < reader.end:
            frame = self.out.size
            next_frame(&reader, &key, &value)
            self.out.size += 8
            store32_little(self.out.data + frame, NONE)
            store32_little(self.out.data + frame + 4, NONE)
            if key.at != NULL:
                put(&self.out, key.at, left(&key))
                store32_little(self.out.data + frame, <uint32_t>left(&key))
            if value.at == NULL:
                continue
            if left(&value) < 5 or load32(value.at + 1) != self.layout.id:
                put(&self.out, value.at, left(&value))
                store32_little(self.out.data + frame + 4, <uint32_t>left(&value))
                continue
            start = self.out.size
            get_prefix(&value, self.layout.id)
            put_prefix(self.layout.id, &self.out)
            self.record(&value)
            if value.at != value.end:
                malformed(b"a record with bytes left over")
            store32_little(self.out.data + frame + 4, <uint32_t>(self.out.size - start))
        return PyBytes_FromStringAndSize(<const char*>self.out.data, <Py_ssize_t>self.out.size)

    def batch(self, value):
        cdef bytes whole = bytes(value)
        cdef Reader reader
        cdef int64_t rows, size
        reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
        reader.end = reader.at + PyBytes_GET_SIZE(whole)
        self.out.size = 0
        reserve(&self.out, left(&reader) + 64)
        get_prefix(&reader, self.layout.id)
        put_prefix(self.layout.id, &self.out)
        while True:
            get_long(&reader, &rows)
            if rows < 0:
                get_long(&reader, &size)
                rows = -rows
            put_long(&self.out, rows)
            if rows == 0:
                break
            while rows > 0:
                rows -= 1
                self.record(&reader)
        if reader.at != reader.end:
            malformed(b"a batch with bytes left over")
        return PyBytes_FromStringAndSize(<const char*>self.out.data, <Py_ssize_t>self.out.size)

    cdef int record(self, Reader* reader) except -1:
        """Append a record without prefix. It never becomes longer, so there is room for it."""
        cdef Head head
        cdef const uint8_t* start = reader.at
        cdef int i, place = 0, unchanged = 0
        get_head(reader, &head)
        put(&self.out, start, reader.at - start)
        if get_unchanged(self.layout, reader, self.flags):
            for i in range(self.layout.width):
                unchanged += self.flags[i] and self.kept[i]
            if unchanged:
                put_long(&self.out, unchanged)
                for i in range(self.layout.width):
                    if self.flags[i] and self.kept[i]:
                        put_long(&self.out, place)
                    place += self.kept[i]
        put_byte(&self.out, 0)
        self.row(reader)
        self.row(reader)
        return 0

    cdef int row(self, Reader* reader) except -1:
        """Append the columns that are kept of a row, if there is one."""
        cdef const uint8_t* start
        cdef int i
        if not get_branch(reader):
            put_byte(&self.out, 0)
            return 0
        put_byte(&self.out, 2)
        for i in range(self.layout.width):
            start = reader.at
            if get_branch(reader):
                skip_value(self.layout.kind[i], reader)
            if self.kept[i]:
                put(&self.out, start, reader.at - start)
        return 0
