#!/bin/sh
# packages.sh build|test|bench: whether this machine has what that needs. What is missing is installed when
# root on Debian; otherwise one line says which command installs it.
set -u

missing=
need() { # PACKAGE TEST...
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
has_header() {
    echo "#include <$1>" | gcc -E -x c - -o /dev/null
}
has_library() {
    python3 -c "import ctypes; ctypes.CDLL('$1')"
}
has_python_header() {
    python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))'
}

need gcc command -v gcc
need libc6-dev has_header stdio.h
need python3 python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'
need python3-venv python3 -c 'import ensurepip, venv'
need python3-dev has_python_header
case ${1:-build} in
test)
    need xenstore-utils command -v xenstore-ls
    need libxen-dev has_header xen/xen.h
    need busybox-static command -v busybox
    need qemu-system-x86 command -v qemu-system-x86_64
    need qemu-system-common command -v qemu-storage-daemon
    need qemu-utils command -v qemu-img
    need ipxe-qemu test -d /usr/lib/ipxe/qemu
    need vde2 command -v vde_switch
    need libslirp0 has_library libslirp.so.0
    need mmdebstrap command -v mmdebstrap
    need e2fsprogs test -x /sbin/mke2fs
    ;;
bench)
    need qemu-system-x86 command -v qemu-system-x86_64
    need busybox-static command -v busybox
    need mmdebstrap command -v mmdebstrap
    need e2fsprogs test -x /sbin/mke2fs
    need fio command -v fio
    need iperf3 command -v iperf3
    ;;
esac

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing missing system packages:$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $missing >&2 </dev/null && exit 0
    apt-get update -qq >&2 </dev/null
    # shellcheck disable=SC2086
    apt-get install -qq -y --no-install-recommends $missing >&2 </dev/null && exit 0
fi
echo "missing system packages: sudo apt-get install$missing" >&2
exit 1
