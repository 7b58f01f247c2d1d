/*
 * Vector instructions whose memory operand is not one piece, interpreted: masked moves of which a part may not be there, and
 * gathers. The vector registers are in the vCPU.
 *
 * A masked store changes nothing before all of its elements are known to be writable. A gather that faults has gathered the
 * elements before, and cleared their masks, as the CPU does it.
 */
#include "cpu/dbt/interpret.h"

union ymm { uint8_t b[32]; uint32_t d[8]; uint64_t q[4]; };

static union ymm read_ymm(const struct engine_vcpu *e, unsigned reg)
{
    union ymm y = {0};
    memcpy(y.b, e->xmm[reg], 16);
    if (e->ymm_in_use)
        memcpy(y.b + 16, e->ymm_high[reg], 16);
    return y;
}

static void write_ymm(struct engine_vcpu *e, unsigned reg, const union ymm *y)
{
    if (!e->ymm_in_use && (y->q[2] || y->q[3])) {
        memset(e->ymm_high, 0, sizeof(e->ymm_high));
        e->ymm_in_use = XCR0_AVX;
    }
    memcpy(e->xmm[reg], y->b, 16);
    if (e->ymm_in_use)
        memcpy(e->ymm_high[reg], y->b + 16, 16);
}

static uint64_t element(const union ymm *y, unsigned k, unsigned bytes) { return bytes == 8 ? y->q[k] : y->d[k]; }

static void set_element(union ymm *y, unsigned k, unsigned bytes, uint64_t v)
{
    if (bytes == 8)
        y->q[k] = v;
    else
        y->d[k] = v;
}

static bool is_chosen(const union ymm *mask, unsigned k, unsigned bytes) { return element(mask, k, bytes) >> (8 * bytes - 1); }

/* vmaskmov, vpmaskmov. */
bool interpret_masked_move(struct engine_vcpu *e, const struct insn *i)
{
    bool integer = i->opcode >= 0x80, store = i->access & RM_WRITE;
    unsigned bytes = (integer ? i->rex & 8 : i->opcode & 1) ? 8 : 4, n = i->memory_size / bytes;
    uint64_t at[8], v;
    union ymm mask = read_ymm(e, i->vvvv), y = store ? read_ymm(e, i->reg) : (union ymm){0};
    for (unsigned k = 0; k < n; k++) {
        uint64_t offset = (operand_offset(&e->cpu, i) + k * bytes) & address_mask(i);
        if (is_chosen(&mask, k, bytes) && (!locate(&e->cpu, insn_segment(i), offset, bytes, store, &at[k]) ||
                                           (store && !mmu_may_store(e, at[k], bytes))))
            return false;
    }
    for (unsigned k = 0; k < n; k++) {
        if (!is_chosen(&mask, k, bytes))
            continue;
        if (store ? !mmu_store(e, at[k], bytes, element(&y, k, bytes)) : !mmu_load(e, at[k], bytes, &v))
            return false;
        if (!store)
            set_element(&y, k, bytes, v);
    }
    if (!store)
        write_ymm(e, i->reg, &y);
    return true;
}

/* One element's offset: base, and an index of 4 or 8 bytes that is signed. */
static uint64_t gather_offset(const struct engine_vcpu *e, const struct insn *i, uint64_t index)
{
    return ((int64_t)i->disp + (index << i->scale) + (i->base >= 0 ? e->cpu.regs[i->base] : 0)) & address_mask(i);
}

bool interpret_gather(struct engine_vcpu *e, const struct insn *i)
{
    unsigned bytes = i->rex & 8 ? 8 : 4, index_bytes = i->opcode & 1 ? 8 : 4;
    unsigned n = (i->vex_256 ? 32 : 16) / (bytes > index_bytes ? bytes : index_bytes);
    union ymm y = read_ymm(e, i->reg), mask = read_ymm(e, i->vvvv), index = read_ymm(e, i->index), none = {0};
    bool ok = true, gathered = false, narrow = !i->vex_256;
    if (narrow)
        mask.q[2] = mask.q[3] = 0; /* whatever happens then */
    for (unsigned k = 0; ok && k < n; k++) {
        uint64_t v, x = element(&index, k, index_bytes);
        if (is_chosen(&mask, k, bytes) &&
            (ok = load_at(e, insn_segment(i), gather_offset(e, i, index_bytes == 4 ? (uint64_t)(int32_t)x : x), bytes, &v)))
            set_element(&y, k, bytes, v), gathered = true;
        if (ok)
            set_element(&mask, k, bytes, 0);
    }
    if (narrow && gathered)
        y.q[2] = y.q[3] = 0;
    for (unsigned k = n * bytes; ok && k < sizeof(y); k++)
        y.b[k] = 0;
    write_ymm(e, i->reg, &y);
    write_ymm(e, i->vvvv, ok ? &none : &mask);
    return ok;
}
