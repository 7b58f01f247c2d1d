# io.sh, in a guest's initramfs: one role of benchmarks.io. fio and iperf3 are on the root disk, mounted read-only.
# The kernel's command line says bench.role=disk|host|server|client bench.seconds=N, and for the network bench.port=N,
# bench.peer=ADDRESS, bench.own=ADDRESS (without: by DHCP).
read -r line < /proc/cmdline
for word in $line; do
    case $word in bench.*=*) export "${word#bench.}" ;; esac
done
for module in $(cat /lib/modules/*/root-order); do insmod /lib/modules/*/"$module" 2> /dev/null; done
letter=v
[ -e /sys/hypervisor/type ] && letter=xv
until [ -b /dev/${letter}da ]; do sleep 0.1; done
mkdir -p /mnt
mount -t ext4 -o ro,noload /dev/${letter}da /mnt
for folder in dev proc sys; do mount --bind /$folder /mnt/$folder; done
mount -t tmpfs tmpfs /mnt/tmp

fio() { # NAME ARGUMENTS...
    name=$1
    shift
    chroot /mnt fio --name=io --filename=/dev/${letter}db --direct=1 --ioengine=libaio --time_based \
        --runtime="$seconds" --size=100% --minimal "$@" 2> /dev/null |
        awk -F';' -v name="$name" '/;/ { print "result: " name " " ($7 + $48) * 1024 }'
}
iperf() { # NAME ARGUMENTS...
    name=$1
    shift
    chroot /mnt iperf3 -p "$port" -t "$seconds" -J "$@" |
        awk -v name="$name" '/"error"/ { print } /sum_received/ { found = 1 }
            found && /bits_per_second/ { sub(",", ""); print "result: " name " " $2; exit }'
}
network() {
    until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done
    ip link set eth0 up
    if [ -n "$own" ]; then ip addr add "$own/24" dev eth0; else udhcpc -q -i eth0 -s /dhcp.sh; fi
}

echo "clock: begins"
case $role in
disk)
    until [ -b /dev/${letter}db ]; do sleep 0.1; done
    fio seq-write --rw=write --bs=1M --iodepth=4
    fio seq-read --rw=read --bs=1M --iodepth=4
    fio rand-write --rw=randwrite --bs=4k --iodepth=32
    fio rand-read --rw=randread --bs=4k --iodepth=32
    ;;
host)
    network
    iperf to-host -c "$peer"
    iperf from-host -c "$peer" -R
    ;;
server)
    network
    chroot /mnt iperf3 -p "$port" -s -D
    sleep 1
    echo "clock: serves"
    sleep 600
    ;;
client)
    network
    until ping -c 1 -W 1 "$peer" > /dev/null; do sleep 0.2; done
    iperf guest-to-guest -c "$peer"
    ;;
esac
echo "clock: ends"
