/* The decoder for ctypes: many instructions at once, in a layout of its own. */
#include "cpu/decode.h"
#include "cpu/features.h"

struct decoded {
    uint8_t length, kind, map, opcode, operand_size, memory_size, access, has_modrm, mod, reg, rm, fpu, may_fault, lock;
    uint8_t rip_relative, address_32, address_16, segment, scale, feature, vex, vsib;
    int8_t base, index;
    uint16_t flags_read, flags_kill, flags_touch;
    int32_t disp;
};

/* `stride` bytes apart, each with INSN_MAX_BYTES readable. */
void decode_many(const uint8_t *bytes, unsigned stride, unsigned count, uint64_t features, unsigned compat, struct decoded *out)
{
    for (unsigned k = 0; k < count; k++) {
        struct insn i;
        decode(&i, bytes + (uint64_t)k * stride, 0x1000, features, compat);
        out[k] = (struct decoded){
            i.length, i.kind,       i.map,         i.opcode,       i.operand_size, i.memory_size, i.access,     i.has_modrm,
            i.mod,    i.reg,        i.rm,          i.fpu,          i.may_fault,    i.prefix_lock, i.rip_relative,
            i.address_32, i.address_16, i.segment, i.scale, i.feature, i.vex, i.vsib, i.base, i.index, i.flags_read, i.flags_kill,
            i.flags_touch, i.disp,
        };
    }
}

uint64_t features_of_host(void) { return cpu_features_of_host() & CPU_IMPLEMENTED; }
