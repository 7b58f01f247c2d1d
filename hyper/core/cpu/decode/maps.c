/*
 * The maps 0f 38 and 0f 3a: SSSE3, SSE4, AES, PCLMULQDQ, SHA and GFNI as rows of the same kind as SSE's, and the few
 * instructions there that work on general registers.
 */
#include "cpu/decode/parts.h"

#define ROW(none, p66, how, feature) {none, p66, 0, 0, how, CPU_##feature}

const struct sse_opcode sse_0f38[256] = {
    [0x00 ... 0x0b] = ROW(8, 16, SSE_LOAD, SSSE3), /* pshufb ... pmulhrsw */
    [0x10] = ROW(0, 16, SSE_LOAD, SSE41),          /* pblendvb, by xmm0 */
    [0x14 ... 0x15] = ROW(0, 16, SSE_LOAD, SSE41),
    [0x17] = ROW(0, 16, SSE_LOAD | SSE_FLAGS, SSE41),   /* ptest */
    [0x1c ... 0x1e] = ROW(8, 16, SSE_LOAD, SSSE3),      /* pabs */
    [0x20] = ROW(0, 8, SSE_LOAD, SSE41), /* pmovsx: bytes to words, doublewords, quadwords; words, doublewords */
    [0x21] = ROW(0, 4, SSE_LOAD, SSE41),
    [0x22] = ROW(0, 2, SSE_LOAD, SSE41),
    [0x23] = ROW(0, 8, SSE_LOAD, SSE41),
    [0x24] = ROW(0, 4, SSE_LOAD, SSE41),
    [0x25] = ROW(0, 8, SSE_LOAD, SSE41),
    [0x28 ... 0x29] = ROW(0, 16, SSE_LOAD, SSE41),
    [0x2a] = ROW(0, 16, SSE_LOAD | SSE_MEM_ONLY, SSE41), /* movntdqa */
    [0x2b] = ROW(0, 16, SSE_LOAD, SSE41),
    [0x30] = ROW(0, 8, SSE_LOAD, SSE41), /* pmovzx */
    [0x31] = ROW(0, 4, SSE_LOAD, SSE41),
    [0x32] = ROW(0, 2, SSE_LOAD, SSE41),
    [0x33] = ROW(0, 8, SSE_LOAD, SSE41),
    [0x34] = ROW(0, 4, SSE_LOAD, SSE41),
    [0x35] = ROW(0, 8, SSE_LOAD, SSE41),
    [0x37] = ROW(0, 16, SSE_LOAD, SSE42), /* pcmpgtq */
    [0x38 ... 0x41] = ROW(0, 16, SSE_LOAD, SSE41),
    [0xc8 ... 0xcd] = ROW(16, 0, SSE_LOAD, SHA),
    [0xcf] = ROW(0, 16, SSE_LOAD, GFNI),
    [0xdb ... 0xdf] = ROW(0, 16, SSE_LOAD, AES),
};

const struct sse_opcode sse_0f3a[256] = {
    [0x08 ... 0x09] = ROW(0, 16, SSE_LOAD | SSE_IMM8, SSE41), /* round */
    [0x0a] = ROW(0, 4, SSE_LOAD | SSE_IMM8, SSE41),
    [0x0b] = ROW(0, 8, SSE_LOAD | SSE_IMM8, SSE41),
    [0x0c ... 0x0e] = ROW(0, 16, SSE_LOAD | SSE_IMM8, SSE41),
    [0x0f] = ROW(8, 16, SSE_LOAD | SSE_IMM8, SSSE3), /* palignr */
    [0x14] = ROW(0, 1, SSE_STORE | SSE_IMM8 | SSE_RM_GPR, SSE41),
    [0x15] = ROW(0, 2, SSE_STORE | SSE_IMM8 | SSE_RM_GPR, SSE41),
    [0x16] = ROW(0, 4, SSE_STORE | SSE_IMM8 | SSE_RM_GPR | SSE_WIDE, SSE41),
    [0x17] = ROW(0, 4, SSE_STORE | SSE_IMM8 | SSE_RM_GPR, SSE41),
    [0x20] = ROW(0, 1, SSE_LOAD | SSE_IMM8 | SSE_RM_GPR, SSE41),
    [0x21] = ROW(0, 4, SSE_LOAD | SSE_IMM8, SSE41), /* insertps */
    [0x22] = ROW(0, 4, SSE_LOAD | SSE_IMM8 | SSE_RM_GPR | SSE_WIDE, SSE41),
    [0x40 ... 0x42] = ROW(0, 16, SSE_LOAD | SSE_IMM8, SSE41),
    [0x44] = ROW(0, 16, SSE_LOAD | SSE_IMM8, PCLMULQDQ),
    [0x60 ... 0x63] = ROW(0, 16, SSE_LOAD | SSE_IMM8 | SSE_FLAGS, SSE42), /* pcmpestrm ... pcmpistri */
    [0xcc] = ROW(16, 0, SSE_LOAD | SSE_IMM8, SHA),
    [0xce ... 0xcf] = ROW(0, 16, SSE_LOAD | SSE_IMM8, GFNI),
    [0xdf] = ROW(0, 16, SSE_LOAD | SSE_IMM8, AES),
};

/* movbe, or with F2 crc32, whose source has the operand size and whose destination has not. */
static void byte_order_or_crc(struct insn *i)
{
    bool byte = i->opcode == 0xf0;
    if (i->prefix_f2) {
        i->feature = CPU_SSE42;
        i->access = REG_GPR | REG_READ | REG_WRITE | RM_GPR | RM_READ;
        i->memory_size = byte ? 1 : i->operand_size;
        i->operand_size = i->rex & 8 ? 8 : 4;
    } else {
        i->feature = CPU_MOVBE;
        i->access = REG_GPR | (byte ? REG_WRITE | RM_READ : REG_READ | RM_WRITE);
        if (i->prefix_f3 || i->mod == 3)
            i->kind = INSN_INVALID;
    }
}

/* adcx, adox: each knows one flag alone. */
static void add_with_one_flag(struct insn *i)
{
    uint16_t flag = i->prefix_f3 ? X86_OF : X86_CF;
    i->feature = CPU_ADX;
    i->access = REG_GPR | REG_READ | REG_WRITE | RM_GPR | RM_READ;
    i->operand_size = i->rex & 8 ? 8 : 4;
    set_flags(i, flag, flag, flag);
    if (i->prefix_f2 || !(i->prefix_f3 || i->prefix_66))
        i->kind = INSN_INVALID;
}

bool is_integer_0f38(uint8_t opcode) { return opcode == 0xf0 || opcode == 0xf1 || opcode == 0xf6; }

void decode_integer_0f38(struct insn *i)
{
    if (i->opcode == 0xf6)
        add_with_one_flag(i);
    else
        byte_order_or_crc(i);
}
