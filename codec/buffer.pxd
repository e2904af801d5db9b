"""Growing buffers, bounded readers and Avro's integers, inlined into every module that uses them."""

from cpython.mem cimport PyMem_RawRealloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from codec.layout cimport malformed


cdef struct Buffer:
    uint8_t* data
    size_t size
    size_t capacity


cdef struct Reader:
    const uint8_t* at
    const uint8_t* end


cdef inline int grow(Buffer* buffer, size_t extra) except -1:
    cdef size_t need, capacity
    cdef uint8_t* data
    if extra > (<size_t>-1 >> 2) or buffer.size > (<size_t>-1 >> 2):
        raise MemoryError
    need = buffer.size + extra
    capacity = buffer.capacity * 2 if buffer.capacity else 4096
    if capacity < need:
        capacity = need
    data = <uint8_t*>PyMem_RawRealloc(buffer.data, capacity)
    if data == NULL:
        raise MemoryError
    buffer.data = data
    buffer.capacity = capacity
    return 0


cdef inline int reserve(Buffer* buffer, size_t extra) except -1:
    """Make room for `extra` bytes; the `put` functions below do not check."""
    if buffer.capacity - buffer.size >= extra:
        return 0
    return grow(buffer, extra)


cdef inline void put(Buffer* buffer, const void* data, size_t size) noexcept:
    memcpy(buffer.data + buffer.size, data, size)
    buffer.size += size


cdef inline void put_byte(Buffer* buffer, uint8_t byte) noexcept:
    buffer.data[buffer.size] = byte
    buffer.size += 1


cdef inline int append(Buffer* buffer, const void* data, size_t size) except -1:
    reserve(buffer, size)
    put(buffer, data, size)
    return 0


cdef inline void put_varint(Buffer* buffer, uint64_t value) noexcept:
    """At most 10 bytes."""
    cdef uint8_t* at = buffer.data + buffer.size
    while value >= 0x80:
        at[0] = <uint8_t>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    buffer.size = at + 1 - buffer.data


cdef inline void put_long(Buffer* buffer, int64_t value) noexcept:
    put_varint(buffer, (<uint64_t>value << 1) ^ <uint64_t>(value >> 63))


cdef inline void store16(uint8_t* at, uint16_t value) noexcept:
    at[0] = <uint8_t>(value >> 8)
    at[1] = <uint8_t>value


cdef inline void store32(uint8_t* at, uint32_t value) noexcept:
    at[0] = <uint8_t>(value >> 24)
    at[1] = <uint8_t>(value >> 16)
    at[2] = <uint8_t>(value >> 8)
    at[3] = <uint8_t>value


cdef inline void put16(Buffer* buffer, uint16_t value) noexcept:
    store16(buffer.data + buffer.size, value)
    buffer.size += 2


cdef inline void put32(Buffer* buffer, uint32_t value) noexcept:
    store32(buffer.data + buffer.size, value)
    buffer.size += 4


cdef inline void put64(Buffer* buffer, uint64_t value) noexcept:
    put32(buffer, <uint32_t>(value >> 32))
    put32(buffer, <uint32_t>value)


cdef inline void store32_little(uint8_t* at, uint32_t value) noexcept:
    at[0] = <uint8_t>value
    at[1] = <uint8_t>(value >> 8)
    at[2] = <uint8_t>(value >> 16)
    at[3] = <uint8_t>(value >> 24)


cdef inline uint16_t load16(const uint8_t* at) noexcept:
    return <uint16_t>((<uint32_t>at[0] << 8) | at[1])


cdef inline uint32_t load32(const uint8_t* at) noexcept:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef inline uint64_t load64(const uint8_t* at) noexcept:
    return (<uint64_t>load32(at) << 32) | load32(at + 4)


cdef inline uint32_t load32_little(const uint8_t* at) noexcept:
    return (<uint32_t>at[3] << 24) | (<uint32_t>at[2] << 16) | (<uint32_t>at[1] << 8) | at[0]


cdef inline size_t left(Reader* reader) noexcept:
    return <size_t>(reader.end - reader.at)


cdef inline int get_long_slow(Reader* reader, int64_t* value) except -1:
    cdef uint64_t whole = 0
    cdef int shift = 0
    cdef uint8_t byte
    while True:
        if reader.at >= reader.end:
            return malformed(b"a record ends inside an integer")
        byte = reader.at[0]
        reader.at += 1
        if shift == 63 and byte > 1:
            return malformed(b"an integer of more than 64 bits")
        whole |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    value[0] = <int64_t>(whole >> 1) ^ -<int64_t>(whole & 1)
    return 0


cdef inline int get_long(Reader* reader, int64_t* value) except -1:
    cdef uint8_t byte
    if reader.at < reader.end and reader.at[0] < 0x80:
        byte = reader.at[0]
        reader.at += 1
        value[0] = <int64_t>(byte >> 1) ^ -<int64_t>(byte & 1)
        return 0
    return get_long_slow(reader, value)


cdef inline int get_bytes(Reader* reader, const uint8_t** data, size_t* size) except -1:
    cdef int64_t length
    get_long(reader, &length)
    if length < 0 or <uint64_t>length > left(reader):
        return malformed(b"a record ends inside a value")
    data[0] = reader.at
    size[0] = <size_t>length
    reader.at += length
    return 0


cdef inline int get_branch(Reader* reader) except -1:
    """The branch of a union of null and something else: 0 or 1."""
    cdef uint8_t byte
    if reader.at >= reader.end:
        return malformed(b"a record ends before a value")
    byte = reader.at[0]
    if byte != 0 and byte != 2:
        return malformed(b"a union branch that does not exist")
    reader.at += 1
    return byte >> 1
