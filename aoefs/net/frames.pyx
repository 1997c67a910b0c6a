# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames in C: runs onto a socket, and answers off it, many of each per system call.

Owns the headers that are sent and the memory that is received into, for one link.  :meth:`Frames.send` makes the
headers of a run and sends them with the data of the writer's buffer.  :meth:`Frames.receive` gives *entries*, (run,
first, count): good answers whose data are in place; and *odd frames*: whole frames that must be checked one by one
(config answers, errors, unknown tags, damaged frames).  A good answer never costs an object of its own.

**How answers land.**  Right before each recvmmsg(2) the runs in flight are gone through in the order of their sending,
and each message slot is given the *place* of the next answer in the reader's buffer.  Every frame is then compared with
what it has to be.  A frame that came to another slot than expected lies in the wrong place (and may continue in the
*spill* of the slot): it is copied out, and moved to its own place if it is good.  Runs of few commands get no places:
a copy costs less than asking the run whether it still flies.

What holds always:

- A place belongs to a command in flight, of a request that has not ended, and to one slot only.  So the right frame
  overwrites a wrong one in its place, which never reaches a reader.
- A read of which a command was sent twice has no places: the late answer to the first sending may have filled what a
  frame in the place of the second one would spoil.
- All wrong frames of a batch are copied out before the first of them is moved to its place.
- An entry is made only of an answer on the link and from the MAC that the command was sent to, with its tag, shelf,
  slot and command, and with all of its data.  Every other frame is odd, and ``engine.receiver`` checks it.
- Addresses are used only while the interpreter is held and the run has not ended, so the buffer that its request
  refers to is alive.  Neither system call blocks.

Rejected: TPACKET_V2 rings (slower here: small batches, and one more copy in the other process's time), and landing all
payloads in an arena (one more copy of every byte).
"""

import errno

from aoefs.core.request import Run
from aoefs.net.packetsocket import LINK_FULL
from aoefs.protocol.ata import DEVICE_LBA, FAILED, TRANSFERS

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from aoefs.net.mmsg cimport (
    HEAD_BYTES, HEADER_BYTES, ROW_BYTES, SECTOR_SIZE, SHORTEST_FRAME, SLOT_COUNT,
    be32toh, htobe32, htole64, iovec, mmsghdr, receive_messages, send_messages,
)

cdef enum:
    PLACED_COMMANDS = 3  # of a run, from which on its answers get places

SLOTS = SLOT_COUNT  # frames per system call

cdef uint64_t _device_lba = DEVICE_LBA
cdef uint8_t _failed = FAILED
cdef uint8_t[2][2][2] _transfers  # write, lba48: AFlags and command
for _write in (False, True):
    for _lba48 in (False, True):
        _transfers[_write][_lba48][0], _transfers[_write][_lba48][1] = TRANSFERS[_write, _lba48]


def make_buffer(Py_ssize_t size_bytes):
    """Memory for a read.  It is not zeroed: every byte comes from the disk, or the buffer is thrown away."""
    return memoryview(PyByteArray_FromStringAndSize(NULL, size_bytes))


cdef class _Flight:
    """A run as C needs it.  ``waiting`` has a bit for each command whose answer did not come by this link."""

    cdef object run, request
    cdef bytes request_head
    cdef uint8_t *address  # of the request's buffer; good while the request has not ended
    cdef uint64_t waiting
    cdef uint64_t lba  # of its first sector
    cdef uint32_t tag
    cdef unsigned int count, step, sector, sectors, next, batch
    cdef bint write, lba48
    cdef uint8_t[HEAD_BYTES] head  # of its answers

    cdef inline unsigned int data_bytes(self, unsigned int index) noexcept:
        return min(self.step, self.sectors - index * self.step) * SECTOR_SIZE

    cdef inline uint8_t *place(self, unsigned int index) noexcept:
        return self.address + <size_t>(self.sector + index * self.step) * SECTOR_SIZE


cdef struct _Slot:
    PyObject *flight  # a _Flight whose answer is expected here, or NULL
    unsigned int index
    bint placed  # the data go to the reader's buffer
    PyObject *owner  # what came: the _Flight that it answers, or NULL for an odd frame
    unsigned int answer


cdef uint64_t _mask(unsigned int count) noexcept:
    return ~<uint64_t>0 if count >= 64 else (<uint64_t>1 << count) - 1


cdef class Frames:
    """The two halves of one link: its packet socket, and the tags by which answers are recognised."""

    cdef object _socket, _tags
    cdef dict _flights  # by the upper bits of the tag, in the order in which their answers should come
    cdef uint8_t *_sent_headers
    cdef uint8_t *_headers
    cdef uint8_t *_spill
    cdef size_t _spill_bytes  # of a slot
    cdef mmsghdr[SLOT_COUNT] _output, _input
    cdef iovec[SLOT_COUNT][2] _output_pieces
    cdef iovec[SLOT_COUNT][3] _input_pieces  # headers, place, spill
    cdef _Slot[SLOT_COUNT] _slots
    cdef unsigned int _batch

    def __cinit__(self):
        cdef unsigned int slot
        self._sent_headers = <uint8_t *>PyMem_Calloc(SLOT_COUNT, ROW_BYTES)
        self._headers = <uint8_t *>PyMem_Calloc(SLOT_COUNT, ROW_BYTES)
        if self._sent_headers == NULL or self._headers == NULL:
            raise MemoryError
        for slot in range(SLOT_COUNT):
            self._output_pieces[slot][0].iov_base = self._sent_headers + slot * ROW_BYTES
            self._output[slot].msg_hdr.msg_iov = self._output_pieces[slot]
            self._input_pieces[slot][0].iov_base = self._headers + slot * ROW_BYTES
            self._input_pieces[slot][0].iov_len = HEADER_BYTES
            self._input[slot].msg_hdr.msg_iov = self._input_pieces[slot]
            self._input[slot].msg_hdr.msg_iovlen = 3

    def __init__(self, socket, tags):
        self._socket = socket
        self._tags = tags
        self._flights = {}

    def __dealloc__(self):
        PyMem_Free(self._sent_headers)
        PyMem_Free(self._headers)
        PyMem_Free(self._spill)

    # ── onto the wire ─────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, run):
        """Send ``run``; how many of its commands the socket took.

        A link that is down takes all of them: they are lost, and recovery sends them on another path.
        """
        cdef _Flight flight = self._flight(run)
        cdef uint64_t lba = flight.lba
        cdef unsigned int index, sectors
        cdef uint8_t *row
        cdef uint32_t tag
        cdef uint64_t device = 0 if flight.lba48 else _device_lba
        cdef uint8_t *transfer = _transfers[flight.write][flight.lba48]
        cdef int sent
        for index in range(flight.count):
            row = self._sent_headers + index * ROW_BYTES
            sectors = min(flight.step, flight.sectors - index * flight.step)
            memcpy(row, <const char *>flight.request_head, HEAD_BYTES)
            tag = htobe32(flight.tag ^ index)
            memcpy(row + 20, &tag, 4)
            row[24] = transfer[0]
            row[25] = 0
            row[26] = sectors
            row[27] = transfer[1]
            (<uint64_t *>(row + 28))[0] = htole64(lba | device)
            lba += sectors
            self._output_pieces[index][0].iov_len = HEADER_BYTES if flight.write else SHORTEST_FRAME
            self._output[index].msg_hdr.msg_iovlen = 2 if flight.write else 1
            if flight.write:
                self._output_pieces[index][1].iov_base = flight.place(index)
                self._output_pieces[index][1].iov_len = sectors * SECTOR_SIZE
        try:
            sent = send_messages(self._socket.descriptor, self._output, flight.count)
        except OSError as error:
            self._socket.on_send_error(error)
            return 0 if error.errno in LINK_FULL or error.errno == errno.EMSGSIZE else flight.count
        self._socket.tx_frames += sent
        flight.count = sent
        flight.waiting = _mask(sent)
        self._flights[flight.tag >> 6] = flight
        return sent

    cdef _Flight _flight(self, run):
        cdef _Flight flight = _Flight.__new__(_Flight)
        cdef bytes head
        cdef object buffer
        cdef Py_buffer view
        flight.run = run
        (flight.request_head, head, flight.lba48, flight.request, buffer, flight.write, flight.lba, flight.tag,
         flight.count, flight.step, flight.sector, flight.sectors) = run.facts()
        memcpy(flight.head, <const char *>head, HEAD_BYTES)
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE if flight.write else PyBUF_WRITABLE)
        flight.address = <uint8_t *>view.buf
        PyBuffer_Release(&view)
        return flight

    # ── off the wire ──────────────────────────────────────────────────────────────────────────────────────────────

    def receive(self):
        """Take one batch: (number of frames, good answers in place, odd frames).  OSError as recvmmsg(2)."""
        cdef int planned, slot, received
        cdef list odd = []
        cdef bint stray = False, disturbed = False
        cdef size_t largest = max(2048, <size_t>self._socket.mtu + 64)
        if self._spill_bytes < largest:
            self._allocate_spill(largest)
        planned = self._plan()
        received = receive_messages(self._socket.descriptor, self._input)
        if not received:
            return 0, [], []
        self._socket.rx_frames += received
        self._batch += 1
        kept = []  # flights that were found by the table of all tags
        for slot in range(received):
            self._recognise_untrusted(slot, slot < planned, kept)
        for slot in range(received):
            if not self._in_place(slot):
                stray = True
                self._copy_out(slot)
        if stray:
            for slot in range(received):
                if self._slots[slot].owner == NULL:
                    odd.append(self._whole(slot))
                elif not self._in_place(slot):
                    disturbed |= self._land(slot)
        entries = self._entries(received)
        if disturbed:
            self._reorder()
        return received, entries, odd

    cdef _allocate_spill(self, size_t size):
        """A row for each slot."""
        cdef unsigned int slot
        cdef uint8_t *memory = <uint8_t *>PyMem_Calloc(SLOT_COUNT, size)
        if memory == NULL:
            raise MemoryError
        PyMem_Free(self._spill)
        self._spill, self._spill_bytes = memory, size
        for slot in range(SLOT_COUNT):
            self._input_pieces[slot][2].iov_base = memory + slot * self._spill_bytes
            self._input_pieces[slot][2].iov_len = self._spill_bytes

    cdef int _plan(self) except -1:
        """Expect the next answers in the slots, and give those of larger runs their places; how many are expected."""
        cdef unsigned int slot = 0, index, before
        cdef uint64_t flying
        cdef bint placed
        cdef _Flight flight
        cdef list over = []
        for flight in self._flights.values():
            if slot == SLOT_COUNT:
                break
            before, flying, placed = slot, flight.waiting, False
            if flight.count >= PLACED_COMMANDS:
                flying &= <uint64_t>flight.run.flying
                if flight.request.ended:
                    flying = 0
                placed = not flight.write and not flight.request.copies
            for index in range(flight.next, flight.count):
                if flying >> index & 1:
                    self._slots[slot].flight = <PyObject *>flight
                    self._slots[slot].index = index
                    self._slots[slot].placed = placed
                    if placed:
                        self._input_pieces[slot][1].iov_base = flight.place(index)
                    self._input_pieces[slot][1].iov_len = flight.data_bytes(index) if placed else 0
                    slot += 1
                    if slot == SLOT_COUNT:
                        break
            if slot == before and (flight.request.ended or not <uint64_t>flight.run.flying):
                over.append(flight.tag >> 6)
        for index in range(slot, SLOT_COUNT):
            self._slots[index].flight = NULL
            self._slots[index].placed = False
            self._input_pieces[index][1].iov_len = 0
        for block in over:
            del self._flights[block]
        return slot

    cdef _recognise_untrusted(self, unsigned int slot, bint expected, list kept):
        """Find out whose good answer the frame in a slot is."""
        cdef uint8_t *head = self._headers + slot * ROW_BYTES
        cdef unsigned int length = self._input[slot].msg_len
        cdef uint32_t tag
        cdef _Flight flight = None
        self._slots[slot].owner = NULL
        if length < HEADER_BYTES or head[27] & _failed:
            return
        memcpy(&tag, head + 20, 4)
        tag = be32toh(tag)
        if expected:
            flight = <_Flight>self._slots[slot].flight
        if flight is None or (tag ^ flight.tag) >> 6:
            flight = self._flights.get(tag >> 6)
            if flight is None:
                flight = self._find(tag)
                if flight is None:
                    return
                kept.append(flight)
        if tag ^ flight.tag >= flight.count or memcmp(head, flight.head, HEAD_BYTES):
            return
        if not flight.write and length < HEADER_BYTES + flight.data_bytes(tag ^ flight.tag):
            return
        self._slots[slot].owner = <PyObject *>flight
        self._slots[slot].answer = tag ^ flight.tag

    cdef _Flight _find(self, uint32_t tag):
        """A run that was given up, of which late answers are still known."""
        run = self._tags.find(tag)
        if run.__class__ is Run and run.path.interface == self._socket.interface:
            return self._flight(run)
        return None

    cdef inline bint _in_place(self, unsigned int slot) noexcept:
        """The frame lies where it belongs, or needs no place."""
        cdef _Slot *it = &self._slots[slot]
        return it.owner != NULL and it.owner == it.flight and it.answer == it.index and (
            it.placed or (<_Flight>it.owner).write
        )

    cdef void _copy_out(self, unsigned int slot) noexcept:
        """Bring the data of a frame together in the spill of its slot."""
        cdef size_t length = self._input[slot].msg_len, rest, placed
        cdef uint8_t *row = self._spill + slot * self._spill_bytes
        if length <= HEADER_BYTES:
            return
        rest = min(length - HEADER_BYTES, self._spill_bytes)
        placed = min(rest, self._input_pieces[slot][1].iov_len)
        if placed:
            memmove(row + placed, row, rest - placed)
            memcpy(row, self._input_pieces[slot][1].iov_base, placed)

    cdef bytes _whole(self, unsigned int slot):
        """The frame of a slot in one piece, after :meth:`_copy_out`."""
        cdef size_t length = self._input[slot].msg_len
        cdef bytes head = PyBytes_FromStringAndSize(<char *>self._headers + slot * ROW_BYTES, min(length, HEADER_BYTES))
        if length <= HEADER_BYTES:
            return head
        length = min(length - HEADER_BYTES, self._spill_bytes)
        return head + PyBytes_FromStringAndSize(<char *>self._spill + slot * self._spill_bytes, length)

    cdef bint _land(self, unsigned int slot) except -1:
        """Move the data of a good answer to their place; whether another answer was expected in its slot."""
        cdef _Slot *it = &self._slots[slot]
        cdef _Flight flight = <_Flight>it.owner
        if not flight.write and not flight.request.ended:
            memcpy(flight.place(it.answer), self._spill + slot * self._spill_bytes, flight.data_bytes(it.answer))
        return it.owner != it.flight or it.answer != it.index

    cdef list _entries(self, unsigned int received):
        """The good answers of a batch; consecutive ones of a run are one entry."""
        cdef list entries = [], over = []
        cdef unsigned int slot, first = 0, count = 0
        cdef _Slot *it
        cdef _Flight flight = None, answered
        for slot in range(received):
            it = &self._slots[slot]
            if it.owner == NULL:
                continue
            answered = <_Flight>it.owner
            if flight is answered and it.answer == first + count:
                count += 1
            else:
                if flight is not None:
                    entries.append((flight.run, first, count))
                flight, first, count = answered, it.answer, 1
            answered.batch = self._batch
            answered.next = max(answered.next, it.answer + 1)
            if answered.waiting:
                answered.waiting &= ~(<uint64_t>1 << it.answer)
                if not answered.waiting:
                    over.append(answered.tag >> 6)
        if flight is not None:
            entries.append((flight.run, first, count))
        for block in over:  # only now: the slots refer to them
            del self._flights[block]
        return entries

    cdef _reorder(self):
        """The answers did not come as expected: runs that were passed over go to the end, unless they are over."""
        cdef Py_ssize_t last = 0
        cdef _Flight flight
        cdef list passed = []
        for flight in self._flights.values():
            if flight.batch == self._batch:
                last = len(passed)
            passed.append(flight)
        for flight in passed[:last]:
            if flight.batch != self._batch:
                block = flight.tag >> 6
                del self._flights[block]
                if <uint64_t>flight.run.flying:
                    self._flights[block] = flight
