/*
 * Segments: the hidden parts of the segment registers, which are the descriptors as they were when the selectors were loaded.
 *
 * 64-bit code uses none of them but the bases of FS and GS, which live in cpu_state apart (they have 64 bits). 32-bit code uses
 * all; mostly they are flat, and then nothing but the bases of FS and GS is added to an address. cpu_state.code says at each
 * moment which of the two holds, so that translated code need not look.
 */
#ifndef UMXEN_SEGMENT_H
#define UMXEN_SEGMENT_H
#include "cpu/engine.h"

#define DESC_PRESENT (1ull << 47)
#define DESC_NOT_SYSTEM (1ull << 44)
#define DESC_CODE (1ull << 43)
#define DESC_EXPAND_DOWN (1ull << 42) /* of data */
#define DESC_CONFORMING (1ull << 42)  /* of code */
#define DESC_READ_WRITE (1ull << 41)  /* data may be written, code may be read */
#define DESC_ACCESSED (1ull << 40)
#define DESC_GRANULAR (1ull << 55)
#define DESC_BIG (1ull << 54)  /* 32 bit */
#define DESC_LONG (1ull << 53) /* 64-bit code */

#define DESC_FLAT_CODE32 0x00cffb000000ffffull
#define DESC_FLAT_DATA32 0x00cff3000000ffffull
#define DESC_FLAT_CODE64 0x00affb000000ffffull

static inline uint32_t descriptor_base(uint64_t d) { return ((d >> 16) & 0xffffff) | (d >> 56) << 24; }
static inline uint32_t descriptor_limit(uint64_t d)
{
    uint32_t limit = (d & 0xffff) | (d >> 32 & 0xf0000);
    return d & DESC_GRANULAR ? limit << 12 | 0xfff : limit;
}

/* 4 GiB of memory that may be read and written. */
static inline bool descriptor_is_unlimited(uint64_t d)
{
    return (d & (DESC_PRESENT | DESC_CODE | DESC_EXPAND_DOWN | DESC_READ_WRITE)) == (DESC_PRESENT | DESC_READ_WRITE) &&
           descriptor_limit(d) == ~0u;
}
static inline bool descriptor_is_flat(uint64_t d) { return descriptor_is_unlimited(d) && !descriptor_base(d); }

/* Code segments we run: 64-bit ones, and 32-bit ones of 4 GiB at 0. */
static inline bool descriptor_is_runnable(uint64_t d)
{
    if ((d & (DESC_PRESENT | DESC_NOT_SYSTEM | DESC_CODE)) != (DESC_PRESENT | DESC_NOT_SYSTEM | DESC_CODE))
        return false;
    return d & DESC_LONG ? !(d & DESC_BIG) : (d & DESC_BIG) && !descriptor_base(d) && descriptor_limit(d) == ~0u;
}

/* After a change of a descriptor. */
static inline void cpu_update_code(struct cpu_state *c)
{
    const uint64_t *d = c->descriptor;
    if (d[SREG_CS] & DESC_LONG) {
        c->code = 0;
        return;
    }
    bool flat = descriptor_is_flat(d[SREG_DS]) && descriptor_is_flat(d[SREG_ES]) && descriptor_is_flat(d[SREG_SS]);
    c->code = CODE_COMPAT | (flat ? 0 : CODE_CHECKED) | (descriptor_is_unlimited(d[SREG_FS]) ? 0 : CODE_CHECKED_FS) |
              (descriptor_is_unlimited(d[SREG_GS]) ? 0 : CODE_CHECKED_GS);
}

static inline void cpu_set_segment(struct cpu_state *c, enum sreg sreg, uint16_t selector, uint64_t descriptor)
{
    c->sreg[sreg] = selector;
    c->descriptor[sreg] = descriptor;
    cpu_update_code(c);
}

/* The flat 64-bit segments that an entry to a 64-bit kernel, or a return of a system call, leaves in CS and SS. */
static inline void cpu_set_flat(struct cpu_state *c, uint16_t cs, uint64_t code_descriptor, uint16_t ss)
{
    c->sreg[SREG_SS] = ss;
    c->descriptor[SREG_SS] = DESC_FLAT_DATA32;
    cpu_set_segment(c, SREG_CS, cs, code_descriptor);
}

/* May these bytes be accessed? A segment of 4 GiB has no end: addresses go on at 0. */
static inline bool segment_allows(uint64_t d, uint32_t offset, unsigned bytes, bool write)
{
    uint32_t last = offset + bytes - 1, limit = descriptor_limit(d);
    bool may_write = !(d & DESC_CODE) && (d & DESC_READ_WRITE), may_read = !(d & DESC_CODE) || (d & DESC_READ_WRITE);
    if (!(d & DESC_PRESENT) || !(write ? may_write : may_read))
        return false;
    if (!(d & DESC_CODE) && (d & DESC_EXPAND_DOWN))
        return offset > limit && last >= offset && last <= (d & DESC_BIG ? ~0u : 0xffff);
    return limit == ~0u || (last >= offset && last <= limit);
}

static inline uint64_t segment_base(const struct cpu_state *c, enum sreg sreg)
{
    return sreg == SREG_FS ? c->fs_base : sreg == SREG_GS ? c->gs_base : c->code ? descriptor_base(c->descriptor[sreg]) : 0;
}

/* The address of an offset in a segment; false: the segment refuses `bytes` there (#SS for SREG_SS, else #GP). */
static inline bool segment_address(const struct cpu_state *c, enum sreg sreg, uint64_t offset, unsigned bytes, bool write,
                                   uint64_t *vaddr)
{
    *vaddr = offset + segment_base(c, sreg);
    if (!c->code)
        return true;
    *vaddr = (uint32_t)*vaddr;
    return segment_allows(c->descriptor[sreg], offset, bytes, write);
}
#endif
