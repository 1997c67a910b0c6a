# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Requests in C: the frames of a batch that comes to a target, and the answers to them.

Owns the memory that one recvmmsg(2) fills and one sendmmsg(2) empties, for frames of at most ``max_sectors`` sectors.
Each slot holds one frame: its headers lie in a row of one table, its payload in a row of a second one.

:meth:`Requests.runs_untrusted` finds the *runs* of a batch: consecutive frames by which one initiator reads (or writes)
consecutive sectors of one address, and that an export of enough sectors can serve without an error.  Each is (first
slot, end, address word, opcode, LBA, bytes); a frame that belongs to no run is (slot, slot + 1, -1, 0, 0, 0).
:meth:`Requests.room` and :meth:`Requests.payloads` are the memory for the data of a run, :meth:`Requests.answer` turns
its requests into answers in place.

What holds always: a batch is answered before the next one is received; neither system call blocks; the memory lives as
long as the object.
"""

from aoefs.protocol.ata import Status
from aoefs.protocol.wire import MAX_CONFIG_BYTES

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from aoefs.net.mmsg cimport (
    HEADER_BYTES, ROW_BYTES, SECTOR_SIZE, SHORTEST_FRAME, SLOT_COUNT,
    iovec, le64toh, mmsghdr, receive_messages, send_messages,
)

cdef enum:
    PART_FRAMES = 4  # of a run, at least, for one call of the store and one sendmmsg ...
    PART_BYTES = 65536  # ... and about so many bytes: the initiator works on one part while we do the next
    WRITE_BIT = 0x10  # of an opcode: set for WRITE (EXT), clear for READ (EXT)

cdef const char *REQUEST = b"\x88\xa2\x10\x00"  # ethertype, version 1 without a flag, no error
cdef uint8_t DRDY = int(Status.DRDY)


cdef class Requests:
    """``received`` frames of the last batch; ``max_sectors`` of a frame."""

    cdef readonly unsigned int max_sectors
    cdef unsigned int _count
    cdef size_t _stride  # bytes of a payload row
    cdef object _headers_owner, _payload_owner, _data_owner
    cdef object _payload, _data  # memoryviews
    cdef uint8_t *_headers
    cdef uint8_t *_data_memory
    cdef uint8_t[SHORTEST_FRAME] _padding
    cdef mmsghdr[SLOT_COUNT] _input, _output
    cdef iovec[SLOT_COUNT][2] _input_pieces, _output_pieces

    def __init__(self, unsigned int max_sectors):
        cdef unsigned int slot
        self.max_sectors = max_sectors
        self._stride = max(max_sectors * SECTOR_SIZE, <unsigned int>MAX_CONFIG_BYTES)
        self._headers_owner = bytearray(SLOT_COUNT * ROW_BYTES)
        self._payload_owner = bytearray(SLOT_COUNT * self._stride)
        self._data_owner = bytearray(SLOT_COUNT * self._stride)
        self._payload, self._data = memoryview(self._payload_owner), memoryview(self._data_owner)
        self._headers = <uint8_t *><char *>self._headers_owner
        self._data_memory = <uint8_t *><char *>self._data_owner
        cdef uint8_t *payload = <uint8_t *><char *>self._payload_owner
        for slot in range(SLOT_COUNT):
            self._input_pieces[slot][0].iov_base = self._headers + slot * ROW_BYTES
            self._input_pieces[slot][0].iov_len = HEADER_BYTES
            self._input_pieces[slot][1].iov_base = payload + slot * self._stride
            self._input_pieces[slot][1].iov_len = self._stride
            self._output_pieces[slot][0] = self._input_pieces[slot][0]
            self._input[slot].msg_hdr.msg_iov = self._input_pieces[slot]
            self._input[slot].msg_hdr.msg_iovlen = 2
            self._output[slot].msg_hdr.msg_iov = self._output_pieces[slot]
            self._output[slot].msg_hdr.msg_iovlen = 2

    def receive(self, int descriptor):
        """Take one batch; how many frames.  OSError as recvmmsg(2), but not for an empty queue."""
        self._count = 0
        self._count = receive_messages(descriptor, self._input)
        return self._count

    def send(self, int descriptor, unsigned int first, unsigned int end):
        """Send the answers in the slots ``first`` to ``end``; how many.  OSError when not even the first one went out,
        BlockingIOError when the socket is full.
        """
        return send_messages(descriptor, self._output + first, end - first)

    def runs_untrusted(self, bytes mac):
        """The runs of the batch, of frames to ``mac``, and what belongs to none."""
        cdef list found = []
        cdef const char *ours = mac
        cdef unsigned int slot, first = 0, sectors, size = 0
        cdef uint64_t lba, begin = 0, following = 0
        cdef uint8_t *row
        cdef uint8_t *head = NULL  # of the first frame of the run
        for slot in range(self._count):
            row = self._headers + slot * ROW_BYTES
            sectors, lba = row[26], self._lba(slot)
            if not self._is_regular(slot, <const uint8_t *>ours):
                if head != NULL:
                    found.append((first, slot, self._word(head), head[27], begin, size))
                    head = NULL
                found.append((slot, slot + 1, -1, 0, 0, 0))
                continue
            if head != NULL and not (
                lba == following
                and row[27] == head[27]
                and memcmp(row + 6, head + 6, 14) == 0
                and (slot - first < PART_FRAMES or size < PART_BYTES)
            ):
                found.append((first, slot, self._word(head), head[27], begin, size))
                head = NULL
            if head == NULL:
                head, first, begin, size = row, slot, lba, 0
            size += sectors * SECTOR_SIZE
            following = lba + sectors
        if head != NULL:
            found.append((first, self._count, self._word(head), head[27], begin, size))
        return found

    cdef inline uint64_t _lba(self, unsigned int slot) noexcept:
        cdef uint64_t registers
        memcpy(&registers, self._headers + slot * ROW_BYTES + 28, 8)
        return le64toh(registers) & ((<uint64_t>1 << 48) - 1)

    cdef inline unsigned int _word(self, const uint8_t *row) noexcept:
        """Shelf, slot and AoE command as a number."""
        return row[16] << 24 | row[17] << 16 | row[18] << 8 | row[19]

    cdef inline bint _is_regular(self, unsigned int slot, const uint8_t *mac) noexcept:
        """An ATA request to us, with a number of sectors that a frame can hold and all data if it is a WRITE."""
        cdef uint8_t *row = self._headers + slot * ROW_BYTES
        cdef unsigned int length = self._input[slot].msg_len, sectors = row[26]
        return (
            length >= HEADER_BYTES
            and memcmp(row, mac, 6) == 0
            and not row[6] & 1
            and memcmp(row + 12, REQUEST, 4) == 0
            and 1 <= sectors <= self.max_sectors
            and (not row[27] & WRITE_BIT or length >= HEADER_BYTES + sectors * SECTOR_SIZE)
        )

    def sender(self, unsigned int slot):
        """The MAC that the frame came from."""
        return PyBytes_FromStringAndSize(<char *>self._headers + slot * ROW_BYTES + 6, 6)

    def frame(self, unsigned int slot):
        """The frame in one piece."""
        cdef size_t length = self._input[slot].msg_len
        cdef bytes head = PyBytes_FromStringAndSize(<char *>self._headers + slot * ROW_BYTES, min(length, HEADER_BYTES))
        cdef size_t start = slot * self._stride
        return head if length <= HEADER_BYTES else head + self._payload[start : start + length - HEADER_BYTES]

    def room(self, unsigned int first, unsigned int size):
        """Where the data of the READs from slot ``first`` on go, ``size`` bytes in all."""
        cdef size_t start = first * self._stride
        return self._data[start : start + size]

    def payloads(self, unsigned int first, unsigned int end, unsigned int size):
        """The data of the WRITEs in these slots, ``size`` bytes in all."""
        cdef size_t start = first * self._stride
        cdef unsigned int slot
        if end - first == 1 or size == (end - first) * self._stride:
            return [self._payload[start : start + size]]
        return [
            self._payload[slot * self._stride : slot * self._stride + self._headers[slot * ROW_BYTES + 26] * SECTOR_SIZE]
            for slot in range(first, end)
        ]

    def answer(self, unsigned int first, unsigned int end, bytes mac):
        """Turn the requests of a run, from slot ``first`` to ``end``, into good answers from ``mac``."""
        cdef unsigned int slot
        cdef uint8_t *row
        cdef const char *ours = mac
        cdef uint8_t *data = self._data_memory + first * self._stride
        for slot in range(first, end):
            row = self._headers + slot * ROW_BYTES
            if row[27] & WRITE_BIT:
                self._output_pieces[slot][1].iov_base = self._padding
                self._output_pieces[slot][1].iov_len = SHORTEST_FRAME - HEADER_BYTES
            else:
                self._output_pieces[slot][1].iov_base = data
                self._output_pieces[slot][1].iov_len = row[26] * SECTOR_SIZE
                data += row[26] * SECTOR_SIZE
            memcpy(row, row + 6, 6)
            memcpy(row + 6, ours, 6)
            row[14] = 0x18  # version 1, a response
            row[25] = row[26] = 0  # no error, no sectors left
            row[27] = DRDY
            memset(row + 34, 0, 2)
