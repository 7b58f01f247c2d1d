/*
 * Memory operands for the interpreters of rare instructions. All return false after a fault, which is described in
 * cpu.fault_*.
 */
#ifndef UMXEN_INTERPRET_H
#define UMXEN_INTERPRET_H
#include "cpu/dbt/dbt.h"
#include "cpu/operand.h"

static inline bool load_at(struct engine_vcpu *e, enum sreg sreg, uint64_t offset, unsigned bytes, uint64_t *value)
{
    uint64_t at;
    return locate(&e->cpu, sreg, offset, bytes, false, &at) && mmu_load(e, at, bytes, value);
}

static inline bool store_at(struct engine_vcpu *e, enum sreg sreg, uint64_t offset, unsigned bytes, uint64_t value)
{
    uint64_t at;
    return locate(&e->cpu, sreg, offset, bytes, true, &at) && mmu_store(e, at, bytes, value);
}

static inline bool load_operand(struct engine_vcpu *e, const struct insn *i, unsigned bytes, uint64_t *value)
{
    return load_at(e, insn_segment(i), operand_offset(&e->cpu, i), bytes, value);
}

static inline bool store_operand(struct engine_vcpu *e, const struct insn *i, unsigned bytes, uint64_t value)
{
    return store_at(e, insn_segment(i), operand_offset(&e->cpu, i), bytes, value);
}

/* At rsp + distance. */
static inline bool load_stack(struct engine_vcpu *e, int64_t distance, unsigned bytes, uint64_t *value)
{
    return load_at(e, SREG_SS, (e->cpu.regs[RSP] + distance) & stack_mask(&e->cpu), bytes, value);
}

static inline bool store_stack(struct engine_vcpu *e, int64_t distance, unsigned bytes, uint64_t value)
{
    return store_at(e, SREG_SS, (e->cpu.regs[RSP] + distance) & stack_mask(&e->cpu), bytes, value);
}

/* interpret_compat.c: what only 32-bit code has. */
bool is_compat_only(const struct insn *i);
/* DBT_LINK: done. */
enum dbt_exit interpret_compat(struct engine_vcpu *e, const struct insn *i);
#endif
