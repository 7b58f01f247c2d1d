/*
 * Bytes of host instructions. Every function appends to the emitter's cursor; the bounds are checked once per block.
 */
#ifndef UMXEN_EMIT_H
#define UMXEN_EMIT_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum host_reg { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };

/* p: where the code will run. It is written at p + alias: the cache is mapped twice, and nowhere writable and executable. */
struct emitter { uint8_t *p; ptrdiff_t alias; };

static inline void emit_bytes(struct emitter *m, const void *bytes, unsigned n) { memcpy(m->p + m->alias, bytes, n); m->p += n; }
static inline void emit1(struct emitter *m, unsigned b) { *(m->p++ + m->alias) = (uint8_t)b; }
static inline void emit4(struct emitter *m, uint32_t v) { emit_bytes(m, &v, 4); }
static inline void emit8(struct emitter *m, uint64_t v) { emit_bytes(m, &v, 8); }
#define EMIT(m, literal) emit_bytes(m, literal, sizeof(literal) - 1)

static inline void emit_rel32(struct emitter *m, const uint8_t *target) { emit4(m, (uint32_t)(target - (m->p + 4))); }
static inline void patch_rel32(const struct emitter *m, uint8_t *at, const uint8_t *target)
{
    int32_t rel = (int32_t)(target - (at + 4));
    memcpy(at + m->alias, &rel, 4);
}
static inline void emit_jmp(struct emitter *m, const uint8_t *target) { emit1(m, 0xe9); emit_rel32(m, target); }
static inline void emit_call(struct emitter *m, const uint8_t *target) { emit1(m, 0xe8); emit_rel32(m, target); }
static inline void emit_jcc(struct emitter *m, unsigned cc, const uint8_t *target)
{
    emit1(m, 0x0f);
    emit1(m, 0x80 | cc);
    emit_rel32(m, target);
}
/* A rel32 that will be patched while other threads run it must not straddle a cache line: pads so that the four bytes
 * after `lead` more bytes lie in one. */
static inline void emit_align_rel32(struct emitter *m, unsigned lead)
{
    while ((((uintptr_t)m->p + lead) & 63) > 60)
        emit1(m, 0x90);
}

/* op reg, gs:[offset] (op above 0xff: two-byte opcode 0f xx). */
static inline void emit_gs(struct emitter *m, bool wide, unsigned op, unsigned reg, uint32_t offset)
{
    emit1(m, 0x65);
    unsigned rex = (wide ? 8 : 0) | ((reg & 8) >> 1);
    if (rex)
        emit1(m, 0x40 | rex);
    if (op > 0xff)
        emit1(m, 0x0f);
    emit1(m, op);
    emit1(m, ((reg & 7) << 3) | 4);
    emit1(m, 0x25);
    emit4(m, offset);
}
static inline void emit_load_gs(struct emitter *m, unsigned reg, uint32_t offset) { emit_gs(m, true, 0x8b, reg, offset); }
static inline void emit_store_gs(struct emitter *m, uint32_t offset, unsigned reg) { emit_gs(m, true, 0x89, reg, offset); }
static inline void emit_store_gs_imm(struct emitter *m, uint32_t offset, int32_t value)
{
    emit_gs(m, true, 0xc7, 0, offset);
    emit4(m, value);
}

static inline void emit_mov_imm(struct emitter *m, unsigned reg, uint64_t v)
{
    if (v == (uint32_t)v) {
        if (reg & 8)
            emit1(m, 0x41);
        emit1(m, 0xb8 | (reg & 7));
        emit4(m, v);
    } else if ((int64_t)v == (int32_t)v) {
        emit1(m, 0x48 | (reg >> 3));
        emit1(m, 0xc7);
        emit1(m, 0xc0 | (reg & 7));
        emit4(m, v);
    } else {
        emit1(m, 0x48 | (reg >> 3));
        emit1(m, 0xb8 | (reg & 7));
        emit8(m, v);
    }
}

/* ModRM and SIB of [base + index << scale + disp]; base, index -1: none. */
static inline void emit_modrm_mem(struct emitter *m, unsigned reg, int base, int index, unsigned scale, int32_t disp)
{
    if (base < 0) {
        emit1(m, ((reg & 7) << 3) | 4);
        emit1(m, (scale << 6) | ((index < 0 ? 4 : index & 7) << 3) | 5);
        emit4(m, disp);
        return;
    }
    unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp >= -128 && disp < 128 ? 1 : 2;
    if (index >= 0 || (base & 7) == 4) {
        emit1(m, (mod << 6) | ((reg & 7) << 3) | 4);
        emit1(m, (scale << 6) | ((index < 0 ? 4 : index & 7) << 3) | (base & 7));
    } else {
        emit1(m, (mod << 6) | ((reg & 7) << 3) | (base & 7));
    }
    if (mod == 1)
        emit1(m, disp);
    else if (mod == 2)
        emit4(m, disp);
}
static inline void emit_op_mem(struct emitter *m, bool wide, unsigned op, unsigned reg, int base, int index, unsigned scale,
                               int32_t disp)
{
    unsigned rex = (wide ? 8 : 0) | ((reg & 8) >> 1) | (index >= 0 && (index & 8) ? 2 : 0) | (base >= 0 && (base & 8) ? 1 : 0);
    if (rex)
        emit1(m, 0x40 | rex);
    emit1(m, op);
    emit_modrm_mem(m, reg, base, index, scale, disp);
}
static inline void emit_lea(struct emitter *m, unsigned to, int base, int index, int32_t disp)
{
    emit_op_mem(m, true, 0x8d, to, base, index, 0, disp);
}
static inline void emit_load(struct emitter *m, unsigned to, int base, int32_t disp)
{
    emit_op_mem(m, true, 0x8b, to, base, -1, 0, disp);
}
static inline void emit_store(struct emitter *m, int base, int32_t disp, unsigned from)
{
    emit_op_mem(m, true, 0x89, from, base, -1, 0, disp);
}
static inline void emit_movzx_word(struct emitter *m, unsigned to, unsigned from)
{
    emit1(m, 0x40 | (to >> 3) << 2 | (from >> 3));
    emit1(m, 0x0f);
    emit1(m, 0xb7);
    emit1(m, 0xc0 | (to & 7) << 3 | (from & 7));
}
static inline void emit_mov(struct emitter *m, unsigned to, unsigned from)
{
    emit1(m, 0x48 | (from >> 3) << 2 | (to >> 3));
    emit1(m, 0x89);
    emit1(m, 0xc0 | (from & 7) << 3 | (to & 7));
}
#endif
