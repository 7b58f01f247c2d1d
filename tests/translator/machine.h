/*
 * The least hypervisor a translator needs: a bank, a frame table, a scattered physmap, one domain with page tables that
 * we write ourselves, and what the engine calls of the rest (machine.c). The guest's address space is the list of
 * windows below; the native run maps the same windows at the same addresses (native.c).
 */
#ifndef TRANSLATOR_MACHINE_H
#define TRANSLATOR_MACHINE_H
#include "cpu/dbt/dbt.h"

/* Memory a program sees. Pools are runs of pages; a window shows a pool at an address, two windows of one pool alias. */
enum pool { POOL_CODE, POOL_DATA, POOL_STACK, POOL_BIG, NR_POOLS };
#define CODE_PAGES 1024u
#define DATA_PAGES 12u
#define STACK_PAGES 4u
#define BIG_PAGES 512u
#define MAX_VCPUS_HERE 2 /* each has data and stack of its own */
#define POOL_PAGES (CODE_PAGES + (DATA_PAGES + STACK_PAGES) * MAX_VCPUS_HERE + BIG_PAGES)

enum permission { PERM_NONE, PERM_R, PERM_RW, PERM_RX, PERM_RWX };

struct window { uint64_t vaddr; enum pool pool; unsigned pages; enum permission usual; };
enum { WINDOW_CODE, WINDOW_CODE_ALIAS, WINDOW_DATA, WINDOW_DATA_HIGH, WINDOW_STACK, WINDOW_BIG, NR_WINDOWS };
extern const struct window windows[NR_WINDOWS];
/* First page of a pool in the order of the enum. */
unsigned pool_start(enum pool p);
/* The window with this address, and the page's number inside it; -1: none. */
int window_of(uint64_t vaddr, unsigned *page);

struct machine {
    struct hv hv;
    struct domain domain;
    struct vcpu vcpu[MAX_VCPUS_HERE];
    uint64_t next_frame;      /* page tables are taken from the end of the bank */
    uint64_t root_gfn, other_root_gfn; /* two top tables over the same others */
    enum permission now[NR_WINDOWS][CODE_PAGES];
    uint16_t shown[NR_WINDOWS][CODE_PAGES]; /* page of the pool */
};

/* Ends the process with a message when something of the test itself fails. */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* `masked`: features that the guest must not have. */
struct machine *machine_create(unsigned nr_vcpus, uint64_t masked);
void machine_destroy(struct machine *m);
/* The host's address of page n of a pool. */
uint8_t *guest_page(struct machine *m, enum pool pool, unsigned n);
struct page_info *guest_page_info(struct machine *m, enum pool pool, unsigned n);
/* Changes a mapping as a hypervisor would: the entry, then the TLBs and jumps that rested on the old one. The page shows
 * page `shown` of the window's pool. */
void guest_protect(struct machine *m, struct vcpu *curr, int window, unsigned page, enum permission perm, unsigned shown);
/* The same at the windows' low addresses only, as a switch to another address space: the engine hears of new roots. */
void guest_switch(struct machine *m, struct vcpu *curr, int window, unsigned page, enum permission perm, unsigned shown);
/* Tells the engine that a page was written from outside. */
void guest_page_written(struct machine *m, struct vcpu *curr, enum pool pool, unsigned n);

/* What other vCPUs could do to this one whenever it asks for the domain lock: called with the lock, `curr` out of the
 * guest. NULL: nothing. */
extern void (*disturb)(struct domain *d, struct vcpu *curr);
#endif
