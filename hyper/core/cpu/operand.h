/*
 * Operands of a decoded instruction, for those that are interpreted in C.
 */
#ifndef UMXEN_OPERAND_H
#define UMXEN_OPERAND_H
#include "cpu/decode.h"
#include "cpu/segment.h"

/* The segment of the memory operand. */
static inline enum sreg insn_segment(const struct insn *i)
{
    return i->segment ? i->segment - 1 : i->base == RSP || i->base == RBP ? SREG_SS : SREG_DS;
}

/* Low bits that an address, or a counter of a string instruction, is made of. */
static inline uint64_t address_mask(const struct insn *i)
{
    return i->address_16 ? 0xffff : i->address_32 ? 0xffffffff : ~0ull;
}

/* Offset of the ModRM memory operand in its segment. */
static inline uint64_t operand_offset(const struct cpu_state *c, const struct insn *i)
{
    uint64_t a = i->disp;
    if (i->rip_relative)
        a += i->pc + i->length;
    if (i->base >= 0)
        a += c->regs[i->base];
    if (i->index >= 0)
        a += c->regs[i->index] << i->scale;
    return a & address_mask(i);
}

/* segment_address, with the fault described in fault_error. */
static inline bool locate(struct cpu_state *c, enum sreg sreg, uint64_t offset, unsigned bytes, bool write, uint64_t *vaddr)
{
    if (segment_address(c, sreg, offset, bytes, write, vaddr))
        return true;
    c->fault_error = sreg == SREG_SS ? FAULT_STACK_SEGMENT : FAULT_SEGMENT;
    return false;
}

/* Guest virtual address of `bytes` at the ModRM memory operand. */
static inline bool operand_address(struct cpu_state *c, const struct insn *i, unsigned bytes, bool write, uint64_t *vaddr)
{
    return locate(c, insn_segment(i), operand_offset(c, i), bytes, write, vaddr);
}

/* The stack pointer, and bytes of a stack slot, of the code that runs. */
static inline uint64_t stack_mask(const struct cpu_state *c) { return c->code ? 0xffffffff : ~0ull; }
static inline unsigned stack_word(const struct cpu_state *c) { return c->code ? 4 : 8; }
/* Address of `bytes` at rsp + distance. */
static inline bool stack_address(struct cpu_state *c, int64_t distance, unsigned bytes, bool write, uint64_t *vaddr)
{
    return locate(c, SREG_SS, (c->regs[RSP] + distance) & stack_mask(c), bytes, write, vaddr);
}
static inline void stack_move(struct cpu_state *c, int64_t distance)
{
    c->regs[RSP] = (c->regs[RSP] + distance) & stack_mask(c);
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
