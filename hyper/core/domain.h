/*
 * A domain and its vCPUs. Memory is in mm.h, PV state in pv/pv.h, the CPU itself in cpu/engine.h.
 */
#ifndef UMXEN_DOMAIN_H
#define UMXEN_DOMAIN_H
#include "base.h"
#include "cpu/engine.h"
#include "cpu_policy.h"
#include "event.h"
#include "mm.h"
#include "pv/pv.h"
#include "sched/sched.h"
#include "timer.h"
#include "vcpu.h" /* public */

#define MAX_VCPUS 128
#define LEGACY_VCPUS 32 /* XEN_LEGACY_MAX_VCPUS: those with a vcpu_info inside shared_info */

struct bank;
struct hv;
struct hv_conn;

enum domain_kind {
    DOMAIN_PV,      /* vCPUs on an engine */
    DOMAIN_PROCESS, /* its "vCPUs" are host processes, each a connection */
};

enum dying { DOMDYING_alive = 0, DOMDYING_dying, DOMDYING_dead };

struct vcpu {
    struct domain *domain;
    uint32_t id;
    struct vcpu_info *vcpu_info; /* host address: in shared_info, or where VCPUOP_register_vcpu_info put it */
    struct vcpu_info own_info;   /* of vCPUs that have no place in shared_info, until they register one */
    struct page_info *vcpu_info_page; /* referenced while registered */
    bool initialised;            /* has a context */
    _Atomic bool online;         /* VCPUOP_up */

    /* Running: see sched/sched.h for the state machine, and domain_lock below. */
    struct sched_unit sched;
    _Atomic uint32_t pause_count; /* domctl pauses, shutdown, and internal ones */
    _Atomic bool kick;            /* leave the guest and look around; set by vcpu_kick */
    _Atomic bool in_guest;        /* may be using the soft TLB or translated code without the domain lock */

    struct vcpu_runstate_info runstate; /* guarded by sched_lock */
    uint64_t runstate_guest_vaddr;      /* VCPUOP_register_runstate_memory_area, 0 none */
    struct timer singleshot, periodic;
    uint64_t periodic_period_ns;
    struct timer poll_timer;            /* SCHEDOP_poll's timeout */
    _Atomic uint32_t poll_port;         /* 0: not polling, ~0: several */
    uint32_t virq_port[24];             /* NR_VIRQS; guarded by event_lock */

    struct pv_vcpu pv;
    struct engine_vcpu *engine;   /* the engine's own, opaque */
    struct cpu_state *cpu;        /* the architectural state, kept by the engine */
    uint32_t hypercall_restarts;  /* continuations of the current hypercall, for statistics */
};

struct domain {
    struct hv *hv;
    uint16_t id;
    enum domain_kind kind;
    bool is_privileged;
    _Atomic uint32_t refs;        /* the domain list, connections, and whoever looked it up */
    _Atomic int dying;            /* enum dying */
    lock_t lock;                  /* page tables and types, physmap, code cache, hypercalls that change the domain */
    uint8_t handle[16];
    uint32_t max_vcpus;
    struct vcpu *vcpu[MAX_VCPUS];

    _Atomic uint32_t pause_count; /* all reasons; created paused with one */
    uint32_t controller_pauses;   /* XEN_DOMCTL_pausedomain; guarded by domctl_lock */
    _Atomic bool is_shutting_down; /* no vCPU runs any more */
    _Atomic bool is_shut_down;    /* all have stopped, and VIRQ_DOM_EXC was raised */
    _Atomic uint32_t shutdown_code;
    uint32_t kill_stage;          /* progress of domain_kill */
    bool is_replaced;             /* killed to make room for another of its id: nobody is told */
    _Atomic uint32_t nr_pollers;  /* vCPUs in SCHEDOP_poll */
    struct domain_watchdog { struct timer timer; bool in_use; } watchdog[2]; /* guarded by the domain lock */
    struct domain_console { char line[128]; uint32_t used, budget; uint64_t refilled_ns; } console; /* console.c */
    void *sched_priv;             /* the scheduling policy's */

    /* memory */
    uint64_t max_pages, tot_pages; /* frames; guarded by heap_lock */
    uint32_t page_list;           /* mfn of the first frame of RAM, 0 none; guarded by heap_lock */
    uint32_t nr_xenheap_pages;
    struct physmap physmap;
    _Atomic uint32_t mm_generation; /* bumped before a frame loses its last writable reference: see cpu/dbt/mmu.c */
    struct m2p *m2p;
    struct bank *bank;             /* of a process domain other than Dom0 */
    struct page_info *shared_info_page;
    struct shared_info *shared_info;
    struct e820_entry *memory_map; /* XENMEM_set_memory_map */
    uint32_t nr_memory_map;
    int64_t relinquish_cursor;

    struct evtchn_table *evtchn;  /* event.h */
    uint32_t max_evtchn_port;
    struct evtchn_fifo *evtchn_fifo; /* evtchn_fifo.c; NULL: never used */
    bool fifo_events;             /* which ABI; guarded by event_lock */
    struct grant_table *grants;   /* grant_table.h */
    struct engine_domain *engine; /* the engine's own: the code cache and its books */
    struct cpu_policy policy;     /* fixed once the domain has run */
    bool creation_finished;       /* it was unpaused; guarded by domctl_lock */

    int64_t time_offset_seconds;  /* settimeoffset; added to the wall clock */
    uint32_t tsc_mode, tsc_incarnation;
    uint64_t vm_assist;
    uint64_t created_ns;
};

/* ---- life (domain.c) -------------------------------------------------------------------------------------------- */
/* `bank`: of a process domain other than Dom0, else NULL; it is taken over, also when this fails. */
int domain_create(struct hv *hv, uint16_t domid, enum domain_kind kind, uint32_t max_vcpus, struct bank *bank,
                  struct domain **out);
/* vCPU 0 of a process domain stands for all its processes. */
int process_vcpu_create(struct domain *d);
/* Makes a new, fully set up domain known. -XEN_EEXIST. Until then put_domain frees it. */
int domain_enter_list(struct domain *d);
/* One bounded piece of XEN_DOMCTL_destroydomain; -XEN_ERESTART until it is gone. */
int domain_kill(struct domain *d);
/* Looks a live domain up and takes a reference; DOMID_SELF means `caller`. NULL: none. */
struct domain *get_domain(struct hv *hv, struct domain *caller, uint16_t domid);
void put_domain(struct domain *d);
int vcpu_create(struct domain *d, uint32_t id);
/* Stops what domain_shutdown and domain_crash began; on the doorbell thread. */
void domain_shutdown_work(struct hv *hv);
void domain_resume(struct domain *d);
/* The n-th domain with an id >= `first`, referenced; NULL: none. */
struct domain *next_domain(struct hv *hv, uint32_t first);
static inline struct vcpu *domain_vcpu(const struct domain *d, uint64_t id)
{
    return id < d->max_vcpus ? d->vcpu[id] : NULL;
}
/* The guest's fault: this domain stops with SHUTDOWN_crash; the reason goes to the hypervisor console. Any context, any lock. */
void domain_crash(struct domain *d, const char *why, ...) __attribute__((format(printf, 2, 3)));
void domain_shutdown(struct domain *d, uint32_t reason);
void domain_pause(struct domain *d);   /* returns when no vCPU of it runs */
void domain_unpause(struct domain *d);
void vcpu_pause(struct vcpu *v);
/* A frame of the guest that the hypervisor writes to from now on: it stays writable and free of translated code until it is
 * released, or the domain goes. NULL: no such frame, or it can't be writable. Domain lock held. */
struct page_info *claim_guest_frame(struct vcpu *curr, uint64_t gfn);
void release_guest_frame(struct domain *d, struct page_info *pg);
void vcpu_unpause(struct vcpu *v);

/* Instructions that the vCPU can use at the moment. */
static inline uint64_t vcpu_features(const struct vcpu *v)
{
    return cpu_features_enabled(v->domain->policy.features, v->cpu->xcr0);
}

/* ---- the domain lock and the guest's running vCPUs -------------------------------------------------------------- *
 * A vCPU in translated code, and on the fast exits that touch only its own state, holds no lock and says so with
 * in_guest. Whoever changes what it relies on (TLB, code cache, page tables) holds the domain lock and quiesces. */
void domain_lock(struct domain *d, struct vcpu *curr);   /* curr: the caller's own vCPU if it is one of d's, or NULL */
void domain_unlock(struct domain *d, struct vcpu *curr);
/* The lock of another domain than the caller's: holders of two domains' locks could wait for each other's vCPUs, so `curr`,
 * the calling vCPU or NULL, is out of its guest meanwhile. */
void domain_lock_foreign(struct domain *d, struct vcpu *curr);
void domain_unlock_foreign(struct domain *d, struct vcpu *curr);
/* Whichever of the two it takes. */
void domain_lock_any(struct domain *d, struct vcpu *curr);
void domain_unlock_any(struct domain *d, struct vcpu *curr);
/* Waits until no other vCPU of d is in_guest; they stay out until the lock is dropped. */
void domain_quiesce(struct domain *d, struct vcpu *curr);
/* Makes a vCPU leave translated code soon: one store. */
static inline void vcpu_kick(struct vcpu *v)
{
    atomic_store(&v->kick, true);
    if (v->engine)
        engine_kick(v);
}
#endif
