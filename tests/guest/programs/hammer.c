/*
 * Writes and verifies a disk without a pause: `hammer DEVICE SECONDS WORKERS`. Runs inside a guest.
 *
 * Each worker has a region of its own and remembers which version of each chunk it wrote last and was told is written. A
 * chunk's every 512 bytes say where they belong, in which version, with a checksum; so a lost write, a torn one and one that
 * landed elsewhere are all seen. I/O is O_DIRECT: what is read comes from the disk. At the end each region is read once more.
 * Exit status 0, or a line that begins with CORRUPT or FAILED.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (64 * 1024)
#define CHUNKS 64
#define REGION ((off_t)CHUNK * CHUNKS)
#define WORDS (512 / 8)

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

static void fill(uint64_t *sector, uint64_t place, uint64_t version)
{
    sector[0] = place, sector[1] = version;
    for (int i = 2; i < WORDS; i++)
        sector[i] = mix(place * 1000003 + version * 31 + i);
}

static uint64_t worker, version[CHUNKS], done_writes;
static uint64_t *buffer;

static void check(int chunk, off_t at)
{
    uint64_t want[WORDS];

    for (int s = 0; s < CHUNK / 512; s++) {
        uint64_t place = (uint64_t)at / 512 + s, *got = buffer + s * WORDS;

        if (!version[chunk])
            memset(want, 0, sizeof(want));
        else
            fill(want, place, version[chunk]);
        if (memcmp(got, want, 512)) {
            printf("CORRUPT worker %d sector %llu version %llu: has sector %llu version %llu\n", (int)worker,
                   (unsigned long long)place, (unsigned long long)version[chunk], (unsigned long long)got[0],
                   (unsigned long long)got[1]);
            exit(1);
        }
    }
}

static void fail(const char *what, ssize_t got)
{
    printf("FAILED %s: %zd %s\n", what, got, strerror(errno));
    exit(1);
}

static void read_chunk(int disk, int chunk)
{
    off_t at = worker * REGION + (off_t)chunk * CHUNK;
    ssize_t got = pread(disk, buffer, CHUNK, at);

    if (got != CHUNK)
        fail("read", got);
    check(chunk, at);
}

static void write_chunk(int disk, int chunk)
{
    off_t at = worker * REGION + (off_t)chunk * CHUNK;

    for (int s = 0; s < CHUNK / 512; s++)
        fill(buffer + s * WORDS, (uint64_t)at / 512 + s, version[chunk] + 1);
    ssize_t got = pwrite(disk, buffer, CHUNK, at);

    if (got != CHUNK)
        fail("write", got);
    version[chunk]++;
    done_writes++;
}

static int work(const char *path, int seconds)
{
    int disk = open(path, O_RDWR | O_DIRECT);
    time_t end = time(NULL) + seconds;
    uint64_t random = worker + 1;

    if (disk < 0 || posix_memalign((void **)&buffer, 4096, CHUNK))
        fail(path, disk);
    while (time(NULL) < end) {
        int chunk = (random = mix(random + 1)) % CHUNKS;

        if (random >> 32 & 1)
            write_chunk(disk, chunk);
        else
            read_chunk(disk, chunk);
        if ((random >> 33) % 64 == 0 && fdatasync(disk))
            fail("flush", -1);
    }
    for (int chunk = 0; chunk < CHUNKS; chunk++)
        read_chunk(disk, chunk);
    printf("worker %d verified %llu writes\n", (int)worker, (unsigned long long)done_writes);
    return 0;
}

int main(int argc, char **argv)
{
    int workers = argc > 3 ? atoi(argv[3]) : 4, status, bad = 0;

    if (argc < 3)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (worker = 0; (int)worker < workers; worker++)
        if (!fork())
            return work(argv[1], atoi(argv[2]));
    while (wait(&status) > 0)
        bad |= status;
    puts(bad ? "hammer: failed" : "hammer: all verified");
    return bad != 0;
}
