# sendmmsg(2), recvmmsg(2), and what frames are made of.

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int sendmmsg(int descriptor, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int descriptor, mmsghdr *messages, unsigned int count, int flags, void *timeout)

cdef extern from "<endian.h>" nogil:
    uint32_t be32toh(uint32_t)
    uint32_t htobe32(uint32_t)
    uint64_t htole64(uint64_t)
    uint64_t le64toh(uint64_t)

cdef enum:
    SLOT_COUNT = 64  # frames per system call
    ROW_BYTES = 64  # from one frame's headers to the next one's
    HEADER_BYTES = 36  # of the Ethernet, AoE and ATA headers
    HEAD_BYTES = 20  # of the headers before the tag
    SHORTEST_FRAME = 60
    SECTOR_SIZE = 512


# Neither of these blocks.

cdef inline int send_messages(int descriptor, mmsghdr *messages, unsigned int count) except -1:
    """How many went out.  OSError when not even the first one did; BlockingIOError when the socket is full."""
    cdef int sent
    while True:
        sent = sendmmsg(descriptor, messages, count, MSG_DONTWAIT)
        if sent >= 0:
            return sent
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)


cdef inline int receive_messages(int descriptor, mmsghdr *messages) except -1:
    """How many frames were there, up to SLOT_COUNT.  OSError for anything but an empty queue: ENETDOWN once when the
    interface went down."""
    cdef int received
    while True:
        received = recvmmsg(descriptor, messages, SLOT_COUNT, MSG_DONTWAIT, NULL)
        if received >= 0:
            return received
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
