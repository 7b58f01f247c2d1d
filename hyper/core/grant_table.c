/*
 * Grant tables, version 1: a domain offers single frames of its own to another domain, which maps or copies them.
 *
 * The shared table lies in frames that the granter writes at any time. A use reads an entry once, checks the copy, and
 * marks the entry (GTF_reading, GTF_writing) by compare-and-swap against that copy, so what was checked is what is used.
 * The active entry remembers what is in use and how often: the frame stays that frame, whatever the granter writes later.
 *
 * A use holds a reference of the frame; a writing use also one of PGT_writable_page, so that the frame can't become a page
 * table under a backend's pen, and counts as a foreign writer, so that no engine keeps code from it.
 *
 * Locks: a table and its active entries belong to the granter's domain lock. Two granters' locks are never held at once.
 * The mapper's handles belong to hv->event_lock, taken for a moment inside. The types of a frame may make the engine
 * quiesce vCPUs, so never under event_lock.
 */
#include "grant_table.h"

#include "../public/grant_table.h"
#include "hypercall.h"

#define GRANTS_PER_FRAME (PAGE_SIZE / sizeof(struct grant_entry_v1))
#define MAX_GRANT_FRAMES 256u
#define DEFAULT_GRANT_FRAMES 64u
#define DEFAULT_MAPS (1024u * 256u)
#define CAS_TRIES 8
#define UNMAPPED_AT_ONCE 256 /* about 100 us */

/* What is in use of one entry. */
struct active_entry {
    uint32_t pins, writers; /* uses; those of them that write */
    uint16_t domid;         /* of the user */
    struct page_info *pg;
};

/* One mapping of a process domain. */
struct grant_map {
    struct list link; /* of its connection */
    struct hv_conn *conn;
    struct domain *granter; /* referenced */
    struct page_info *pg;
    uint32_t ref, handle;
    bool readonly;
};

struct grant_table {
    uint32_t max_frames, nr_frames;
    struct page_info *frame[MAX_GRANT_FRAMES];
    struct active_entry *active[MAX_GRANT_FRAMES];
    /* as a mapper */
    struct grant_map **map; /* by handle */
    uint32_t nr_maps, max_maps, first_free_handle;
};

/* ---- the table -------------------------------------------------------------------------------------------------- */

static uint32_t nr_entries(const struct grant_table *gt) { return gt->nr_frames * GRANTS_PER_FRAME; }

static struct active_entry *active_entry(struct grant_table *gt, uint32_t ref)
{
    return &gt->active[ref / GRANTS_PER_FRAME][ref % GRANTS_PER_FRAME];
}

static struct grant_entry_v1 *shared_entry(struct domain *d, uint32_t ref)
{
    struct page_info *pg = d->grants->frame[ref / GRANTS_PER_FRAME];
    struct grant_entry_v1 *entry = mfn_to_virt(d->hv, page_to_mfn(d->hv, pg));
    return &entry[ref % GRANTS_PER_FRAME];
}

/* Domain lock held. */
static int grow_table(struct domain *d, uint32_t nr_frames)
{
    struct grant_table *gt = d->grants;
    if (nr_frames > gt->max_frames)
        return -XEN_EINVAL;
    while (gt->nr_frames < nr_frames) {
        uint32_t i = gt->nr_frames;
        gt->active[i] = calloc(GRANTS_PER_FRAME, sizeof(struct active_entry));
        gt->frame[i] = gt->active[i] ? alloc_xenheap_page(d) : NULL;
        if (!gt->frame[i]) {
            free(gt->active[i]);
            gt->active[i] = NULL;
            return -XEN_ENOMEM;
        }
        gt->nr_frames++;
    }
    return 0;
}

int grant_table_init(struct domain *d, uint32_t max_frames, uint32_t max_maps)
{
    struct grant_table *gt = calloc(1, sizeof(*gt));
    if (!gt)
        return -XEN_ENOMEM;
    gt->max_frames = max_frames < MAX_GRANT_FRAMES ? max_frames : MAX_GRANT_FRAMES;
    gt->max_maps = max_maps;
    d->grants = gt;
    return gt->max_frames ? grow_table(d, 1) : 0;
}

void grant_table_destroy(struct domain *d)
{
    struct grant_table *gt = d->grants;
    if (!gt)
        return;
    for (uint32_t i = 0; i < gt->nr_frames; i++) {
        free_xenheap_page(d, gt->frame[i]);
        free(gt->active[i]);
    }
    free(gt->map);
    free(gt);
    d->grants = NULL;
}

uint32_t grant_table_max_frames(const struct domain *d) { return d->grants->max_frames; }

int grant_table_frame(struct domain *d, uint32_t index, mfn_t *out)
{
    struct vcpu *curr = current_caller.vcpu;
    domain_lock_any(d, curr);
    int rc = index < MAX_GRANT_FRAMES ? grow_table(d, index + 1) : -XEN_EINVAL;
    if (index < d->grants->nr_frames) {
        *out = page_to_mfn(d->hv, d->grants->frame[index]);
        rc = 0;
    }
    domain_unlock_any(d, curr);
    return rc;
}

/* ---- using an entry: the granter's domain lock is held ---------------------------------------------------------- */

/* The granter's 8 bytes as one value. */
union entry_value { struct grant_entry_v1 e; uint64_t v; };

/* Checks the entry and marks it as used. The frame it names comes back in *gfn. */
static int16_t mark_entry(struct domain *granter, uint32_t ref, uint16_t user, bool readonly, gfn_t *gfn)
{
    uint64_t *shared = (uint64_t *)shared_entry(granter, ref);
    for (int i = 0; i < CAS_TRIES; i++) {
        union entry_value old, new;
        old.v = new.v = __atomic_load_n(shared, __ATOMIC_SEQ_CST);
        if ((old.e.flags & GTF_type_mask) != GTF_permit_access || old.e.domid != user)
            return GNTST_general_error;
        if (!readonly && (old.e.flags & GTF_readonly))
            return GNTST_general_error;
        new.e.flags |= GTF_reading | (readonly ? 0 : GTF_writing);
        *gfn = _gfn(old.e.frame);
        if (__atomic_compare_exchange_n(shared, &old.v, new.v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return GNTST_okay;
    }
    return GNTST_general_error; /* the granter keeps changing it */
}

static void unmark_entry(struct domain *granter, uint32_t ref, const struct active_entry *act)
{
    uint16_t clear = (uint16_t)((act->pins ? 0 : GTF_reading) | (act->writers ? 0 : GTF_writing));
    if (clear)
        __atomic_fetch_and(&shared_entry(granter, ref)->flags, (uint16_t)~clear, __ATOMIC_SEQ_CST);
}

static struct vcpu *vcpu_of(const struct domain *d)
{
    struct vcpu *v = current_caller.vcpu;
    return v && v->domain == d ? v : NULL;
}

/* Takes what a writer needs of a frame beside the general reference. */
static bool begin_writing(struct domain *owner, struct page_info *pg)
{
    if (get_page_type(owner, pg, PGT_writable_page))
        return false;
    pg->foreign_writers++;
    if (owner->kind == DOMAIN_PV)
        engine()->frame_written(owner, vcpu_of(owner), pg);
    return true;
}

static void end_writing(struct domain *owner, struct page_info *pg)
{
    pg->foreign_writers--;
    put_page_type(owner, pg);
}

static struct page_info *frame_of_entry(struct domain *granter, const struct active_entry *act, gfn_t gfn)
{
    if (!act->pins)
        return get_page_from_gfn(granter, gfn);
    return get_page(act->pg, granter) ? act->pg : NULL;
}

static int16_t use_entry(struct domain *granter, uint32_t ref, uint16_t user, bool readonly, struct page_info **out)
{
    struct grant_table *gt = granter->grants;
    gfn_t gfn = INVALID_GFN;
    if (ref >= nr_entries(gt))
        return GNTST_bad_gntref;
    struct active_entry *act = active_entry(gt, ref);
    if (act->pins && (act->domid != user || act->pins == UINT32_MAX))
        return GNTST_general_error;
    if (!act->pins || (!readonly && !act->writers)) {
        int16_t status = mark_entry(granter, ref, user, readonly, &gfn);
        if (status != GNTST_okay)
            return status;
    }
    struct page_info *pg = frame_of_entry(granter, act, gfn);
    if (!pg) {
        unmark_entry(granter, ref, act);
        return GNTST_bad_page;
    }
    if (!readonly && !begin_writing(granter, pg)) {
        put_page(granter->hv, pg);
        unmark_entry(granter, ref, act);
        return GNTST_general_error;
    }
    act->pins++;
    act->writers += !readonly;
    act->domid = user;
    act->pg = *out = pg;
    return GNTST_okay;
}

static void release_entry(struct domain *granter, uint32_t ref, bool readonly)
{
    struct active_entry *act = active_entry(granter->grants, ref);
    act->pins--;
    act->writers -= !readonly;
    if (!readonly)
        end_writing(granter, act->pg);
    unmark_entry(granter, ref, act);
    put_page(granter->hv, act->pg);
}

/* ---- handles ---------------------------------------------------------------------------------------------------- */

static bool grow_handles(struct grant_table *gt)
{
    uint32_t n = gt->nr_maps ? 2 * gt->nr_maps : 64;
    if (n > gt->max_maps)
        n = gt->max_maps;
    struct grant_map **map = n > gt->nr_maps ? realloc(gt->map, n * sizeof(*map)) : NULL;
    if (!map)
        return false;
    memset(map + gt->nr_maps, 0, (n - gt->nr_maps) * sizeof(*map));
    gt->map = map;
    gt->nr_maps = n;
    return true;
}

/* Gives a mapping its handle; false: there are too many. */
static bool enter_map(struct grant_map *m)
{
    struct domain *d = m->conn->domain;
    struct grant_table *gt = d->grants;
    lock(&d->hv->event_lock);
    uint32_t handle = gt->first_free_handle;
    while (handle < gt->nr_maps && gt->map[handle])
        handle++;
    bool ok = handle < gt->nr_maps || grow_handles(gt);
    if (ok) {
        m->handle = handle;
        gt->map[handle] = m;
        gt->first_free_handle = handle + 1;
        list_append(&m->link, &m->conn->grant_maps);
        d->hv->nr_grant_maps++;
    }
    unlock(&d->hv->event_lock);
    return ok;
}

static void leave_map_locked(struct domain *d, struct grant_map *m)
{
    struct grant_table *gt = d->grants;
    gt->map[m->handle] = NULL;
    if (m->handle < gt->first_free_handle)
        gt->first_free_handle = m->handle;
    list_remove(&m->link);
    d->hv->nr_grant_maps--;
}

/* Takes a mapping of this connection out of the tables; NULL: it has none by that handle. */
static struct grant_map *take_map(struct hv_conn *conn, uint32_t handle)
{
    struct domain *d = conn->domain;
    struct grant_table *gt = d->grants;
    lock(&d->hv->event_lock);
    struct grant_map *m = handle < gt->nr_maps ? gt->map[handle] : NULL;
    if (m && m->conn != conn)
        m = NULL;
    if (m)
        leave_map_locked(d, m);
    unlock(&d->hv->event_lock);
    return m;
}

static struct grant_map *take_any_map(struct hv_conn *conn)
{
    struct grant_map *m = NULL;
    lock(&conn->hv->event_lock);
    if (!list_empty(&conn->grant_maps)) {
        m = container_of(conn->grant_maps.next, struct grant_map, link);
        leave_map_locked(conn->domain, m);
    }
    unlock(&conn->hv->event_lock);
    return m;
}

/* ---- map and unmap ---------------------------------------------------------------------------------------------- */

static void release_map(struct grant_map *m)
{
    domain_lock(m->granter, NULL);
    release_entry(m->granter, m->ref, m->readonly);
    domain_unlock(m->granter, NULL);
    put_domain(m->granter);
    free(m);
}

int grant_unmap_some(struct hv_conn *conn)
{
    struct grant_map *m;
    for (unsigned n = 0; n < UNMAPPED_AT_ONCE; n++) {
        if (!(m = take_any_map(conn)))
            return 0;
        release_map(m);
    }
    return -XEN_ERESTART;
}

static int16_t use_for_map(struct grant_map *m)
{
    domain_lock(m->granter, NULL);
    int16_t status = use_entry(m->granter, m->ref, m->conn->domain->id, m->readonly, &m->pg);
    domain_unlock(m->granter, NULL);
    return status;
}

static int16_t map_referenced(struct hv_conn *conn, struct domain *granter, struct gnttab_map_grant_ref *op)
{
    struct grant_map *m = malloc(sizeof(*m));
    if (!m)
        return GNTST_no_space;
    *m = (struct grant_map){.conn = conn, .granter = granter, .ref = op->ref, .readonly = op->flags & GNTMAP_readonly};
    int16_t status = use_for_map(m);
    if (status != GNTST_okay) {
        free(m);
        return status;
    }
    /* Read before the handle is known: afterwards another thread of this domain may unmap. */
    op->dev_bus_addr = mfn_x(page_to_mfn(granter->hv, m->pg)) << PAGE_SHIFT;
    atomic_fetch_add(&granter->refs, 1); /* release_map drops it */
    if (!enter_map(m)) {
        release_map(m);
        return GNTST_no_space;
    }
    op->handle = m->handle;
    return GNTST_okay;
}

/* PV guests can't map foreign frames yet; unprivileged processes never can: they have no access to the banks. */
static bool may_map(const struct caller *c) { return c->conn && c->domain->is_privileged; }

static int16_t map_grant_ref(struct gnttab_map_grant_ref *op)
{
    const struct caller *c = &current_caller;
    if (!may_map(c))
        return GNTST_permission_denied;
    if (!(op->flags & (GNTMAP_device_map | GNTMAP_host_map)))
        return GNTST_bad_gntref;
    struct domain *granter = get_domain(c->domain->hv, c->domain, op->dom);
    if (!granter)
        return GNTST_bad_domain;
    int16_t status = atomic_load(&granter->dying) ? GNTST_bad_domain : map_referenced(c->conn, granter, op);
    put_domain(granter);
    return status;
}

static int16_t unmap_grant_ref(struct gnttab_unmap_grant_ref *op)
{
    struct grant_map *m = current_caller.conn ? take_map(current_caller.conn, op->handle) : NULL;
    if (!m)
        return GNTST_bad_handle;
    release_map(m);
    return GNTST_okay;
}

/* ---- copy ------------------------------------------------------------------------------------------------------- */

/* A process's own memory is its arena: gmfn n is page n of it, and neither frame nor domain are involved. */
struct copy_side {
    struct domain *d; /* referenced; NULL: a page of the connection's arena */
    struct page_info *pg;
    uint8_t *host;
    uint32_t ref;
    bool is_gref, writes;
};

static int16_t pin_arena_page(struct copy_side *s, const struct hv_conn *conn, uint64_t gmfn)
{
    if (gmfn >= conn->arena_bytes >> PAGE_SHIFT)
        return GNTST_bad_page;
    s->host = conn->arena + (gmfn << PAGE_SHIFT);
    return GNTST_okay;
}

static int16_t pin_own_frame(struct copy_side *s, uint64_t gmfn)
{
    s->pg = get_page_from_gfn(s->d, _gfn(gmfn));
    if (!s->pg)
        return GNTST_bad_page;
    if (s->writes && !begin_writing(s->d, s->pg)) {
        put_page(s->d->hv, s->pg);
        return GNTST_general_error;
    }
    return GNTST_okay;
}

static int16_t pin_side(struct copy_side *s, struct vcpu *curr, const struct gnttab_copy_ptr *ptr)
{
    const struct caller *c = &current_caller;
    if (!s->is_gref && ptr->domid != DOMID_SELF)
        return GNTST_permission_denied;
    if (!s->is_gref && c->conn)
        return pin_arena_page(s, c->conn, ptr->u.gmfn);
    s->d = get_domain(c->domain->hv, c->domain, ptr->domid);
    if (!s->d)
        return GNTST_bad_domain;
    s->ref = ptr->u.ref;
    domain_lock_any(s->d, curr);
    int16_t status = s->is_gref ? use_entry(s->d, s->ref, c->domain->id, !s->writes, &s->pg)
                                : pin_own_frame(s, ptr->u.gmfn);
    domain_unlock_any(s->d, curr);
    if (status == GNTST_okay)
        s->host = mfn_to_virt(s->d->hv, page_to_mfn(s->d->hv, s->pg));
    else
        put_domain(s->d);
    return status;
}

static void unpin_side(struct copy_side *s, struct vcpu *curr)
{
    if (!s->d)
        return;
    domain_lock_any(s->d, curr);
    if (s->is_gref) {
        release_entry(s->d, s->ref, !s->writes);
    } else {
        if (s->writes)
            end_writing(s->d, s->pg);
        put_page(s->d->hv, s->pg);
    }
    domain_unlock_any(s->d, curr);
    put_domain(s->d);
}

static int16_t copy_grant(const struct gnttab_copy *op)
{
    struct vcpu *curr = current_caller.vcpu;
    struct copy_side from = {.is_gref = op->flags & GNTCOPY_source_gref};
    struct copy_side to = {.is_gref = op->flags & GNTCOPY_dest_gref, .writes = true};
    if (op->source.offset + (uint32_t)op->len > PAGE_SIZE || op->dest.offset + (uint32_t)op->len > PAGE_SIZE)
        return GNTST_bad_copy_arg;
    int16_t status = pin_side(&from, curr, &op->source);
    if (status != GNTST_okay)
        return status;
    status = pin_side(&to, curr, &op->dest);
    if (status == GNTST_okay) {
        memmove(to.host + op->dest.offset, from.host + op->source.offset, op->len);
        unpin_side(&to, curr);
    }
    unpin_side(&from, curr);
    return status;
}

/* ---- operations on tables --------------------------------------------------------------------------------------- */

static int16_t get_controlled(uint16_t domid, struct domain **out)
{
    struct domain *caller = current_caller.domain;
    *out = get_domain(caller->hv, caller, domid);
    if (!*out)
        return GNTST_bad_domain;
    if (*out == caller || caller->is_privileged)
        return GNTST_okay;
    put_domain(*out);
    return GNTST_permission_denied;
}

static int16_t list_frames(struct domain *d, uint32_t nr_frames, uint64_t list)
{
    for (uint32_t i = 0; i < nr_frames; i++) {
        uint64_t gfn = gfn_x(page_to_gfn(d, d->grants->frame[i]));
        if (copy_to_guest(list + i * sizeof(gfn), &gfn, sizeof(gfn)))
            return GNTST_bad_virt_addr;
    }
    return GNTST_okay;
}

static int16_t setup_table(const struct gnttab_setup_table *op)
{
    struct vcpu *curr = current_caller.vcpu;
    struct domain *d;
    int16_t status = get_controlled(op->dom, &d);
    if (status != GNTST_okay)
        return status;
    domain_lock_any(d, curr);
    status = grow_table(d, op->nr_frames) ? GNTST_general_error : GNTST_okay;
    domain_unlock_any(d, curr);
    if (status == GNTST_okay)
        status = list_frames(d, op->nr_frames, op->frame_list);
    put_domain(d);
    return status;
}

static int16_t query_size(struct gnttab_query_size *op)
{
    struct domain *d;
    int16_t status = get_controlled(op->dom, &d);
    if (status != GNTST_okay)
        return status;
    op->nr_frames = d->grants->nr_frames;
    op->max_nr_frames = d->grants->max_frames;
    put_domain(d);
    return GNTST_okay;
}

static int16_t swap_entries(struct domain *d, uint32_t a, uint32_t b)
{
    if (a >= nr_entries(d->grants) || b >= nr_entries(d->grants))
        return GNTST_bad_gntref;
    if (active_entry(d->grants, a)->pins || active_entry(d->grants, b)->pins)
        return GNTST_eagain;
    struct grant_entry_v1 *ea = shared_entry(d, a), *eb = shared_entry(d, b), t = *ea;
    *ea = *eb;
    *eb = t;
    return GNTST_okay;
}

static int16_t swap_grant_ref(const struct gnttab_swap_grant_ref *op)
{
    struct vcpu *curr = current_caller.vcpu;
    struct domain *d = current_caller.domain;
    domain_lock(d, curr);
    int16_t status = swap_entries(d, op->ref_a, op->ref_b);
    domain_unlock(d, curr);
    return status;
}

/* ---- the hypercall ---------------------------------------------------------------------------------------------- */

union grant_op {
    struct gnttab_map_grant_ref map;
    struct gnttab_unmap_grant_ref unmap;
    struct gnttab_setup_table setup;
    struct gnttab_transfer transfer;
    struct gnttab_copy copy;
    struct gnttab_query_size query;
    struct gnttab_unmap_and_replace replace;
    struct gnttab_get_status_frames status_frames;
    struct gnttab_swap_grant_ref swap;
};

static const size_t op_size[] = {
    [GNTTABOP_map_grant_ref] = sizeof(struct gnttab_map_grant_ref),
    [GNTTABOP_unmap_grant_ref] = sizeof(struct gnttab_unmap_grant_ref),
    [GNTTABOP_setup_table] = sizeof(struct gnttab_setup_table),
    [GNTTABOP_transfer] = sizeof(struct gnttab_transfer),
    [GNTTABOP_copy] = sizeof(struct gnttab_copy),
    [GNTTABOP_query_size] = sizeof(struct gnttab_query_size),
    [GNTTABOP_unmap_and_replace] = sizeof(struct gnttab_unmap_and_replace),
    [GNTTABOP_get_status_frames] = sizeof(struct gnttab_get_status_frames),
    [GNTTABOP_swap_grant_ref] = sizeof(struct gnttab_swap_grant_ref),
};

static void do_one(uint32_t cmd, union grant_op *op)
{
    switch (cmd) {
    case GNTTABOP_map_grant_ref:
        op->map.status = map_grant_ref(&op->map);
        break;
    case GNTTABOP_unmap_grant_ref:
        op->unmap.status = unmap_grant_ref(&op->unmap);
        break;
    case GNTTABOP_copy:
        op->copy.status = copy_grant(&op->copy);
        break;
    case GNTTABOP_setup_table:
        op->setup.status = setup_table(&op->setup);
        break;
    case GNTTABOP_query_size:
        op->query.status = query_size(&op->query);
        break;
    case GNTTABOP_swap_grant_ref:
        op->swap.status = swap_grant_ref(&op->swap);
        break;
    case GNTTABOP_transfer: /* not built */
        op->transfer.status = GNTST_general_error;
        break;
    case GNTTABOP_unmap_and_replace: /* no mapping of a PV guest can exist */
        op->replace.status = GNTST_bad_handle;
        break;
    case GNTTABOP_get_status_frames: /* of version 2 */
        op->status_frames.status = op->status_frames.nr_frames ? GNTST_general_error : GNTST_okay;
        break;
    }
}

static int64_t do_batch(uint32_t cmd, uint64_t uop, uint32_t count)
{
    union grant_op op;
    for (uint32_t done = 0; done < count; done++, uop += op_size[cmd]) {
        if (done && hypercall_preempt_check())
            return hypercall_continue(__HYPERVISOR_grant_table_op, 3, (uint64_t)cmd, uop, (uint64_t)(count - done));
        if (copy_from_guest(&op, uop, op_size[cmd]))
            return -XEN_EFAULT;
        do_one(cmd, &op);
        if (copy_to_guest(uop, &op, op_size[cmd]))
            return -XEN_EFAULT;
    }
    return 0;
}

static int64_t set_version(uint64_t uop)
{
    struct gnttab_set_version op;
    if (copy_from_guest(&op, uop, sizeof(op)))
        return -XEN_EFAULT;
    if (op.version != 1)
        return op.version == 2 ? -XEN_ENOSYS : -XEN_EINVAL;
    return copy_to_guest(uop, &op, sizeof(op)) ? -XEN_EFAULT : 0;
}

static int64_t get_version(uint64_t uop)
{
    struct gnttab_get_version op;
    struct domain *d;
    if (copy_from_guest(&op, uop, sizeof(op)))
        return -XEN_EFAULT;
    int16_t status = get_controlled(op.dom, &d);
    if (status != GNTST_okay)
        return status == GNTST_bad_domain ? -XEN_ESRCH : -XEN_EPERM;
    put_domain(d);
    op.version = 1;
    return copy_to_guest(uop, &op, sizeof(op)) ? -XEN_EFAULT : 0;
}

int64_t do_grant_table_op(struct vcpu *curr, struct domain *caller, struct hv_conn *conn, uint64_t cmd, uint64_t uop,
                          uint64_t count)
{
    (void)curr, (void)caller, (void)conn; /* current_caller says it all */
    uint32_t op = (uint32_t)cmd, n = (uint32_t)count;
    if (n > INT32_MAX)
        return -XEN_EINVAL;
    switch (op) {
    case GNTTABOP_set_version:
        return n == 1 ? set_version(uop) : -XEN_EINVAL;
    case GNTTABOP_get_version:
        return n == 1 ? get_version(uop) : -XEN_EINVAL;
    case GNTTABOP_setup_table:
    case GNTTABOP_query_size:
    case GNTTABOP_get_status_frames:
        return n == 1 ? do_batch(op, uop, n) : -XEN_EINVAL;
    case GNTTABOP_map_grant_ref:
    case GNTTABOP_unmap_grant_ref:
    case GNTTABOP_copy:
    case GNTTABOP_transfer:
    case GNTTABOP_unmap_and_replace:
    case GNTTABOP_swap_grant_ref:
        return do_batch(op, uop, n);
    default:
        return -XEN_ENOSYS;
    }
}
