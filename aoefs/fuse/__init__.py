"""The mount: files and directories for pyfuse3, from the kernel's request to a call of a disk and back.

Owns inode numbers, open files, control files, partitions, read-ahead, the worker loop, and the life of a mount from
its first interface to its last flush.

Imports everything below it, and pyfuse3, which no other floor does.
Begin with ``mount``; a read starts in ``operations``.
"""
