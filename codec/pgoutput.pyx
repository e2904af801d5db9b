# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""PostgreSQL's logical replication stream (pgoutput, protocol 1) to row records."""

from collections import namedtuple

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memset

from codec.buffer cimport *
from codec.frames cimport NONE
from codec.layout cimport *
from codec.values cimport Field, put_key_of, put_prefix, put_row

from schemas.errors import DecodeError

ROW, BEGIN, COMMIT, RELATION, KEEPALIVE, MESSAGE, TRUNCATE, TYPE, ORIGIN = range(9)

RelationColumn = namedtuple("RelationColumn", "name is_key type_oid type_modifier", module="codec.pgoutput")
Relation = namedtuple("Relation", "oid schema name identity columns", module="codec.pgoutput")

cdef enum:
    E_ROW = 0
    E_BEGIN = 1
    E_COMMIT = 2
    E_RELATION = 3
    E_KEEPALIVE = 4
    E_MESSAGE = 5
    E_TRUNCATE = 6
    E_TYPE = 7
    E_ORIGIN = 8

cdef enum:
    FREE = 0
    BOUND = 1
    IGNORED = 2
    UNBOUND = 3  # its relation message came again: the binding may be out of date
    LEFT_OUT = 4  # a definition stands for all its changes of a transaction

cdef int64_t EPOCH_MICROS = 946684800000000  # from 1970-01-01 to PostgreSQL's 2000-01-01


cdef struct Binding:
    uint32_t oid
    int state
    void* layout  # kept alive by ChangeDecoder.layouts
    size_t slot  # index into ChangeDecoder.slot
    uint64_t noted  # the hand-over for which the schema id is in the slot's set
    uint64_t told  # the transaction in which a definition stands for what is left out


cdef struct Slot:
    Buffer buffer
    size_t records


cdef inline int need(Reader* reader, size_t size) except -1:
    if left(reader) < size:
        return malformed(b"a replication message that is cut off")
    return 0


cdef inline uint32_t get32(Reader* reader) noexcept:
    reader.at += 4
    return load32(reader.at - 4)


cdef inline int64_t get64(Reader* reader) noexcept:
    reader.at += 8
    return <int64_t>load64(reader.at - 8)


cdef str get_name(Reader* reader):
    cdef const uint8_t* end = NULL
    cdef const uint8_t* start = reader.at
    if reader.at < reader.end:
        end = <const uint8_t*>memchr(reader.at, 0, left(reader))
    if end == NULL:
        malformed(b"a replication message that is cut off")
    reader.at = end + 1
    return start[: end - start].decode("utf-8", "surrogateescape")


cdef int get_tuple(Reader* reader, Layout layout, Field* fields) except -1:
    """Read a row into `fields`; return how many of its columns are unchanged."""
    cdef int i, width, unchanged = 0
    cdef uint32_t size
    cdef uint8_t tag
    need(reader, 2)
    width = load16(reader.at)
    reader.at += 2
    if width != layout.width:
        raise DecodeError(f"a row of {width} columns for a table of {layout.width}")
    for i in range(width):
        if reader.at >= reader.end:
            return malformed(b"a replication message that is cut off")
        tag = reader.at[0]
        reader.at += 1
        fields[i].tag = tag
        if tag == 116 or tag == 98:
            need(reader, 4)
            size = get32(reader)
            if size > left(reader):
                return malformed(b"a replication message that is cut off")
            if tag == 98 and layout.kind[i] == OTHER:
                return malformed(b"a binary value of a type that is carried as text")
            fields[i].data = reader.at
            fields[i].size = size
            reader.at += size
        elif tag == 117:
            unchanged += 1
        elif tag != 110:
            return malformed(b"a column that is neither null, unchanged nor a value")
    return unchanged


@cython.final
cdef class ChangeDecoder:
    cdef readonly object xid
    cdef readonly object commit_lsn
    cdef readonly object commit_time
    cdef readonly object end_lsn
    cdef readonly object relation
    cdef readonly object wal_end
    cdef readonly bint reply_requested
    cdef readonly object message
    cdef readonly object truncated
    cdef readonly object epoch

    cdef Binding* binding  # open addressing by oid, a power of two long
    cdef size_t bindings, binding_room
    cdef dict layouts
    cdef Slot* slot
    cdef size_t slots, slot_room
    cdef dict slot_of
    cdef list slot_numbers
    cdef list schema_ids
    cdef Field* new
    cdef Field* old
    cdef int width
    cdef Buffer scratch
    cdef uint8_t lead[32]  # epoch, position and xid of the transaction, in Avro
    cdef size_t lead_size
    cdef uint8_t trail[12]  # its commit time
    cdef size_t trail_size
    cdef bint inside
    cdef int64_t ordinal
    cdef int64_t last_position
    cdef int64_t reference
    cdef int64_t largest
    cdef int64_t raw_commit_lsn
    cdef uint64_t hand_over
    cdef uint64_t transactions

    def __cinit__(self, epoch, reference_xid):
        if not 0 <= epoch <= INT64_MAX or not 0 <= reference_xid <= INT64_MAX:
            raise ValueError("epoch and transaction id are 64-bit and not negative")
        self.epoch = epoch
        self.reference = reference_xid
        self.largest = 0
        self.layouts = {}
        self.slot_of = {}
        self.slot_numbers = []
        self.schema_ids = []
        self.hand_over = 1
        self.xid = self.commit_lsn = self.commit_time = self.end_lsn = self.wal_end = 0
        self.binding_room = 64
        self.binding = <Binding*>PyMem_RawCalloc(self.binding_room, sizeof(Binding))
        if self.binding == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.slots):
            PyMem_RawFree(self.slot[i].buffer.data)
        PyMem_RawFree(self.slot)
        PyMem_RawFree(self.binding)
        PyMem_RawFree(self.new)
        PyMem_RawFree(self.old)
        PyMem_RawFree(self.scratch.data)

    # -------------------------------------------------------------------------------------------- relations

    cdef Binding* find(self, uint32_t oid) noexcept:
        """The binding of `oid`, or the free place where it would be."""
        cdef size_t at = (oid * <uint32_t>2654435761) & (self.binding_room - 1)
        while self.binding[at].state != FREE and self.binding[at].oid != oid:
            at = (at + 1) & (self.binding_room - 1)
        return &self.binding[at]

    cdef Binding* place(self, uint32_t oid) except NULL:
        """The binding of `oid`, made if there is none."""
        cdef Binding* found = self.find(oid)
        cdef Binding* before
        cdef size_t i, room
        if found.state != FREE:
            return found
        if 2 * (self.bindings + 1) > self.binding_room:
            before, room = self.binding, self.binding_room
            self.binding = <Binding*>PyMem_RawCalloc(room * 2, sizeof(Binding))
            if self.binding == NULL:
                self.binding = before
                raise MemoryError
            self.binding_room = room * 2
            for i in range(room):
                if before[i].state != FREE:
                    self.find(before[i].oid)[0] = before[i]
            PyMem_RawFree(before)
            found = self.find(oid)
        found.oid = oid
        found.state = UNBOUND
        self.bindings += 1
        return found

    cdef size_t slot_index(self, object number) except? 999999999:
        cdef size_t room
        cdef Slot* grown
        known = self.slot_of.get(number)
        if known is not None:
            return known
        if self.slots == self.slot_room:
            room = self.slot_room * 2 if self.slot_room else 16
            grown = <Slot*>PyMem_RawRealloc(self.slot, room * sizeof(Slot))
            if grown == NULL:
                raise MemoryError
            self.slot = grown
            self.slot_room = room
        memset(&self.slot[self.slots], 0, sizeof(Slot))
        self.slot_numbers.append(number)
        self.schema_ids.append(set())
        self.slot_of[number] = self.slots
        self.slots += 1
        return self.slots - 1

    def bind(self, relation_oid, Layout layout not None, slot):
        cdef Binding* binding
        cdef size_t index = self.slot_index(int(slot))
        cdef Field* grown
        if layout.width > self.width or self.new == NULL:
            grown = <Field*>PyMem_RawRealloc(self.new, (layout.width + 1) * sizeof(Field))
            if grown == NULL:
                raise MemoryError
            self.new = grown
            grown = <Field*>PyMem_RawRealloc(self.old, (layout.width + 1) * sizeof(Field))
            if grown == NULL:
                raise MemoryError
            self.old = grown
            self.width = layout.width
        binding = self.place(relation_oid)
        self.layouts[relation_oid] = layout
        binding.layout = <void*>layout
        binding.slot = index
        binding.noted = 0
        binding.state = BOUND

    def leave_out(self, relation_oid, Layout layout not None, slot):
        cdef size_t index = self.slot_index(int(slot))
        cdef Binding* binding = self.place(relation_oid)
        self.layouts[relation_oid] = layout
        binding.layout = <void*>layout
        binding.slot = index
        binding.state = LEFT_OUT

    def ignore(self, relation_oid):
        cdef Binding* binding = self.place(relation_oid)
        binding.state = IGNORED

    # --------------------------------------------------------------------------------------------- messages

    def feed(self, frame):
        cdef Py_buffer view
        cdef Reader reader
        if type(frame) is bytes:
            reader.at = <const uint8_t*>PyBytes_AS_STRING(frame)
            reader.end = reader.at + PyBytes_GET_SIZE(frame)
            return self.decode(&reader)
        PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
        try:
            reader.at = <const uint8_t*>view.buf
            reader.end = reader.at + view.len
            return self.decode(&reader)
        finally:
            PyBuffer_Release(&view)

    cdef int decode(self, Reader* reader) except -1:
        cdef uint8_t kind
        need(reader, 1)
        kind = reader.at[0]
        reader.at += 1
        if kind == 119:  # w: XLogData
            need(reader, 25)
            reader.at += 24
            kind = reader.at[0]
            reader.at += 1
            if kind == 73 or kind == 85 or kind == 68:
                return self.change(kind, reader)
            if kind == 66:
                return self.begin(reader)
            if kind == 67:
                return self.commit(reader)
            if kind == 82:
                return self.describe(reader)
            if kind == 77:
                return self.emitted(reader)
            if kind == 84:
                return self.truncate(reader)
            if kind == 89:
                return E_TYPE
            if kind == 79:
                return E_ORIGIN
            raise DecodeError(f"a replication message of unknown kind {chr(kind)!r}")
        if kind == 107:  # k: keepalive
            need(reader, 17)
            self.wal_end = get64(reader)
            reader.at += 8
            self.reply_requested = reader.at[0] != 0
            reader.at += 1
            self.finish(reader)
            return E_KEEPALIVE
        raise DecodeError(f"a replication frame of unknown kind {chr(kind)!r}")

    cdef int finish(self, Reader* reader) except -1:
        if reader.at != reader.end:
            return malformed(b"a replication message with bytes left over")
        return 0

    cdef int begin(self, Reader* reader) except -1:
        cdef int64_t lsn, time, xid
        if self.inside:
            return malformed(b"a transaction that begins inside another")
        need(reader, 20)
        lsn = get64(reader)
        time = get64(reader)
        # Ids on the wire have 32 bits; the last full id is never further away than half their circle.
        xid = self.reference + <int32_t>(get32(reader) - <uint32_t>self.reference)
        self.finish(reader)
        if lsn < 0 or time > INT64_MAX - EPOCH_MICROS or xid < 0:
            return malformed(b"a transaction whose position, time or id is out of range")
        time += EPOCH_MICROS
        self.reference = xid
        if xid > self.largest:
            self.largest = xid
        self.inside = True
        self.transactions += 1
        self.ordinal = 0
        self.raw_commit_lsn = lsn
        self.xid = xid
        self.commit_lsn = lsn
        self.commit_time = time
        self.set_lead(lsn, xid, time)
        return E_BEGIN

    cdef int set_lead(self, int64_t position, int64_t xid, int64_t time) except -1:
        """Prepare what the records of a transaction have in common."""
        cdef uint8_t room[64]
        cdef Buffer text
        text.data = room
        text.capacity = sizeof(room)
        text.size = 0
        put_long(&text, self.epoch)
        put_long(&text, position)
        put_long(&text, xid)
        self.lead_size = text.size
        memcpy(self.lead, room, text.size)
        text.size = 0
        put_long(&text, time)
        self.trail_size = text.size
        memcpy(self.trail, room, text.size)
        return 0

    cdef int commit(self, Reader* reader) except -1:
        cdef int64_t lsn, end
        need(reader, 25)
        reader.at += 1
        lsn = get64(reader)
        end = get64(reader)
        reader.at += 8
        self.finish(reader)
        if not self.inside or lsn != self.raw_commit_lsn or end < 0:
            return malformed(b"a commit that does not belong to the transaction before it")
        self.inside = False
        self.end_lsn = end
        self.last_position = end
        return E_COMMIT

    cdef int describe(self, Reader* reader) except -1:
        cdef Binding* binding
        cdef uint32_t oid, type_oid
        cdef int i, width
        cdef uint8_t flags, identity
        need(reader, 4)
        oid = get32(reader)
        schema = get_name(reader)
        name = get_name(reader)
        need(reader, 3)
        identity = reader.at[0]
        width = load16(reader.at + 1)
        reader.at += 3
        columns = []
        for i in range(width):
            need(reader, 1)
            flags = reader.at[0]
            reader.at += 1
            column = get_name(reader)
            need(reader, 8)
            type_oid = get32(reader)
            columns.append(RelationColumn(column, flags & 1 == 1, type_oid, <int32_t>get32(reader)))
        self.finish(reader)
        # The empty name stands for pg_catalog.
        self.relation = Relation(oid, schema or "pg_catalog", name, chr(identity), tuple(columns))
        binding = self.find(oid)
        if binding.state != FREE:
            binding.state = UNBOUND
        return E_RELATION

    cdef int emitted(self, Reader* reader) except -1:
        cdef uint8_t flags
        cdef int64_t lsn
        cdef uint32_t size
        need(reader, 9)
        flags = reader.at[0]
        reader.at += 1
        lsn = get64(reader)
        prefix = get_name(reader)
        need(reader, 4)
        size = get32(reader)
        need(reader, size)
        content = PyBytes_FromStringAndSize(<const char*>reader.at, size)
        reader.at += size
        self.finish(reader)
        self.message = (flags & 1 == 1, lsn, prefix, content)
        return E_MESSAGE

    cdef int truncate(self, Reader* reader) except -1:
        cdef uint32_t relations, i
        cdef uint8_t options
        need(reader, 5)
        relations = get32(reader)
        options = reader.at[0]
        reader.at += 1
        if left(reader) != <size_t>relations * 4:
            return malformed(b"a truncate message of another length than it says")
        if not self.inside:
            return malformed(b"a change outside a transaction")
        oids = []
        for i in range(relations):
            oids.append(get32(reader))
        self.truncated = (options, tuple(oids))
        return E_TRUNCATE

    # ---------------------------------------------------------------------------------------------- records

    cdef Binding* bound(self, uint32_t oid) except NULL:
        cdef Binding* binding = self.find(oid)
        if binding.state == FREE or binding.state == UNBOUND:
            raise DecodeError(f"a change of relation {oid}, which is not bound")
        return binding

    cdef int change(self, uint8_t kind, Reader* reader) except -1:
        cdef Binding* binding
        cdef Slot* slot
        cdef Layout layout
        cdef size_t start
        cdef uint8_t tag, old_tag = 0
        cdef bint has_new = False
        cdef int unchanged = 0
        if not self.inside:
            return malformed(b"a change outside a transaction")
        need(reader, 5)
        binding = self.bound(get32(reader))
        self.ordinal += 1
        if binding.state == IGNORED:
            return E_ROW
        if binding.state == LEFT_OUT:
            self.put_left_out(binding)
            return E_ROW
        layout = <Layout>binding.layout
        tag = reader.at[0]
        reader.at += 1
        if tag == 75 or tag == 79:
            if kind == 73:
                return malformed(b"an insert with an old row")
            old_tag = tag
            if get_tuple(reader, layout, self.old):
                return malformed(b"an old row with an unchanged value")
            if kind == 85:
                need(reader, 1)
                tag = reader.at[0]
                reader.at += 1
        if kind == 68:
            if not old_tag:
                return malformed(b"a delete without the old row")
        else:
            if tag != 78:
                return malformed(b"a change without the new row")
            unchanged = get_tuple(reader, layout, self.new)
            if unchanged and kind == 73:
                return malformed(b"an insert with an unchanged value")
            has_new = True
        self.finish(reader)
        slot = &self.slot[binding.slot]
        start = slot.buffer.size
        try:
            self.record(
                OP_INSERT if kind == 73 else OP_UPDATE if kind == 85 else OP_DELETE,
                layout,
                old_tag,
                has_new,
                unchanged,
                &slot.buffer,
            )
        except:
            slot.buffer.size = start
            raise
        slot.records += 1
        if binding.noted != self.hand_over:
            binding.noted = self.hand_over
            (<set>self.schema_ids[binding.slot]).add(layout.schema_id)
        return E_ROW

    cdef int record(
        self, int op, Layout layout, uint8_t old_tag, bint has_new, int unchanged, Buffer* out
    ) except -1:
        cdef size_t frame = out.size, value
        cdef int i
        cdef Field* new = self.new
        cdef Field* old = self.old
        cdef bint before = False
        reserve(out, 64)
        out.size += 8
        if unchanged and old_tag:
            for i in range(layout.width):
                # FULL gives every value, and a key that is stored out of line comes with its old tuple.
                if new[i].tag == 117 and (old_tag == 79 or layout.in_key[i]):
                    new[i] = old[i]
                    unchanged -= 1
        if old_tag:
            before = True
            if old_tag == 75:
                if not layout.key_width:
                    return malformed(b"an old key of a table without key")
                for i in range(layout.width):
                    if not layout.in_key[i]:
                        old[i].tag = 110
        if layout.key_width:
            put_key_of(layout, new if has_new else old, out)
            if has_new and old_tag == 75:
                self.scratch.size = 0
                put_key_of(layout, old, &self.scratch)
                before = self.scratch.size != out.size - frame - 8 or (
                    memcmp(self.scratch.data, out.data + frame + 8, self.scratch.size) != 0
                )
            if out.size - frame - 8 >= <size_t>NONE:
                return malformed(b"a key of 4 GiB or more")
            store32_little(out.data + frame, <uint32_t>(out.size - frame - 8))
        else:
            store32_little(out.data + frame, NONE)
        value = out.size
        self.put_head(op, layout, out)
        reserve(out, 32 + 5 * unchanged)
        if unchanged:
            put_long(out, unchanged)
            for i in range(layout.width):
                if new[i].tag == 117:
                    put_long(out, i)
        put_byte(out, 0)
        if before:
            put_byte(out, 2)
            put_row(layout, old, out)
            reserve(out, 1)
        else:
            put_byte(out, 0)
        if has_new:
            put_byte(out, 2)
            put_row(layout, new, out)
        else:
            put_byte(out, 0)
        if out.size - value >= <size_t>NONE:
            return malformed(b"a record of 4 GiB or more")
        store32_little(out.data + frame + 4, <uint32_t>(out.size - value))
        return 0

    cdef int put_head(self, int op, Layout layout, Buffer* out) except -1:
        reserve(out, 80)
        put_byte(out, 0)
        put32(out, layout.id)
        put_byte(out, <uint8_t>(2 * op))
        put(out, self.lead, self.lead_size)
        put_long(out, self.ordinal - 1)
        put(out, self.trail, self.trail_size)
        return 0

    def append_truncate(self, relation_oid, restart):
        cdef Binding* binding
        if not self.inside:
            malformed(b"a change outside a transaction")
        binding = self.bound(relation_oid)
        self.ordinal += 1
        if binding.state == IGNORED:
            return
        if binding.state == LEFT_OUT:
            self.put_left_out(binding)
            return
        self.put_rowless(OP_RESTART if restart else OP_TRUNCATE, <Layout>binding.layout, binding.slot)
        binding.noted = self.hand_over

    def append_definition(self, Layout layout not None, slot):
        cdef size_t index = self.slot_index(int(slot))
        if self.inside:
            self.ordinal += 1
        else:
            self.set_lead(self.last_position, self.largest, self.commit_time)
            self.ordinal = 1
        self.put_rowless(OP_DEFINE, layout, index)

    cdef int put_left_out(self, Binding* binding) except -1:
        """Say once in a transaction that rows of it are not here."""
        if binding.told == self.transactions:
            return 0
        binding.told = self.transactions
        return self.put_rowless(OP_DEFINE, <Layout>binding.layout, binding.slot)

    cdef int put_rowless(self, int operation, Layout layout, size_t index) except -1:
        cdef Buffer* out = &self.slot[index].buffer
        cdef size_t frame = out.size
        reserve(out, 100)
        out.size += 8
        self.put_head(operation, layout, out)
        put(out, b"\0\0\0", 3)
        store32_little(out.data + frame, NONE)
        store32_little(out.data + frame + 4, <uint32_t>(out.size - frame - 8))
        self.slot[index].records += 1
        (<set>self.schema_ids[index]).add(layout.schema_id)
        return 0

    # --------------------------------------------------------------------------------------------- hand-over

    @property
    def max_xid(self):
        return self.largest

    @property
    def position(self):
        return self.last_position

    @property
    def pending_bytes(self):
        cdef size_t i, total = 0
        for i in range(self.slots):
            total += self.slot[i].buffer.size
        return total

    @property
    def pending_records(self):
        cdef size_t i, total = 0
        for i in range(self.slots):
            total += self.slot[i].records
        return total

    def take(self):
        cdef size_t i
        cdef Slot* slot
        blocks = {}
        for i in range(self.slots):
            slot = &self.slot[i]
            if slot.records:
                block = PyBytes_FromStringAndSize(<const char*>slot.buffer.data, <Py_ssize_t>slot.buffer.size)
                blocks[self.slot_numbers[i]] = (slot.records, block, frozenset(self.schema_ids[i]))
        for i in range(self.slots):
            self.slot[i].buffer.size = 0
            self.slot[i].records = 0
            (<set>self.schema_ids[i]).clear()
        self.hand_over += 1
        return blocks
