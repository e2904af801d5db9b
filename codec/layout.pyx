# cython: language_level=3, boundscheck=False, wraparound=False
"""What the transcoder has to know of a table version, in a form that compiled code reads without Python objects."""

from libc.stdlib cimport free, malloc

from schemas.errors import DecodeError, ValueUnsupported

cdef int MAX_COLUMNS = 32767  # the field count of a tuple and of a binary COPY row is a 16-bit integer


cdef int malformed(const char* what) except -1:
    raise DecodeError(what.decode())


cdef int unsupported(int column, const char* what) except -1:
    raise ValueUnsupported(f"column {column}: {what.decode()}")


cdef class Layout:
    def __cinit__(self, schema_id, kinds, key):
        cdef int i, column
        self.kinds = tuple(int(kind) for kind in kinds)
        self.key = tuple(int(column_of_key) for column_of_key in key)
        if not 0 <= schema_id < 0xFFFFFFFF:
            raise ValueError(f"schema id {schema_id} does not fit in 32 bits")
        if len(self.kinds) > MAX_COLUMNS:
            raise ValueError(f"{len(self.kinds)} columns are more than a row can have")
        if any(not BOOL <= kind <= OTHER for kind in self.kinds):
            raise ValueError(f"unknown kind in {self.kinds}")
        if any(not 0 <= i < len(self.kinds) for i in self.key) or len(set(self.key)) != len(self.key):
            raise ValueError(f"key {self.key} does not fit {len(self.kinds)} columns")
        self.schema_id = int(schema_id)
        self.id = schema_id
        self.width = <int>len(self.kinds)
        self.key_width = <int>len(self.key)
        self.binary = OTHER not in self.kinds
        # One more than needed, because malloc(0) may return NULL.
        self.kind = <uint8_t*>malloc(self.width + 1)
        self.in_key = <uint8_t*>malloc(self.width + 1)
        self.key_column = <int*>malloc((self.key_width + 1) * sizeof(int))
        if self.kind == NULL or self.in_key == NULL or self.key_column == NULL:
            raise MemoryError
        for i in range(self.width):
            self.kind[i] = self.kinds[i]
            self.in_key[i] = 0
        for i in range(self.key_width):
            column = self.key[i]
            self.key_column[i] = column
            self.in_key[column] = 1

    def __dealloc__(self):
        free(self.kind)
        free(self.in_key)
        free(self.key_column)

    @classmethod
    def of(cls, table, schema_id):
        return cls(schema_id, [column.kind for column in table.columns], table.key)

    def __reduce__(self):
        return Layout, (self.schema_id, self.kinds, self.key)

    def __repr__(self):
        return f"Layout({self.schema_id}, {list(self.kinds)}, {list(self.key)})"

    def __eq__(self, other):
        if not isinstance(other, Layout):
            return NotImplemented
        return (self.schema_id, self.kinds, self.key) == (other.schema_id, other.kinds, other.key)

    def __hash__(self):
        return hash((self.schema_id, self.kinds, self.key))
