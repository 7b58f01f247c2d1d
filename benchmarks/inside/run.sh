#!/bin/sh
# run.sh TOOLS SCRATCH PYTHON: data into SCRATCH, then each workload once under clock.
tools=$1 scratch=$2 python=$3
cd "$scratch" || exit 1
awk 'BEGIN { x = 1; for (i = 0; i < 100000; i++) { x = (x * 69069 + 1) % 4294967296; print x } }' > numbers
for k in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat numbers; done > data
clock=$tools/clock
export PYTHONHASHSEED=0 # a fresh guest has no random numbers yet: python would wait a second for them
echo "clock: begins"
$clock sh sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'
$clock md5sum md5sum data data data
$clock sha256sum sha256sum data data
$clock gzip gzip -c numbers
$clock sort sort numbers numbers
$clock awk awk '{ s[$1 % 100] += length($1) } END { for (k in s) print k, s[k] }' numbers
$clock fork+exec "$clock" forks 1000 "$tools/busybox" true
$clock 'dd bs=1' dd if=/dev/zero of=/dev/null bs=1 count=200000
$clock python3 "$python" -S -s "$tools/pystone.py" 150000
$clock matmul "$clock" matmul 200 30
echo "clock: ends"
