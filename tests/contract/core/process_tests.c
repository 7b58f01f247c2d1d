/*
 * Process domains and rings while all goes at once; see hostile_tests.c for how such a program works. Here it is a process of
 * the host that attacks.
 */
#include "kit.h"

#include <sys/socket.h>

#include "grant_table.h"
#include "hcall.h"

/* Dom0's other processes use whatever grants and ports of process domains there are, while these come and go: by the control
 * socket's way here, by a ring below. */
struct users { struct machine *m; _Atomic bool stop; _Atomic uint32_t mapped, copied; };

#define NR_IDS 6u

static void map_and_unmap(struct users *u, struct process *p, uint16_t domid)
{
    struct gnttab_map_grant_ref map = {.flags = GNTMAP_host_map, .ref = GNTTAB_RESERVED_XENSTORE, .dom = domid};
    uint64_t at = give(p, &map, sizeof(map));
    CHECK(!call(p, __HYPERVISOR_grant_table_op, GNTTABOP_map_grant_ref, at, 1, 0));
    memcpy(&map, p->arena + at, sizeof(map));
    if (map.status != GNTST_okay)
        return;
    u->mapped++;
    struct gnttab_unmap_grant_ref unmap = {.handle = map.handle};
    at = give(p, &unmap, sizeof(unmap));
    CHECK(!call(p, __HYPERVISOR_grant_table_op, GNTTABOP_unmap_grant_ref, at, 1, 0));
}

static void bind_and_close(struct process *p, uint16_t domid)
{
    struct evtchn_bind_interdomain bind = {.remote_dom = domid, .remote_port = 1};
    uint64_t at = give(p, &bind, sizeof(bind));
    if (call(p, __HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, at, 0, 0))
        return;
    memcpy(&bind, p->arena + at, sizeof(bind));
    uint64_t port = give(p, &bind.local_port, sizeof(bind.local_port));
    CHECK(!call(p, __HYPERVISOR_event_channel_op, EVTCHNOP_send, port, 0, 0));
    CHECK(!call(p, __HYPERVISOR_event_channel_op, EVTCHNOP_close, port, 0, 0));
}

static void *use_process_domains(void *data)
{
    struct users *u = data;
    struct process p;
    process_start(&p, u->m->hv);
    for (uint32_t n = 0; !atomic_load(&u->stop); n++) {
        map_and_unmap(u, &p, (uint16_t)(1 + n % NR_IDS));
        bind_and_close(&p, (uint16_t)(1 + n % NR_IDS));
    }
    process_end(&p);
    return NULL;
}

/* One copy after the other from such a domain's xenstore page into the arena. */
static void *copy_through_a_ring(void *data)
{
    struct users *u = data;
    struct process p;
    process_start(&p, u->m->hv);
    int memfd, doorbell;
    CHECK(!hv_conn_open_ring(p.conn, &memfd, &doorbell));
    struct hcall_ring *ring = hcall_open(memfd, doorbell, p.arena + PAGE, PAGE, PAGE);
    CHECK(ring);
    for (uint32_t n = 0; !atomic_load(&u->stop); n++) {
        struct gnttab_copy op = {.source = {.u.ref = GNTTAB_RESERVED_XENSTORE, .domid = (uint16_t)(1 + n % NR_IDS)},
                                 .dest = {.u.gmfn = 2, .domid = DOMID_SELF}, .len = PAGE - 1,
                                 .flags = GNTCOPY_source_gref};
        CHECK(!hcall_grant_copy(ring, &op, 1));
        u->copied += op.status == GNTST_okay;
    }
    process_end(&p); /* with its ring */
    CHECK(hcall(ring, __HYPERVISOR_xen_version, (uint64_t[5]){0}) == -XEN_EIO);
    hcall_close(ring);
    close(memfd);
    close(doorbell);
    return NULL;
}

/* Its process writes all over its bank and its ring meanwhile. */
static void live_as(struct machine *m, uint16_t domid, uint64_t frames)
{
    hv_conn_t *conn;
    struct hv_process start;
    int bank, memfd, doorbell, arena;
    CHECK(!hv_conn_create(m->hv, domid, &conn) && !hv_conn_make_arena(conn, 1 << 20, &arena));
    CHECK(!hv_process_bank(m->hv, domid, &start, &bank) && !hv_conn_open_ring(conn, &memfd, &doorbell));
    uint8_t *memory = mmap(NULL, frames * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, bank, 0);
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    CHECK(memory != MAP_FAILED && page != MAP_FAILED);
    sleep_ns(MS / 2);
    memset(memory + (start.shared_info_mfn - start.base_mfn) * PAGE, 0x5a, PAGE);
    memset(page, 0x5a, PAGE);
    CHECK(send(doorbell, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT) <= 1);
    hv_conn_destroy(conn);
    munmap(memory, frames * PAGE);
    munmap(page, PAGE);
    close(bank), close(arena), close(memfd), close(doorbell);
}

/* False: somebody still holds a frame of the last one of this id. */
static bool create_with_id(struct process *p, uint16_t domid)
{
    struct xen_domctl op = {.cmd = XEN_DOMCTL_createdomain,
                            .domain = domid,
                            .interface_version = XEN_DOMCTL_INTERFACE_VERSION,
                            .u.createdomain = {.max_vcpus = 1, .max_evtchn_port = 100, .max_grant_frames = -1,
                                               .max_maptrack_frames = -1, .grant_opts = 1}};
    int64_t rc = call(p, __HYPERVISOR_domctl, give(p, &op, sizeof(op)), 0, 0, 0);
    CHECK(!rc || rc == -XEN_EEXIST);
    return !rc;
}

/* Banks were not there when frames, ports and rings were written: everything of a domain goes while others use it. */
static void process_domains_come_and_go(void)
{
    const uint64_t frames = 64;
    struct machine m;
    pthread_t user, copier;
    machine_start(&m, 1);
    struct users u = {.m = &m};
    pthread_create(&user, NULL, use_process_domains, &u);
    pthread_create(&copier, NULL, copy_through_a_ring, &u);
    for (int n = 0; n < 300 || !u.mapped || !u.copied; n++) {
        struct hv_process start;
        uint16_t domid = (uint16_t)(1 + (unsigned)n % NR_IDS);
        if (!create_with_id(&m.dom0, domid))
            continue;
        struct xen_domctl op = {.u.max_mem.max_memkb = 4 * frames};
        domctl(&m.dom0, XEN_DOMCTL_max_mem, domid, &op);
        int rc = hv_adopt(m.hv, domid, frames * PAGE, &start);
        CHECK(!rc);
        simple_domctl(&m.dom0, XEN_DOMCTL_unpausedomain, domid);
        live_as(&m, domid, frames);
        destroy_domain(&m.dom0, domid);
        sleep_ns(MS / 10);
    }
    atomic_store(&u.stop, true);
    pthread_join(user, NULL);
    pthread_join(copier, NULL);
    sleep_ns(MS);
    machine_end(&m);
}

/* ---- any call --------------------------------------------------------------------------------------------------- */

/* What a process domain may not ask, or asks with noise for arguments, leads nowhere: some calls took a vCPU for granted. */
static void every_call_of_a_process_domain(void)
{
    struct machine m;
    struct process p;
    struct hv_process start;
    machine_start(&m, 1);
    uint16_t domid = create_domain(&m.dom0, 1);
    CHECK(!hv_adopt(m.hv, domid, 1 << 20, &start));
    simple_domctl(&m.dom0, XEN_DOMCTL_unpausedomain, domid);
    process_start_as(&p, m.hv, domid);
    srand(1);
    for (uint64_t nr = 0; nr < 64; nr++)
        for (uint64_t n = 0; n < 64 * 9; n++) {
            uint8_t noise[256] = {0};
            for (unsigned i = 0; n % 3 && i < sizeof(noise); i++)
                noise[i] = n % 3 == 1 ? (uint8_t)rand() : (uint8_t)(i % 2 ? 0 : rand() % 4);
            uint64_t at = give(&p, noise, sizeof(noise)), command = n / 9;
            n / 3 % 3 == 0   ? call(&p, nr, command, at, 1, DOMID_SELF)
            : n / 3 % 3 == 1 ? call(&p, nr, at, command, 0, 0)
                             : call(&p, nr, command, 1, at, 0);
        }
    process_end(&p);
    destroy_domain(&m.dom0, domid);
    machine_end(&m);
}

PROGRAM(60,
        T(process_domains_come_and_go),
        T(every_call_of_a_process_domain))
