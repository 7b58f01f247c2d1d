/*
 * A guest that means harm: orders to the page type system that must be refused, and random calls.
 */
#include "small.h"

enum { WRITABLE = 0x67, READ_ONLY = 0x65, HYPERVISOR_SLOT = 256, FREE_SLOT = 300 };

static long map_page(const void *at, uint64_t entry)
{
    return hypercall(__HYPERVISOR_update_va_mapping, addr(at), entry, UVMF_INVLPG, 0, 0);
}

static long update_entry(uint64_t entry_address, uint64_t value)
{
    struct mmu_update update = {.ptr = entry_address, .val = value};
    return hypercall(__HYPERVISOR_mmu_update, addr(&update), 1, 0, DOMID_SELF, 0);
}

static long extended(unsigned command, uint64_t mfn)
{
    struct mmuext_op op = {.cmd = command, .arg1.mfn = mfn};
    return hypercall(__HYPERVISOR_mmuext_op, addr(&op), 1, 0, DOMID_SELF, 0);
}

static int refused, tried;

static void must_fail(const char *what, long ret)
{
    tried++;
    refused += ret < 0;
    print("umxen: badpt: %s: %ld\n", what, ret);
}

/* The first frame above all of ours: nobody's, or somebody else's. */
static uint64_t foreign_mfn(void)
{
    uint64_t foreign = 0;
    for (uint64_t pfn = 0; pfn < start_info->nr_pages; pfn++) {
        uint64_t mfn = ((uint64_t *)start_info->mfn_list)[pfn];
        foreign = mfn >= foreign ? mfn + 1 : foreign;
    }
    return foreign;
}

/* `data` is mapped writable, so its frame may not become a page table; read-only it may, if it holds one. */
void do_badpt(const char *argument)
{
    static uint64_t data[512] __attribute__((aligned(4096))), scratch[512] __attribute__((aligned(4096)));
    uint64_t l4 = virt_to_mfn((void *)start_info->pt_base), own = virt_to_mfn(data);
    (void)argument;
    refused = tried = 0;
    must_fail("a page table mapped writable", map_page(scratch, l4 << 12 | WRITABLE));
    must_fail("a frame of another's mapped", map_page(scratch, foreign_mfn() << 12 | WRITABLE));
    must_fail("a frame beyond memory mapped", map_page(scratch, 0xffffff0000000UL | WRITABLE));
    must_fail("a writable page as L3 table", update_entry(l4 << 12 | 8 * FREE_SLOT, own << 12 | WRITABLE));
    must_fail("the hypervisor's L4 slot", update_entry(l4 << 12 | 8 * HYPERVISOR_SLOT, 0));
    must_fail("a writable page pinned as L4", extended(MMUEXT_PIN_L4_TABLE, own));
    must_fail("a writable page as base", extended(MMUEXT_NEW_BASEPTR, own));
    must_fail("a page unpinned that is not pinned", extended(MMUEXT_UNPIN_TABLE, own));
    long on_data = update_entry(own << 12, own << 12 | WRITABLE); /* allowed: it is a writable page */

    memset(data, 0xff, sizeof(data));
    long made_read_only = map_page(data, own << 12 | READ_ONLY);
    must_fail("garbage pinned as L1", extended(MMUEXT_PIN_L1_TABLE, own));
    must_fail("garbage pinned as L4", extended(MMUEXT_PIN_L4_TABLE, own));
    long made_writable = map_page(data, own << 12 | WRITABLE);

    memset(data, 0, sizeof(data));
    map_page(data, own << 12 | READ_ONLY);
    long pinned = extended(MMUEXT_PIN_L1_TABLE, own);
    must_fail("a pinned page mapped writable", map_page(data, own << 12 | WRITABLE));
    long unpinned = extended(MMUEXT_UNPIN_TABLE, own);
    long writable_again = map_page(data, own << 12 | WRITABLE);
    print("umxen: badpt: what is allowed: %ld %ld %ld %ld %ld %ld\n", on_data, made_read_only, made_writable,
          pinned, unpinned, writable_again);
    print("umxen: badpt: %d of %d refused\n", refused, tried);
}

static uint64_t seed;

static uint64_t random64(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545f4914f6cdd1dUL;
}

/* A number of the kinds that calls take: small, an address or a frame of ours, an entry in one, anything. */
static uint64_t random_argument(uint64_t *buffer)
{
    /* What runs us lies in the first 4 MiB: mostly keep out, for a longer life. */
    uint64_t kept = start_info->nr_pages > 1024 && random64() % 1024 ? 1024 : 0;
    uint64_t mfn = ((uint64_t *)start_info->mfn_list)[kept + random64() % (start_info->nr_pages - kept)];
    switch (random64() % 6) {
    case 0:
    case 1:
        return random64() % 16;
    case 2:
        return addr(buffer) + random64() % 64 * 8;
    case 3:
        return mfn;
    case 4:
        return mfn << 12 | random64() % PAGE_BYTES;
    default:
        return random64() >> random64() % 64;
    }
}

/* What would only end the run: sleeping, shutting down, a lost stack or handler. */
static bool is_left_out(unsigned nr)
{
    static const uint8_t numbers[] = {
        __HYPERVISOR_sched_op,      __HYPERVISOR_sched_op_compat, __HYPERVISOR_iret,
        __HYPERVISOR_set_callbacks, __HYPERVISOR_callback_op,     __HYPERVISOR_multicall,
        __HYPERVISOR_vcpu_op,       __HYPERVISOR_console_io,      __HYPERVISOR_set_trap_table,
        __HYPERVISOR_stack_switch,
    };
    for (size_t i = 0; i < sizeof(numbers); i++)
        if (nr == numbers[i])
            return true;
    return false;
}

/* random SEED COUNT: calls with random arguments. It may crash itself; it must not disturb anyone else. */
void do_random(const char *argument)
{
    static uint64_t buffer[512] __attribute__((aligned(4096)));
    uint64_t own = virt_to_mfn(buffer), rejected = 0, done = 0;
    seed = take_number(&argument, 1) * 0x9e3779b97f4a7c15UL | 1;
    for (uint64_t count = take_number(&argument, 10000); done < count; done++) {
        unsigned nr = random64() % 64;
        if (is_left_out(nr))
            continue;
        if (map_page(buffer, own << 12 | WRITABLE))
            break; /* it has become a page table, say */
        for (int word = 0; word < 16; word++)
            buffer[random64() % 512] = random_argument(buffer);
        uint64_t first = nr == __HYPERVISOR_update_va_mapping ? addr(buffer) : random_argument(buffer);
        rejected += hypercall(nr, first, random_argument(buffer), random_argument(buffer),
                              random_argument(buffer), random_argument(buffer)) < 0;
    }
    print("umxen: random: %lu calls, %lu refused\n", done, rejected);
}
