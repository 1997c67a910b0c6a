"""The whole initiator on a virtual clock, from one seed: users, mount, engine, network, disks, and what breaks.

    python -m tests.simulation --minutes 30      as many seeds as fit
    python -m tests.simulation --seed 7 -v       one of them, with its log
    python -m tests.simulation --liar            with a hostile host on the segment (``liar``)

From a seed, ``plan`` draws the machines, the options of the mount, and a schedule of user actions and faults.  ``run``
carries it out: FUSE operations as pyfuse3 would call them (``mount``), on an engine whose links lead to simulated
cables (``world``) and disks with volatile caches (``drive``).  ``register`` knows what each byte of each disk may be.

What is checked: every call ends within its bound, and at once after the stop.  No background task fails.  Each sector
is an atomic register: a read shows a write that it could have seen, and never an older one than an earlier read.  What
a good fsync or close covered survives a power cut, and so does everything if the last flush succeeded.  A lost write is
reported.  Nothing is written to another disk than the user's.  At rest nothing is left in any queue.

What always holds: the same seed is the same run, byte for byte.  So time, random numbers, the order of ready tasks and
the kernel's notices come from the run itself, and no task of the world outside exists: it is a heap of events.

Not simulated: packet sockets and landing (tests/net), threads, the kernel's page cache, processes (tests/soak).
"""
