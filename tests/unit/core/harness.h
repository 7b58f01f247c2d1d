/*
 * A machine for the core's memory files: see README.md. One at a time; everything is checked with CHECK, which ends the
 * process.
 */
#ifndef HARNESS_H
#define HARNESS_H
#include "hypercall.h"
#include "machine.h"

#define CHECK(c)                                                                                                      \
    do {                                                                                                              \
        if (!(c)) {                                                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #c);                                                   \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)
#define CHECK_EQ(a, b)                                                                                                \
    do {                                                                                                              \
        long long a_ = (long long)(a), b_ = (long long)(b);                                                           \
        if (a_ != b_) {                                                                                               \
            fprintf(stderr, "%s:%d: %s is %lld, not %s = %lld\n", __FILE__, __LINE__, #a, a_, #b, b_);                \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

/* What the engine was told since engine_forget. */
struct engine_calls {
    unsigned flush_tlb, flush_page, revoke, revoke_all, unmap_code, unmap_tables, frame_written, set_cr3;
    uint64_t last_vaddr, last_root;
    struct vcpu *last_vcpu;
};
extern struct engine_calls engine_calls;
void engine_forget(void);

struct hv *machine_new(unsigned mib);
void machine_free(struct hv *hv);
struct domain *domain_new(struct hv *hv, unsigned domid, int kind, uint64_t max_pages, unsigned nr_vcpus);
void domain_free(struct domain *d); /* its memory has been relinquished */
/* Whose hypercall comes next: a vCPU of a domain, or a process of it (vcpu NULL). */
void set_caller(struct domain *d, struct vcpu *v);
/* A TLB of the frame's owner remembers it from now on, for writing. */
void tlb_touch(struct page_info *pg);
/* The domain's vCPUs and their TLBs are no more. */
void tlb_gone(struct domain *d);
/* The n-th hypercall_preempt_check from now on says yes, once; 0: never. */
void preempt_after(unsigned n);
struct continued { unsigned nr, nr_args; uint64_t args[6]; bool set; };
extern struct continued continued;

/* One frame of RAM of d with its gfn. */
struct page_info *frame_new(struct domain *d);
uint64_t gfn_of(struct domain *d, struct page_info *pg);
uint64_t *words(struct hv *hv, struct page_info *pg);
/* References that the test holds itself, beyond what the structures show. */
void expect_extra(struct page_info *pg, int count, int type_count);

/* Counts every frame's references and types anew, walks the heap and the page lists. 0, or complains and returns < 0. */
int audit(struct hv *hv);
#endif
