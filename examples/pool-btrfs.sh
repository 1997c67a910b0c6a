#!/bin/sh
# Several targets as one pool: btrfs in RAID 1 over two of them, so that a damaged or lost one costs nothing.
#
#     aoefs target (two, as if on two servers)  ->  aoefs  ->  losetup  ->  mkfs.btrfs  ->  use it  ->  repair it
#
# aoefs shows disks and does not pool them: Linux has engines for that, and a loop device is all they need.  btrfs is
# used here since its checksums show which copy is right.  With others, replace step 4 and 5 by
#
#     pvcreate $loops; vgcreate aoe $loops; lvcreate -n pool -m 1 -l 100%VG aoe; mkfs.ext4 /dev/aoe/pool      # LVM
#     mdadm --create /dev/md/aoe --level=1 --raid-devices=2 $loops; mkfs.ext4 /dev/md/aoe                      # md
#
# and take them down with "vgchange -an aoe" or "mdadm --stop /dev/md/aoe" before "losetup -d".  One host at a time may
# use the pool; with "aoefs --reserve" the targets enforce that.
#
# The hosts are network namespaces of this machine, as in vblade-mkfs.sh.  Everything is removed at the end.  As root:
#
#     sudo examples/pool-btrfs.sh
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
PATH=$here/.venv/bin:$PATH:/usr/sbin:/sbin
[ "$(id -u)" -eq 0 ] || { echo "$0: needs root, for network namespaces: run it with sudo" >&2; exit 1; }
for program in aoefs mkfs.btrfs btrfs losetup ip nsenter; do
    command -v $program >/dev/null || { echo "$0: $program is missing: install it first" >&2; exit 1; }
done

servers=aoefs-example-$$-servers
client=aoefs-example-$$-client
work=$(mktemp -d)
targets= loops=

# Everything is removed in reverse order, also after Ctrl-C or an error.
cleanup() {
    trap '' INT TERM HUP
    mountpoint -q "$work/files" && umount "$work/files"
    for loop in $loops; do losetup -d "$loop" 2>/dev/null || true; done
    mountpoint -q "$work/aoe" && aoefs umount "$work/aoe"
    for target in $targets; do kill "$target" 2>/dev/null && wait "$target" || true; done
    for namespace in $client $servers; do
        [ ! -e /run/netns/$namespace ] || ip netns del $namespace
    done
    # Never "rm -r" where a disk may still be mounted.
    rm -f "$work/disk-1.img" "$work/disk-2.img"
    rmdir "$work/files" "$work/aoe" "$work" 2>/dev/null || echo "$0: $work is still in use" >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
set -x

# 1. Two hosts and a cable.
ip netns add $servers
ip netns add $client
ip link add name eth1 mtu 9000 netns $servers type veth peer name eth1 mtu 9000 netns $client
ip -n $servers link set eth1 up
ip -n $client link set eth1 up

# 2. Two targets, one process each.  On real hosts: one on each server.
for number in 1 2; do
    truncate -s 256M "$work/disk-$number.img"
    ip netns exec $servers aoefs target -i eth1 $number.0="$work/disk-$number.img" &
    targets="$targets $!"
done

# 3. On the client: wait until both are there, and mount.
mkdir "$work/aoe" "$work/files"
nsenter --net=/run/netns/$client aoefs -i eth1 "$work/aoe"
until [ -e "$work/aoe/e1.0" ] && [ -e "$work/aoe/e2.0" ]; do sleep 0.1; done

# 4. A loop device on each file.  With direct I/O the data are cached only once, by btrfs.
for name in e1.0 e2.0; do
    loops="$loops $(losetup --find --show --direct-io=on "$work/aoe/$name")"
done

# 5. One file system on both: each block on two targets.  "-K": there is no TRIM through this mount.
# shellcheck disable=SC2086 # a list
mkfs.btrfs -q -K -d raid1 -m raid1 $loops
# shellcheck disable=SC2086
btrfs device scan $loops
mount "${loops##* }" "$work/files"
btrfs filesystem usage -b "$work/files" | grep RAID1

# 6. Use it.
cp -r "$here/aoefs" "$work/files/"
umount "$work/files" # flushes both targets

# 7. A server fails and loses most of disk 2.
for part in "seek=16 count=1008" "seek=1025 count=3071"; do # all but the two superblocks, at 64 KiB and 64 MiB
    # shellcheck disable=SC2086 # two words
    dd if=/dev/zero of="$work/disk-2.img" bs=64K $part conv=notrunc status=none
done

# 8. Nothing is lost: damaged blocks are read from disk 1 and written back to disk 2; a scrub does so for all blocks.
mount "${loops##* }" "$work/files"
diff -r "$here/aoefs" "$work/files/aoefs"
btrfs scrub start -B "$work/files"
btrfs scrub start -B "$work/files" | grep "no errors found"
btrfs device stats "$work/files" | grep corruption

# 9. Take it down, from the top: file system, loop devices, mount.
umount "$work/files"
# shellcheck disable=SC2086
losetup -d $loops
loops=
aoefs umount "$work/aoe"
set +x
echo "done: the pool is whole"
