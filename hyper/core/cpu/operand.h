/*
 * Operands of a decoded instruction, for those that are interpreted in C.
 */
#ifndef UMXEN_OPERAND_H
#define UMXEN_OPERAND_H
#include "cpu/decode.h"
#include "cpu/engine.h"

static inline uint64_t segment_base(const struct cpu_state *c, const struct insn *i)
{
    return i->segment == 1 + SREG_FS ? c->fs_base : i->segment == 1 + SREG_GS ? c->gs_base : 0;
}

/* Guest virtual address of the ModRM memory operand. */
static inline uint64_t operand_address(const struct cpu_state *c, const struct insn *i)
{
    uint64_t a = i->disp;
    if (i->rip_relative)
        a += i->pc + i->length;
    if (i->base >= 0)
        a += c->regs[i->base];
    if (i->index >= 0)
        a += c->regs[i->index] << i->scale;
    return (i->address_32 ? (uint32_t)a : a) + segment_base(c, i);
}

/* Writes a general register of 1, 2, 4 or 8 bytes as the CPU does: 32 bits clear the upper half, fewer leave the rest. */
static inline void set_register(struct cpu_state *c, unsigned reg, unsigned bytes, uint64_t v)
{
    uint64_t *r = &c->regs[reg];
    if (bytes >= 4)
        *r = bytes == 4 ? (uint32_t)v : v;
    else
        *r = (*r & ~((1ull << 8 * bytes) - 1)) | (v & ((1ull << 8 * bytes) - 1));
}
#endif
