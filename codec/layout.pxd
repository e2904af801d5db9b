from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    BOOL = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT32 = 5
    FLOAT64 = 6
    DATE = 7
    TIME = 8
    TIMESTAMP = 9
    TIMESTAMPTZ = 10
    BYTES = 11
    TEXT = 12
    JSONB = 13
    UUID = 14
    NUMERIC = 15
    OTHER = 16

cdef enum:
    OP_INSERT = 0
    OP_UPDATE = 1
    OP_DELETE = 2
    OP_TRUNCATE = 3
    OP_READ = 4
    OP_DEFINE = 5
    OP_RESTART = 6

cdef class Layout:
    cdef readonly object schema_id
    cdef readonly tuple kinds
    cdef readonly tuple key
    cdef readonly bint binary
    cdef uint32_t id
    cdef int width  # number of columns
    cdef int key_width
    cdef uint8_t* kind  # of each column
    cdef uint8_t* in_key  # of each column: 1 if it belongs to the key
    cdef int* key_column  # indexes of the key's columns

cdef int malformed(const char* what) except -1
cdef int unsupported(int column, const char* what) except -1
