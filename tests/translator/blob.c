/*
 * The file of programs, and the random numbers that everything starts from.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"

struct blob blob;

void blob_load(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        die("%s can't be read", path);
    uint8_t *p = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED || memcmp(p, "UMXPROG1", 8))
        die("%s is not a file of programs", path);
    close(fd);
    blob.header = (struct header *)p;
    blob.program = (struct program *)(p + sizeof(struct header));
    blob.resume = (uint32_t *)(blob.program + blob.header->nr_programs);
    blob.rule = (struct rule *)(blob.resume + blob.header->nr_resumes);
    blob.code = (uint8_t *)(blob.rule + blob.header->nr_rules);
    if (blob.header->code_bytes > CODE_PAGES * PAGE_SIZE)
        die("too much code");
}

/* ---- random numbers --------------------------------------------------------------------------------------------- */

__thread uint64_t random_state;
uint64_t random64(void)
{
    uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

/* Numbers that instructions find interesting. */
uint64_t random_word(void)
{
    static const uint64_t edge[] = {0, 1, ~0ull, 0x7f, 0x80, 0x7fff, 0x8000, 0x7fffffff, 0x80000000, 0xffffffff,
                                    0x7fffffffffffffff, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000,
                                    0x7ff0000000000000, 0x7ff8000000000000, 0x3f8000003f800000, 0x7f8000007fc00000};
    uint64_t r = random64();
    switch (r & 7) {
    case 0: return edge[(r >> 8) % ARRAY_SIZE(edge)];
    case 1: return (int64_t)r >> 56;
    case 2: return (int64_t)r >> 44;
    case 3: { /* a double, or two floats, of a moderate size */
        double d = (double)((int64_t)r >> 40) / 64;
        float f[2] = {(float)d, (float)((int32_t)r >> 12) / 16};
        uint64_t bits;
        memcpy(&bits, r & 64 ? (void *)&d : (void *)f, 8);
        return bits;
    }
    default: return random64();
    }
}
