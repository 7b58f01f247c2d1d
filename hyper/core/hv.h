/*
 * What Python calls: the whole interface of the core, and nothing of its inside.
 *
 * Every function returns 0 or a positive result, or -XEN_E* (public/errno.h). A call made on the control thread
 * returns within about 100 us; anything longer answers -XEN_ERESTART and goes on where it was when called again
 * with the same arguments.
 *
 * The part between the two marker comments is read by cffi as well: no #if, no function-like macro there.
 */
#ifndef UMXEN_HV_H
#define UMXEN_HV_H
#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
typedef struct hv hv_t;
typedef struct hv_conn hv_conn_t;

/* What a process domain finds at its start, all of it in its bank: the hypervisor's frames, the rings of xenstore and
 * console, then RAM. Its gfns are mfns. */
struct hv_process {
    uint64_t base_mfn, nr_frames, serial; /* the bank; no two have the same serial number */
    uint64_t shared_info_mfn, grant_mfn, store_mfn, console_mfn, first_free_mfn;
    uint32_t nr_grant_frames, store_port, console_port;
};

struct hv_config {
    uint32_t nr_pcpus;        /* physical CPUs, one thread each; 1..64 */
    uint32_t console_bytes;   /* hypervisor console ring, a power of two; 0: 64 KiB */
    uint64_t memory_bytes;    /* size of the main bank, a multiple of 2 MiB */
    const char *command_line; /* xen_commandline of `xm info`; copied */
    const char *scheduler;    /* "credit" or "null" */
};

struct hv_statistics {
    uint64_t total_frames, free_frames;
    uint32_t nr_domains, nr_conns, nr_ports, nr_grant_maps, nr_rings, nr_banks;
};

/* Of a guest's CPU engine. memory_bytes: what the engine holds for the domain, beside its machine memory. */
struct hv_engine_statistics {
    uint64_t blocks, instructions, code_bytes, memory_bytes, cache_flushes, tlb_fills, tlb_flushes;
    uint64_t page_invalidations, blocks_killed, single_steps, exits[17];
};

/* A machine: banks, frame table, Dom0. No thread runs before hv_start. */
int hv_create(const struct hv_config *config, hv_t **out);
int hv_start(hv_t *hv);
/* Stops the pCPU threads, destroys every domain and frees all. Never fails; NULL is allowed. */
void hv_destroy(hv_t *hv);
void hv_get_statistics(hv_t *hv, struct hv_statistics *out);
/* Of the first guest on an engine whose domid is not below `from`: its domid, or -ESRCH. */
int hv_get_engine_statistics(hv_t *hv, uint16_t from, struct hv_engine_statistics *out);
/* What exits[index] counts. */
const char *hv_engine_exit_name(uint32_t index);
/* The memfd of machine memory: frame mfn lies at byte mfn << 12. Owned by the machine. */
int hv_bank_fd(hv_t *hv);
uint64_t hv_bank_bytes(hv_t *hv);
/* Every mfn, of any bank at any time, is below. */
uint64_t hv_max_mfn(hv_t *hv);

/* Makes a new PV domain, paused, without memory or context, a process domain with a bank of `bank_bytes`. It keeps its id,
 * handle and limits; its ports are gone. Its two rings are granted to Dom0 and have ports for Dom0 to bind. */
int hv_adopt(hv_t *hv, uint16_t domid, uint64_t bank_bytes, struct hv_process *out);
/* What the domain found at its start, and a duplicate of its bank's memfd. -XEN_ENOENT: it lives in the main bank. */
int hv_process_bank(hv_t *hv, uint16_t domid, struct hv_process *out, int *fd);

/* A process of a process domain. domid 0 is Dom0. */
int hv_conn_create(hv_t *hv, uint16_t domid, hv_conn_t **out);
/* A piece of what hv_conn_destroy does, for one that holds many mappings: -XEN_ERESTART until only the quick rest is left.
 * Nothing else may be asked of the connection any more. */
int hv_conn_end(hv_conn_t *conn);
/* Ends its rings, closes its ports, unmaps its grants, drops its arena. A process domain, other than Dom0, that loses its
 * last connection before it has shut down has crashed. */
void hv_conn_destroy(hv_conn_t *conn);
/* The client's sealed memfd, given once: guest handles of this connection's hypercalls are byte offsets in it. The fd is
 * not kept. */
int hv_conn_set_arena(hv_conn_t *conn, int fd, uint64_t bytes);
/* The same, made by the hypervisor: nothing is trusted of it. The memfd is the caller's to close. */
int hv_conn_make_arena(hv_conn_t *conn, uint64_t bytes, int *fd);
/* Readable once the domain is being destroyed; -1 for Dom0. Stays the core's. */
int hv_conn_hangup_fd(hv_conn_t *conn);
int64_t hv_conn_hypercall(hv_conn_t *conn, uint64_t nr, const uint64_t args[6]);
/* A ring for hypercalls (public/hcall_ring.h), served by a thread of its own until the client closes its half of the
 * doorbell. The two descriptors are the caller's to close. */
int hv_conn_open_ring(hv_conn_t *conn, int *memfd, int *doorbell);
/* Of a port this connection has bound. `upcall` is readable when the port is pending: an eventfd of Dom0's, one half of a
 * socket pair of anybody else, who could make an eventfd blocking. `doorbell` is an eventfd, a write to it EVTCHNOP_send.
 * Both stay the core's: hand on duplicates (SCM_RIGHTS makes them). */
int hv_conn_port_fds(hv_conn_t *conn, uint32_t port, int *upcall, int *doorbell);

/* Text of the hypervisor console is read through XEN_SYSCTL_readconsole; this appends a line to it. */
void hv_console_write(hv_t *hv, const char *text, size_t bytes);
/* cffi: end */
#endif
