/*
 * The words every file of the core uses: integer types, type-safe frame numbers, locks, lists, assertions.
 */
#ifndef UMXEN_BASE_H
#define UMXEN_BASE_H
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "errno.h" /* ours: public/errno.h, XEN_E* */
#include "xen.h"

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))
#define NSEC_PER_SEC 1000000000ull

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Frame numbers are distinct types: a host frame is not a guest frame, whatever their values. */
#define TYPE_SAFE(name)                                                                                               \
    typedef struct { uint64_t n; } name##_t;                                                                          \
    static inline name##_t _##name(uint64_t n) { return (name##_t){n}; }                                              \
    static inline uint64_t name##_x(name##_t v) { return v.n; }
TYPE_SAFE(mfn) /* machine: index into the frame table and the banks */
TYPE_SAFE(gfn) /* guest frame: index into the domain's physmap; what a PV guest calls its "mfn" */
#define INVALID_MFN _mfn(~0ull)
#define INVALID_GFN _gfn(~0ull)
static inline bool mfn_eq(mfn_t a, mfn_t b) { return a.n == b.n; }
static inline bool gfn_eq(gfn_t a, gfn_t b) { return a.n == b.n; }

/* A broken invariant of ours stops the machine: nothing after it could be trusted. */
_Noreturn void hv_bug(const char *file, int line, const char *what);
#define BUG_ON(c)                                                                                                     \
    do {                                                                                                              \
        if (unlikely(c))                                                                                              \
            hv_bug(__FILE__, __LINE__, #c);                                                                           \
    } while (0)
#define ASSERT(c) BUG_ON(!(c))

/* An intrusive doubly linked list with a head of the same type. */
struct list { struct list *next, *prev; };
static inline void list_init(struct list *l) { l->next = l->prev = l; }
static inline bool list_empty(const struct list *l) { return l->next == l; }
static inline void list_insert(struct list *l, struct list *after)
{
    l->next = after->next;
    l->prev = after;
    after->next->prev = l;
    after->next = l;
}
static inline void list_append(struct list *l, struct list *head) { list_insert(l, head->prev); }
static inline void list_remove(struct list *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    list_init(l);
}
#define list_for_each_safe(it, tmp, head)                                                                             \
    for (it = (head)->next, tmp = it->next; it != (head); it = tmp, tmp = it->next)

/* Locks. The order, outermost first:
 *   hv->domctl_lock > domain->lock > hv->event_lock > hv->sched_lock > hv->timer_lock > hv->heap_lock > leaf locks
 * A lock of two domains at once (grant operations) is taken in order of domid. */
typedef pthread_mutex_t lock_t;
static inline void lock_init(lock_t *l) { pthread_mutex_init(l, NULL); }
static inline void lock(lock_t *l) { pthread_mutex_lock(l); }
static inline void unlock(lock_t *l) { pthread_mutex_unlock(l); }
#endif
