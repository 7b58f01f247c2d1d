/*
 * What a vCPU's tables look like when they are empty: the soft TLBs and the jump caches, 1.3 MiB, of which a guest that does
 * little uses little. They are mapped privately from one memfd of the machine: a page costs nothing until it is written.
 *
 * Empty slots of a jump cache must lead somewhere, and that somewhere must be the same in all domains: the machine has a page
 * with a trampoline of its own for them.
 */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/dbt/dbt.h"

#define TABLES_OFFSET offsetof(struct engine_vcpu, tlb)
#define TABLES_BYTES (sizeof(struct engine_vcpu) - TABLES_OFFSET)
_Static_assert(TABLES_OFFSET % PAGE_SIZE == 0 && TABLES_BYTES % PAGE_SIZE == 0, "the tables are whole pages at the end");
_Static_assert(sizeof(struct tlb_entry) * TLB_ENTRIES * 2 + sizeof(uint64_t) * JUMP_ENTRIES * 2 +
                   sizeof(struct second_jump) * SECOND_ENTRIES * 2 == TABLES_BYTES, "tables");

static void fill(uint8_t *tables, uint64_t miss)
{
    struct tlb_entry *tlb = (struct tlb_entry *)tables;
    uint64_t *jump = (uint64_t *)(tlb + 2 * TLB_ENTRIES);
    for (unsigned i = 0; i < 2 * TLB_ENTRIES; i++)
        tlb[i].read_tag = tlb[i].write_tag = tlb_no_tag(i % TLB_ENTRIES);
    for (unsigned i = 0; i < 2 * JUMP_ENTRIES; i++)
        jump[i] = miss;
    struct second_jump *second = (struct second_jump *)(jump + 2 * JUMP_ENTRIES);
    for (unsigned i = 0; i < 2 * SECOND_ENTRIES; i++)
        second[i].entry = miss;
}

/* The page with the trampoline: written, then run. */
static bool make_page(struct engine_machine *em)
{
    uint8_t *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return false;
    em->page = page;
    em->jump_miss = trampoline_miss_emit(page, 0);
    return !mprotect(page, PAGE_SIZE, PROT_READ | PROT_EXEC);
}

static bool make_tables(struct engine_machine *em)
{
    em->blank_fd = memfd_create("umxen-blank", MFD_CLOEXEC);
    if (em->blank_fd < 0 || ftruncate(em->blank_fd, TABLES_BYTES))
        return false;
    uint8_t *tables = mmap(NULL, TABLES_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, em->blank_fd, 0);
    if (tables == MAP_FAILED)
        return false;
    fill(tables, (uint64_t)em->jump_miss);
    munmap(tables, TABLES_BYTES);
    return true;
}

int blank_create(struct hv *hv)
{
    struct engine_machine *em = hv->engine = calloc(1, sizeof(*em));
    if (!em)
        return -XEN_ENOMEM;
    em->blank_fd = -1;
    if (make_page(em) && make_tables(em))
        return 0;
    blank_destroy(hv);
    return -XEN_ENOMEM;
}

void blank_destroy(struct hv *hv)
{
    struct engine_machine *em = hv->engine;
    if (!em)
        return;
    if (em->page)
        munmap(em->page, PAGE_SIZE);
    if (em->blank_fd >= 0)
        close(em->blank_fd);
    free(em);
    hv->engine = NULL;
}

bool blank_map(struct engine_vcpu *e)
{
    uint8_t *at = (uint8_t *)e + TABLES_OFFSET;
    return mmap(at, TABLES_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                engine_hv(e)->engine->blank_fd, 0) == at;
}
