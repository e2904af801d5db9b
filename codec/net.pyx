# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Last write per key: what is left to do of many changes of one table."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memset

from codec.buffer cimport *
from codec.frames cimport next_frame
from codec.layout cimport *
from codec.values cimport (
    Head,
    copy_key,
    copy_row,
    get_head,
    get_prefix,
    get_unchanged,
    key_of_row,
    skip_row,
    skip_value,
    texts_of_row,
)

from schemas.errors import DecodeError, GapDetected, OrderViolated
from schemas.record import Op


cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t key_hash(const uint8_t *key, size_t size, uint64_t seed) {
        uint64_t hash = seed ^ (size * UINT64_C(0x9E3779B97F4A7C15)), word;
        while (size >= 8) {
            memcpy(&word, key, 8);
            hash = (hash ^ word) * UINT64_C(0x9FB21C651E98DF25);
            hash ^= hash >> 32;
            key += 8;
            size -= 8;
        }
        word = 0;
        memcpy(&word, key, size);
        hash = (hash ^ word) * UINT64_C(0x9FB21C651E98DF25);
        hash ^= hash >> 29;
        hash *= UINT64_C(0xBF58476D1CE4E5B9);
        return hash ^ (hash >> 32);
    }

    typedef struct {
        uint64_t first, second;
        const uint8_t *key;
        size_t size;
        uint32_t entry;
    } Rank;

    static int rank_compare(const void *left, const void *right) {
        const Rank *a = left, *b = right;
        if (a->first != b->first)
            return a->first < b->first ? -1 : 1;
        if (a->second != b->second)
            return a->second < b->second ? -1 : 1;
        int found = memcmp(a->key, b->key, a->size < b->size ? a->size : b->size);
        return found ? found : (a->size > b->size) - (a->size < b->size);
    }
    """
    uint64_t key_hash(const uint8_t* key, size_t size, uint64_t seed) noexcept
    ctypedef struct Rank:
        uint64_t first
        uint64_t second
        const uint8_t* key
        size_t size
        uint32_t entry
    int rank_compare(const void* left, const void* right) noexcept


# One seed a process: keys come from applications' users, who must not be able to make them all collide.
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")


cdef struct Entry:
    uint64_t hash
    Reader key  # without prefix; keyless layouts: NULL
    Reader row  # at NULL: the row is deleted
    Reader origin  # of a partial row: the key under which the target has the row; keyless layouts: the row before
    const uint8_t* blank  # of a partial row: one flag a column, set where only the target has the value
    int op


cdef uint64_t rank_of(int kind, Reader* reader, const uint8_t** text) except? 0:
    """A number by which values are ordered about as the target's index has them, and go on behind the value; `text` is
    where that of a longer value begins."""
    cdef int64_t number
    cdef const uint8_t* data
    cdef size_t size, i
    cdef uint64_t rank = 0
    if kind in (INT16, INT32, INT64, DATE, TIME, TIMESTAMP, TIMESTAMPTZ):
        get_long(reader, &number)
        return <uint64_t>number ^ (<uint64_t>1 << 63)
    if kind < BYTES:
        skip_value(kind, reader)
        return 0
    get_bytes(reader, &data, &size)
    text[0] = data
    for i in range(8):
        rank = rank << 8 | (data[i] if i < size else 0)
    return rank


@cython.final
cdef class Net:
    cdef readonly Layout layout
    cdef readonly bint binary
    cdef readonly Py_ssize_t records
    cdef readonly Py_ssize_t inserts
    cdef readonly Py_ssize_t updates
    cdef readonly Py_ssize_t deletions
    cdef readonly bint truncated
    cdef readonly bint restarted
    cdef readonly bint insert_only
    cdef list kept  # the objects that entries point into
    cdef Entry* entry
    cdef size_t entries, entry_room
    cdef uint32_t* place  # open addressing: index of an entry plus 1, a power of two long
    cdef size_t places
    cdef size_t bytes_taken
    cdef uint32_t* order  # of the entries in the results; of so many as are arranged
    cdef size_t arranged
    cdef uint8_t* flags
    cdef Buffer scratch

    def __cinit__(self, Layout layout not None, *, bint binary):
        self.layout = layout
        self.binary = binary and layout.binary
        self.insert_only = True
        self.kept = []
        self.places = 1024
        self.place = <uint32_t*>PyMem_RawCalloc(self.places, sizeof(uint32_t))
        self.flags = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
        if self.place == NULL or self.flags == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_RawFree(self.entry)
        PyMem_RawFree(self.place)
        PyMem_RawFree(self.order)
        PyMem_RawFree(self.flags)
        PyMem_RawFree(self.scratch.data)

    # ---------------------------------------------------------------------------------------------- entries

    cdef Entry* new_entry(self) except NULL:
        cdef size_t room
        cdef Entry* grown
        if self.entries == self.entry_room:
            if self.entries >= 0x7FFFFFFF:
                raise MemoryError
            room = self.entry_room * 2 if self.entry_room else 256
            grown = <Entry*>PyMem_RawRealloc(self.entry, room * sizeof(Entry))
            if grown == NULL:
                raise MemoryError
            self.entry = grown
            self.entry_room = room
        grown = &self.entry[self.entries]
        memset(grown, 0, sizeof(Entry))
        self.entries += 1
        return grown

    cdef Entry* find(self, Reader* key, uint64_t hash) noexcept:
        cdef size_t mask = self.places - 1
        cdef size_t at = hash & mask
        cdef Entry* found
        cdef size_t size = left(key)
        while self.place[at]:
            found = &self.entry[self.place[at] - 1]
            if found.hash == hash and left(&found.key) == size and memcmp(found.key.at, key.at, size) == 0:
                return found
            at = (at + 1) & mask
        return NULL

    cdef Entry* find_or_make(self, Reader* key, bint* made) except NULL:
        """The entry of `key`; it may move when the next one is made."""
        cdef uint64_t hash = key_hash(key.at, left(key), SEED)
        cdef Entry* found = self.find(key, hash)
        cdef size_t at
        made[0] = found == NULL
        if found != NULL:
            return found
        if 2 * (self.entries + 1) > self.places:
            self.spread()
        found = self.new_entry()
        found.hash = hash
        found.key = key[0]
        at = hash & (self.places - 1)
        while self.place[at]:
            at = (at + 1) & (self.places - 1)
        self.place[at] = <uint32_t>self.entries
        return found

    cdef int spread(self) except -1:
        cdef size_t places = self.places * 4, at, i
        cdef uint32_t* place = <uint32_t*>PyMem_RawCalloc(places, sizeof(uint32_t))
        if place == NULL:
            raise MemoryError
        for i in range(self.entries):
            at = self.entry[i].hash & (places - 1)
            while place[at]:
                at = (at + 1) & (places - 1)
            place[at] = <uint32_t>(i + 1)
        PyMem_RawFree(self.place)
        self.place = place
        self.places = places
        return 0

    cdef Reader keep(self, const uint8_t* data, size_t size) except *:
        """A copy that lives as long as the entries."""
        cdef bytes copy = PyBytes_FromStringAndSize(<const char*>data, <Py_ssize_t>size)
        cdef Reader where
        self.kept.append(copy)
        self.bytes_taken += size
        where.at = <const uint8_t*>PyBytes_AS_STRING(copy)
        where.end = where.at + size
        return where

    # ----------------------------------------------------------------------------------------------- taking

    def add(self, data, visibility=None, epoch=None):
        cdef bytes block = bytes(data)
        cdef Reader reader, key, value, row_before, row_after
        cdef Head head
        cdef bint checks_epoch = epoch is not None, checks_visibility = visibility is not None
        cdef int64_t right_epoch = 0, xmin = 0, xmax = 0, last_xid = -1
        cdef bint last_seen = False
        cdef uint32_t schema = self.layout.id
        cdef Py_ssize_t taken = 0
        cdef int unchanged
        xip = frozenset()
        if checks_epoch:
            right_epoch = epoch
        if checks_visibility:
            xmin, xmax, xip = visibility
            if not isinstance(xip, (frozenset, set)):
                xip = frozenset(xip)
        reader.at = <const uint8_t*>PyBytes_AS_STRING(block)
        reader.end = reader.at + PyBytes_GET_SIZE(block)
        self.kept.append(block)
        while reader.at < reader.end:
            next_frame(&reader, &key, &value)
            if value.at == NULL or left(&value) < 5 or value.at[0] != 0:
                malformed(b"a record without magic byte and schema id")
            if load32(value.at + 1) != schema:
                continue
            self.bytes_taken += left(&value)
            value.at += 5
            get_head(&value, &head)
            if checks_epoch and head.epoch != right_epoch:
                raise GapDetected(f"a change of epoch {head.epoch} among those of epoch {right_epoch}")
            if checks_visibility:
                if head.xid != last_xid:
                    last_xid = head.xid
                    last_seen = last_xid < xmin or (last_xid < xmax and last_xid not in xip)
                if last_seen:
                    continue
            taken += 1
            if head.op == OP_RESTART:
                self.restarted = True
                head.op = OP_TRUNCATE
            if key.at != NULL:
                if left(&key) < 5 or key.at[0] != 0 or load32(key.at + 1) != schema + 1:
                    malformed(b"a key of another schema than its value")
                key.at += 5
            elif self.layout.key_width and head.op != OP_TRUNCATE and head.op != OP_DEFINE:
                malformed(b"a change without key of a table with one")
            unchanged = self.get_rows(&value, &row_before, &row_after, True)
            self.fold(<int>head.op, &key, unchanged, &row_before, &row_after)
        self.records += taken
        return taken

    def add_batch(self, value):
        cdef bytes whole = bytes(value)
        cdef Reader reader, key, row_before, row_after, columns
        cdef Head head
        cdef int64_t rows, size
        cdef Py_ssize_t taken = 0
        cdef int unchanged
        reader.at = <const uint8_t*>PyBytes_AS_STRING(whole)
        reader.end = reader.at + PyBytes_GET_SIZE(whole)
        self.kept.append(whole)
        self.bytes_taken += left(&reader)
        get_prefix(&reader, self.layout.id)
        while True:
            get_long(&reader, &rows)
            if rows == 0:
                break
            if rows < 0:
                get_long(&reader, &size)
            while rows != 0:
                rows += 1 if rows < 0 else -1
                get_head(&reader, &head)
                unchanged = self.get_rows(&reader, &row_before, &row_after, False)
                key.at = key.end = NULL
                if self.layout.key_width and head.op != OP_TRUNCATE:
                    columns = row_after if row_after.at != NULL else row_before
                    if columns.at == NULL:
                        malformed(b"a change without a row")
                    self.scratch.size = 0
                    key_of_row(self.layout, &columns, &self.scratch)
                    key = self.keep(self.scratch.data, self.scratch.size)
                self.fold(<int>head.op, &key, unchanged, &row_before, &row_after)
                taken += 1
        if reader.at != reader.end:
            malformed(b"a batch with bytes left over")
        self.records += taken
        return taken

    cdef int get_rows(self, Reader* value, Reader* before, Reader* after, bint alone) except -1:
        """Find the rows of a record behind its head, and return the number of unchanged columns. A record that is
        alone ends with its value, so its last row need not be walked through."""
        cdef int unchanged = get_unchanged(self.layout, value, self.flags)
        before.at = before.end = after.at = after.end = NULL
        if get_branch(value):
            before.at = value.at
            skip_row(self.layout, value)
            before.end = value.at
        if get_branch(value):
            after.at = value.at
            if alone:
                value.at = value.end
            else:
                skip_row(self.layout, value)
            after.end = value.at
        if alone and value.at != value.end:
            return malformed(b"a record with bytes left over")
        return unchanged

    cdef int fold(self, int op, Reader* key, int unchanged, Reader* before, Reader* after) except -1:
        cdef Entry* entry
        cdef Entry* source
        cdef Reader old_key, columns, row, origin
        cdef const uint8_t* blank = NULL
        cdef bint made = False, moved = False
        if op == OP_DEFINE:
            return 0
        if op == OP_TRUNCATE:
            self.entries = self.arranged = 0
            memset(self.place, 0, self.places * sizeof(uint32_t))
            self.truncated = True
            self.insert_only = True
            return 0
        if (after.at == NULL) != (op == OP_DELETE) or (op == OP_DELETE and before.at == NULL and not key.at):
            return malformed(b"a change without the row that its operation has")
        if unchanged and op != OP_UPDATE:
            return malformed(b"unchanged columns in what is no update")
        if op == OP_INSERT or op == OP_READ:
            self.inserts += 1
        elif op == OP_UPDATE:
            self.updates += 1
            self.insert_only = False
        else:
            self.deletions += 1
            self.insert_only = False
        if not self.layout.key_width:
            if unchanged:
                return malformed(b"unchanged columns in a table without key")
            if op == OP_UPDATE and before.at == NULL:
                return malformed(b"a change without the row that its operation has")
            entry = self.new_entry()
            entry.op = op
            entry.row = after[0]
            entry.origin = before[0]
            return 0
        if op == OP_DELETE:
            entry = self.find_or_make(key, &made)
            entry.row.at = entry.row.end = NULL
            entry.blank = NULL
            return 0
        if op == OP_UPDATE and before.at != NULL:
            columns = before[0]
            self.scratch.size = 0
            key_of_row(self.layout, &columns, &self.scratch)
            moved = self.scratch.size != left(key) or memcmp(self.scratch.data, key.at, self.scratch.size) != 0
        row = after[0]
        origin = key[0]
        if moved:
            old_key.at = self.scratch.data
            old_key.end = old_key.at + self.scratch.size
            if self.find(&old_key, key_hash(old_key.at, self.scratch.size, SEED)) == NULL:
                # An entry points to its key: give it bytes that stay.
                old_key = self.keep(self.scratch.data, self.scratch.size)
            source = self.find_or_make(&old_key, &made)
            origin = source.key
        elif unchanged:
            source = self.find_or_make(key, &made)
        if unchanged:
            if made:
                if self.truncated:
                    raise OrderViolated("an update of a row that was truncated")
                row, blank = after[0], self.flags_kept()
            elif source.row.at == NULL:
                raise OrderViolated("an update of a row that was deleted")
            else:
                if source.blank != NULL:
                    origin = source.origin
                row = self.splice(after, &source.row)
                blank = self.common(source.blank)
        if moved:
            source.row.at = source.row.end = NULL
            source.blank = NULL
        made = False
        entry = self.find_or_make(key, &made)
        if not made and op != OP_UPDATE:
            self.insert_only = False
        entry.op = op
        entry.row = row
        entry.blank = blank
        if blank != NULL:
            entry.origin = origin
        return 0

    cdef const uint8_t* flags_kept(self) except NULL:
        cdef Reader copy = self.keep(self.flags, self.layout.width)
        return copy.at

    cdef const uint8_t* common(self, const uint8_t* blank) except? NULL:
        """Flags of the columns that neither this update nor the entry before it has; NULL if there are none."""
        cdef int i
        cdef bint any_left = False
        if blank == NULL:
            return NULL
        for i in range(self.layout.width):
            self.flags[i] &= blank[i]
            any_left |= self.flags[i] != 0
        return self.flags_kept() if any_left else NULL

    cdef Reader splice(self, Reader* row, Reader* base) except *:
        """A row of `row`'s columns, those flagged as unchanged taken from `base`."""
        cdef Reader new = row[0], old = base[0]
        cdef const uint8_t* start
        cdef const uint8_t* old_start
        cdef int i
        self.scratch.size = 0
        reserve(&self.scratch, left(&new) + left(&old))
        for i in range(self.layout.width):
            start = new.at
            if get_branch(&new):
                skip_value(self.layout.kind[i], &new)
            old_start = old.at
            if get_branch(&old):
                skip_value(self.layout.kind[i], &old)
            if self.flags[i]:
                put(&self.scratch, old_start, old.at - old_start)
            else:
                put(&self.scratch, start, new.at - start)
        if new.at != new.end or old.at != old.end:
            malformed(b"a row with bytes left over")
        return self.keep(self.scratch.data, self.scratch.size)

    # ---------------------------------------------------------------------------------------------- results

    @property
    def ordered(self):
        return self.layout.key_width == 0

    @property
    def pending_bytes(self):
        return self.bytes_taken + self.entry_room * (sizeof(Entry) + sizeof(Rank)) + self.places * sizeof(uint32_t)

    cdef int arrange(self) except -1:
        """Put the entries in order: rows that are looked up one after the other then lie side by side in the target's
        indexes, which saves it up to a third of the work. Inserts alone stay as they came."""
        cdef size_t i
        cdef Rank* rank
        cdef uint32_t* order
        cdef Reader key
        cdef const uint8_t* second
        if self.arranged == self.entries:
            return 0
        order = <uint32_t*>PyMem_RawRealloc(self.order, self.entries * sizeof(uint32_t))
        if order == NULL:
            raise MemoryError
        self.order = order
        if self.layout.key_width == 0 or self.insert_only:
            for i in range(self.entries):
                order[i] = <uint32_t>i
        else:
            rank = <Rank*>PyMem_RawMalloc(self.entries * sizeof(Rank))
            if rank == NULL:
                raise MemoryError
            try:
                for i in range(self.entries):
                    key = self.entry[i].key
                    rank[i].key = key.at
                    rank[i].first = rank_of(self.layout.kind[self.layout.key_column[0]], &key, &rank[i].key)
                    rank[i].size = key.end - rank[i].key
                    rank[i].second = 0
                    if self.layout.key_width > 1:
                        rank[i].second = rank_of(self.layout.kind[self.layout.key_column[1]], &key, &second)
                    rank[i].entry = <uint32_t>i
                qsort(rank, self.entries, sizeof(Rank), &rank_compare)
                for i in range(self.entries):
                    order[i] = rank[i].entry
            finally:
                PyMem_RawFree(rank)
        self.arranged = self.entries
        return 0

    cdef int copy_entry(self, Entry* entry, Reader* key, Buffer* out) except -1:
        cdef Reader row = entry.row
        copy_row(self.layout, &row, entry.blank, key, self.binary, out)
        if row.at != row.end:
            return malformed(b"a row with bytes left over")
        return 0

    cdef tuple counted(self, Py_ssize_t rows, Buffer* out):
        return rows, PyBytes_FromStringAndSize(<const char*>out.data, <Py_ssize_t>out.size)

    def rows(self):
        cdef Buffer out
        cdef Entry* entry
        cdef size_t i
        cdef Py_ssize_t found = 0
        if self.layout.key_width == 0 and not self.insert_only:
            raise ValueError("changes of a table without key have an order: see changes()")
        out.data = NULL
        out.size = out.capacity = 0
        self.arrange()
        try:
            for i in range(self.entries):
                entry = &self.entry[self.order[i]]
                if entry.row.at != NULL and entry.blank == NULL:
                    self.copy_entry(entry, NULL, &out)
                    found += 1
            return self.counted(found, &out)
        finally:
            PyMem_RawFree(out.data)

    cdef tuple keys(self, bint all_of_them):
        cdef Buffer out
        cdef Reader key
        cdef Entry* entry
        cdef size_t i
        cdef Py_ssize_t found = 0
        out.data = NULL
        out.size = out.capacity = 0
        self.arrange()
        try:
            if self.layout.key_width:
                for i in range(self.entries):
                    entry = &self.entry[self.order[i]]
                    if all_of_them or entry.row.at == NULL:
                        key = entry.key
                        copy_key(self.layout, &key, self.binary, &out)
                        if key.at != key.end:
                            malformed(b"a key with bytes left over")
                        found += 1
            return self.counted(found, &out)
        finally:
            PyMem_RawFree(out.data)

    def deletes(self):
        return self.keys(False)

    def touched(self):
        # A partial row's origin has an entry of its own: its own key, or the one that it moved away from.
        return self.keys(True)

    def partials(self):
        cdef Buffer out
        cdef Reader origin
        cdef size_t i
        cdef int column
        cdef Entry* entry
        cdef dict groups = {}
        cdef list found = []
        self.arrange()
        for i in range(self.entries):
            entry = &self.entry[self.order[i]]
            if entry.row.at != NULL and entry.blank != NULL:
                group = PyBytes_FromStringAndSize(<const char*>entry.blank, self.layout.width)
                groups.setdefault(group, []).append(self.order[i])
        for group, members in groups.items():
            out.data = NULL
            out.size = out.capacity = 0
            try:
                for i in members:
                    origin = self.entry[i].origin
                    self.copy_entry(&self.entry[i], &origin, &out)
                    if origin.at != origin.end:
                        malformed(b"a key with bytes left over")
                columns = frozenset([column for column in range(self.layout.width) if group[column]])
                found.append((columns, *self.counted(len(members), &out)))
            finally:
                PyMem_RawFree(out.data)
        return found

    def changes(self):
        cdef size_t i
        cdef list found = []
        cdef Reader row
        cdef Buffer scratch
        if self.layout.key_width:
            raise ValueError("changes of a table with key are folded: see rows(), partials() and deletes()")
        scratch.data = NULL
        scratch.size = scratch.capacity = 0
        try:
            for i in range(self.entries):
                before = after = None
                if self.entry[i].origin.at != NULL:
                    row = self.entry[i].origin
                    before = texts_of_row(self.layout, &row, &scratch)
                if self.entry[i].row.at != NULL:
                    row = self.entry[i].row
                    after = texts_of_row(self.layout, &row, &scratch)
                    if row.at != row.end:
                        malformed(b"a row with bytes left over")
                found.append((Op(self.entry[i].op), before, after))
            return found
        finally:
            PyMem_RawFree(scratch.data)


def keyed(Layout layout not None, data, visibility=None):
    cdef bytes block = bytes(data)
    cdef Reader reader, key, value, before, after, columns, origin
    cdef Head head
    cdef Buffer scratch
    cdef uint8_t* flags = <uint8_t*>PyMem_RawMalloc(layout.width + 1)
    cdef bint is_keyed = layout.key_width > 0
    cdef int64_t xmin = 0, xmax = 0
    cdef list found = []
    xip, truncate = frozenset(), None
    if visibility is not None:
        xmin, xmax, xip = visibility
    scratch.data = NULL
    scratch.size = scratch.capacity = 0
    reader.at = <const uint8_t*>PyBytes_AS_STRING(block)
    reader.end = reader.at + PyBytes_GET_SIZE(block)
    try:
        if flags == NULL:
            raise MemoryError
        while reader.at < reader.end:
            next_frame(&reader, &key, &value)
            if value.at == NULL or left(&value) < 5 or value.at[0] != 0:
                malformed(b"a record without magic byte and schema id")
            if load32(value.at + 1) != layout.id:
                continue
            record = PyBytes_FromStringAndSize(<const char*>value.at, left(&value))
            value.at += 5
            get_head(&value, &head)
            if head.op == OP_DEFINE or head.xid < xmin or (head.xid < xmax and head.xid not in xip):
                continue
            if head.op == OP_TRUNCATE or head.op == OP_RESTART:
                truncate = record
                found.clear()
                continue
            get_unchanged(layout, &value, flags)
            before.at = before.end = after.at = after.end = NULL
            if get_branch(&value):
                before.at = value.at
                skip_row(layout, &value)
                before.end = value.at
            if get_branch(&value):
                after.at = value.at
                after.end = value.end
            if is_keyed:
                if key.at == NULL or left(&key) < 5:
                    malformed(b"a change without key of a table with one")
                key.at += 5
                origin = key
                if head.op == OP_UPDATE and before.at != NULL:
                    columns = before
                    scratch.size = 0
                    key_of_row(layout, &columns, &scratch)
                    origin.at = scratch.data
                    origin.end = scratch.data + scratch.size
            else:
                key = after if after.at != NULL else before
                origin = before if before.at != NULL else key
                if key.at == NULL:
                    malformed(b"a change without a row")
            own = PyBytes_FromStringAndSize(<const char*>key.at, left(&key))
            other = PyBytes_FromStringAndSize(<const char*>origin.at, left(&origin))
            found.append((own, other if other != own else None, record))
        return truncate, found
    finally:
        PyMem_RawFree(scratch.data)
        PyMem_RawFree(flags)
