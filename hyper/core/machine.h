/*
 * The machine: what a host has once. Everything hangs on one struct hv; a second machine in the same process works.
 */
#ifndef UMXEN_MACHINE_H
#define UMXEN_MACHINE_H
#include "domain.h"
#include "hv.h"

struct hv {
    struct engine_machine *engine;
    int perf_map;              /* descriptor of a map of translated code for perf; 0: none */
    struct hv_config config;
    char *command_line;

    /* memory: every bank is mapped at bank_base + (mfn << PAGE_SHIFT) */
    uint8_t *bank_base;
    int bank_fd;
    uint64_t nr_frames;           /* mfns of the main bank are 1..nr_frames-1; 0 is never handed out */
    uint64_t max_mfn;             /* the window: main bank, then room for those of process domains (bank.c) */
    uint64_t first_bank_mfn, next_bank_mfn, last_bank_serial;
    struct list banks;
    uint32_t nr_banks;
    struct page_info *frame_table;
    lock_t heap_lock;
    uint32_t free_list[MAX_ORDER + 1];
    uint64_t free_frames;         /* may be fewer than the lists hold: banks are charged here */
    uint64_t *invalid_m2p_page;   /* 512 times INVALID_M2P_ENTRY */

    /* domains */
    lock_t domctl_lock;           /* creation and destruction */
    lock_t domlist_lock;          /* a leaf: domain[] and references taken through it */
    struct domain *domain[DOMID_FIRST_RESERVED];
    uint16_t next_domid;
    struct domain *dom0;

    lock_t event_lock;            /* every event channel and grant table; sections of a few hundred ns */
    struct doorbells *doorbells;  /* conn.c: the thread that waits on the eventfds of process domains */
    struct list conns;            /* guarded by event_lock */
    uint32_t nr_conns, nr_ports, nr_grant_maps;
    _Atomic uint32_t nr_rings;    /* served by a thread */

    /* CPUs and time */
    struct cpu_policy policy;     /* the most a domain can be offered */
    lock_t sched_lock;            /* taken by sched_lock(), dropped by sched_unlock(): see sched/sched.h */
    uint64_t pcpus_to_wake;       /* once sched_lock is dropped */
    pthread_cond_t vcpu_stopped;  /* with sched_lock: some vCPU left its pCPU */
    const struct scheduler *scheduler;
    void *sched_priv;
    struct pcpu *pcpu;            /* config.nr_pcpus of them */
    struct timers *timers;
    struct clock *clock;

    struct console_ring *console; /* xm dmesg */
    struct trace_ring *trace;
    _Atomic bool stopping;
};

/* Time (time.c): nanoseconds since the machine started, as guests see it. */
uint64_t hv_now(const struct hv *hv);
/* Publishes time in a vCPU's vcpu_time_info, and the wall clock in shared_info. */
void time_publish(struct vcpu *v);
void time_publish_wallclock(struct domain *d);
uint64_t tsc_khz(const struct hv *hv);
int clock_init(struct hv *hv);

/* Holds off publication while a vCPU's vcpu_info moves or goes away. A leaf lock. */
void time_lock(struct hv *hv);
void time_unlock(struct hv *hv);
void clock_destroy(struct hv *hv);
int clock_start(struct hv *hv); /* recalibration, each second */

/* A thread of the core: named, with the signals of faults only, at `nice` (machine.c). */
int hv_thread_create(pthread_t *thread, const char *name, int nice, void *(*function)(void *), void *argument);
/* Work that could not be done where it arose: the doorbell thread looks for it soon (conn.c). Any context, any lock. */
void hv_post_work(struct hv *hv);
int doorbells_init(struct hv *hv);
int doorbells_start(struct hv *hv);
void doorbells_stop(struct hv *hv);
void doorbells_destroy(struct hv *hv);
int doorbell_watch(struct hv *hv, int fd, uint64_t key);
void doorbell_unwatch(struct hv *hv, int fd);

/* Hypervisor console (console.c). */
int console_init(struct hv *hv);
void console_destroy(struct hv *hv);
void console_work(struct hv *hv); /* tells Dom0 about new text; on the doorbell thread */
void hv_printk(struct hv *hv, const char *format, ...) __attribute__((format(printf, 2, 3)));
int64_t console_read(struct hv *hv, char *out, uint32_t *count, bool clear, bool incremental, uint32_t *index);
#endif
