#!/bin/sh
# A file system on a disk that another host exports with vblade, the usual AoE target of Debian and Ubuntu:
#
#     vblade  ->  aoefs  ->  mkfs.ext4  ->  mount -o loop  ->  use it  ->  umount  ->  e2fsck
#
# The two hosts are two network namespaces of this machine, joined by a virtual cable, so that this can be tried
# anywhere.  Nothing of it touches a real network, and everything is removed at the end.  Run as root:
#
#     sudo examples/vblade-mkfs.sh
set -eu

# The command of this checkout if there is one (examples/quickstart.sh installs it), else the installed one.
here=$(cd "$(dirname "$0")/.." && pwd)
PATH=$here/.venv/bin:$PATH:/usr/sbin:/sbin
[ "$(id -u)" -eq 0 ] || { echo "$0: needs root, for network namespaces: run it with sudo" >&2; exit 1; }
for program in aoefs vblade mkfs.ext4 ip nsenter; do
    command -v $program >/dev/null || { echo "$0: $program is missing: install it first" >&2; exit 1; }
done

server=aoefs-example-$$-server
client=aoefs-example-$$-client
work=$(mktemp -d)
vblade=

# Everything is removed in reverse order, also after Ctrl-C or an error.
cleanup() {
    trap '' INT TERM HUP
    mountpoint -q "$work/files" && umount "$work/files"
    mountpoint -q "$work/aoe" && aoefs umount "$work/aoe"
    [ -z "$vblade" ] || kill "$vblade" 2>/dev/null || true
    for namespace in $client $server; do
        [ ! -e /run/netns/$namespace ] || ip netns del $namespace
    done
    # Never "rm -r" where a disk may still be mounted.
    rm -f "$work/disk.img"
    rmdir "$work/files" "$work/aoe" "$work" 2>/dev/null || echo "$0: $work is still in use" >&2
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
set -x

# 1. Two hosts and a cable.  On real hosts: give both an interface in one Ethernet segment, with an MTU of 9000 if the
#    switch allows it.  No IP addresses are needed: AoE lives right on Ethernet.
ip netns add $server
ip netns add $client
ip link add name eth1 mtu 9000 netns $server type veth peer name eth1 mtu 9000 netns $client
ip -n $server link set eth1 up
ip -n $client link set eth1 up

# 2. On the server: export a file as shelf 0, slot 0.  "-s" makes vblade write through to the disk; without it, a FLUSH
#    from the client does nothing, and what vblade has not yet written is lost when the server loses its power.
truncate -s 256M "$work/disk.img"
ip netns exec $server vblade -s 0 0 eth1 "$work/disk.img" &
vblade=$!

# 3. On the client: wait until the disk is found, then mount.  "ip netns exec" would hide the mount from this shell, so
#    nsenter is used here; on a real host just write: aoefs -i eth1 /mnt/aoe
mkdir "$work/aoe" "$work/files"
until nsenter --net=/run/netns/$client aoefs discover -i eth1 | grep e0.0; do sleep 0.1; done
nsenter --net=/run/netns/$client aoefs -i eth1 "$work/aoe"
ls -l "$work/aoe"

# 4. A file system, directly on the file; the kernel mounts it through a loop device.
#    "nodiscard": there is no TRIM through this mount, so mkfs need not try it.
mkfs.ext4 -q -E nodiscard "$work/aoe/e0.0"
mount -o loop "$work/aoe/e0.0" "$work/files"

# 5. Use it.  "sync FILE" and fsync(2) go all the way to the target.
cp -r "$here/examples" "$work/files/"
sync "$work/files/examples/vblade-mkfs.sh"
ls "$work/files/examples"
df -h "$work/files"

# 6. Take it down: first the file system, then the mount.  "aoefs umount" returns when everything is at the target and
#    the mount process is gone.
umount "$work/files"
aoefs umount "$work/aoe"

# 7. On the server the file holds a clean ext4.
e2fsck -f -n "$work/disk.img"
set +x
echo "done: the file system is whole"
