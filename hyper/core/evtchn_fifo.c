/*
 * The FIFO event channel ABI: one 32-bit word per port in pages the guest gives, and for each vCPU 16 queues, by
 * priority, of linked ports, whose heads are in a control block that is the guest's as well.
 *
 * A word has the bits PENDING, MASKED, LINKED (it is in a queue), and the number of the next port of its queue. We only
 * append: the tail's link field is set by compare-and-swap as long as the tail is still LINKED; when the guest has
 * taken it out meanwhile the queue is empty and the port becomes its head. The guest only takes out. BUSY asks a guest
 * that keeps changing the word to wait for us; one that does not listen loses events of its own.
 *
 * Tails, priorities and where a port was last queued are ours, guarded by hv->event_lock; words and control blocks are
 * shared and touched atomically only. A domain changes to this ABI at its first EVTCHNOP_init_control, and back at
 * EVTCHNOP_reset.
 */
#include "event.h"

#include "../public/event_channel.h"
#include "domain.h"
#include "hypercall.h"

#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(event_word_t))
#define MAX_ARRAY_PAGES (EVTCHN_FIFO_NR_CHANNELS / WORDS_PER_PAGE)
#define POLITE_TRIES 4
#define TRIES 16

#define BIT(n) (1u << (n))

struct fifo_vcpu {
    struct page_info *page; /* NULL: no control block */
    struct evtchn_fifo_control_block *control;
    uint32_t tail[EVTCHN_FIFO_MAX_QUEUES];
};

struct evtchn_fifo {
    struct page_info *page[MAX_ARRAY_PAGES];
    event_word_t *words[MAX_ARRAY_PAGES];
    uint32_t nr_pages;
    struct fifo_vcpu vcpu[];
};

static event_word_t *event_word(const struct domain *d, uint32_t port)
{
    const struct evtchn_fifo *f = d->evtchn_fifo;
    uint32_t page = port / WORDS_PER_PAGE;
    return page < f->nr_pages ? &f->words[page][port % WORDS_PER_PAGE] : NULL;
}

static uint32_t set_bits(event_word_t *word, uint32_t bits) { return __atomic_fetch_or(word, bits, __ATOMIC_SEQ_CST); }
static uint32_t clear_bits(event_word_t *word, uint32_t bits) { return __atomic_fetch_and(word, ~bits, __ATOMIC_SEQ_CST); }
static uint32_t read_word(const event_word_t *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

/* ---- queues ----------------------------------------------------------------------------------------------------- */

/* The queue goes on from `tail` to `port`; false: the guest has taken the tail out, the queue is empty. */
static bool link_to(event_word_t *tail, uint32_t port)
{
    bool linked = false;
    for (int i = 0; i < TRIES; i++) {
        uint32_t word = i == POLITE_TRIES ? set_bits(tail, BIT(EVTCHN_FIFO_BUSY)) : read_word(tail);
        if (!(word & BIT(EVTCHN_FIFO_LINKED)))
            break;
        word = read_word(tail);
        uint32_t wanted = (word & ~(uint32_t)EVTCHN_FIFO_LINK_MASK) | port;
        if ((word & BIT(EVTCHN_FIFO_LINKED)) &&
            __atomic_compare_exchange_n(tail, &word, wanted, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            linked = true;
            break;
        }
    }
    clear_bits(tail, BIT(EVTCHN_FIFO_BUSY));
    return linked;
}

/* A port that was the tail of another queue is no longer in it, or it could not be queued now. */
static void leave_old_queue(struct evtchn_fifo *f, const struct evtchn_place *at, uint16_t vcpu_id, uint32_t port)
{
    uint32_t *tail = &f->vcpu[at->last_vcpu].tail[at->last_priority];
    if ((at->last_vcpu != vcpu_id || at->last_priority != at->priority) && *tail == port)
        *tail = 0;
}

static void enqueue(struct vcpu *v, uint32_t port, struct evtchn_place *at)
{
    struct fifo_vcpu *fv = &v->domain->evtchn_fifo->vcpu[v->id];
    uint8_t priority = at->priority;
    uint32_t *tail = &fv->tail[priority];
    leave_old_queue(v->domain->evtchn_fifo, at, (uint16_t)v->id, port);
    at->last_vcpu = (uint16_t)v->id;
    at->last_priority = priority;
    bool linked = *tail && *tail != port && link_to(event_word(v->domain, *tail), port);
    *tail = port;
    if (linked)
        return;
    __atomic_store_n(&fv->control->head[priority], port, __ATOMIC_SEQ_CST);
    if (!(set_bits(&fv->control->ready, BIT(priority)) & BIT(priority)))
        vcpu_mark_events_pending(v);
}

static void queue_if_wanted(struct vcpu *v, uint32_t port, event_word_t *word, struct evtchn_place *at)
{
    if (!v->domain->evtchn_fifo->vcpu[v->id].control || (read_word(word) & BIT(EVTCHN_FIFO_MASKED)))
        return;
    if (!(set_bits(word, BIT(EVTCHN_FIFO_LINKED)) & BIT(EVTCHN_FIFO_LINKED)))
        enqueue(v, port, at);
}

bool evtchn_fifo_set_pending(struct vcpu *v, uint32_t port, struct evtchn_place *at)
{
    event_word_t *word = event_word(v->domain, port);
    if (!word)
        return false;
    bool was_pending = set_bits(word, BIT(EVTCHN_FIFO_PENDING)) & BIT(EVTCHN_FIFO_PENDING);
    queue_if_wanted(v, port, word, at);
    if (!was_pending)
        evtchn_wake_pollers(v->domain, port);
    return true;
}

void evtchn_fifo_unmask(struct vcpu *v, uint32_t port, struct evtchn_place *at)
{
    event_word_t *word = event_word(v->domain, port);
    if (!word)
        return;
    clear_bits(word, BIT(EVTCHN_FIFO_MASKED));
    if (read_word(word) & BIT(EVTCHN_FIFO_PENDING))
        queue_if_wanted(v, port, word, at);
}

void evtchn_fifo_clear_pending(struct domain *d, uint32_t port)
{
    event_word_t *word = event_word(d, port);
    if (word)
        clear_bits(word, BIT(EVTCHN_FIFO_PENDING));
}

bool evtchn_fifo_is_pending(const struct domain *d, uint32_t port)
{
    const event_word_t *word = event_word(d, port);
    return word && (read_word(word) & BIT(EVTCHN_FIFO_PENDING));
}

/* ---- what the guest gives --------------------------------------------------------------------------------------- */

/* Domain lock held. */
static int make_state(struct domain *d)
{
    if (!d->evtchn_fifo)
        d->evtchn_fifo = calloc(1, sizeof(struct evtchn_fifo) + d->max_vcpus * sizeof(struct fifo_vcpu));
    return d->evtchn_fifo ? 0 : -XEN_ENOMEM;
}

/* Domain lock held. */
static int place_control_block(struct vcpu *curr, const struct evtchn_init_control *op)
{
    struct domain *d = curr->domain;
    int rc = make_state(d);
    if (rc)
        return rc;
    struct fifo_vcpu *fv = &d->evtchn_fifo->vcpu[op->vcpu];
    struct page_info *pg = fv->page ? NULL : claim_guest_frame(curr, op->control_gfn);
    if (!pg)
        return -XEN_EINVAL;
    struct evtchn_fifo_control_block *control =
        (void *)((char *)mfn_to_virt(d->hv, page_to_mfn(d->hv, pg)) + op->offset);
    lock(&d->hv->event_lock);
    fv->page = pg;
    memset(fv->tail, 0, sizeof(fv->tail));
    control->ready = 0;
    fv->control = control;
    unlock(&d->hv->event_lock);
    return 0;
}

int evtchn_fifo_init_control(struct vcpu *curr, struct evtchn_init_control *op)
{
    struct domain *d = curr->domain;
    op->link_bits = EVTCHN_FIFO_LINK_BITS;
    if (!domain_vcpu(d, op->vcpu))
        return -XEN_ENOENT;
    if (op->offset > PAGE_SIZE - sizeof(struct evtchn_fifo_control_block) || op->offset % 8)
        return -XEN_EINVAL;
    domain_lock(d, curr);
    int rc = place_control_block(curr, op);
    domain_unlock(d, curr);
    return rc;
}

int evtchn_fifo_expand_array(struct vcpu *curr, const struct evtchn_expand_array *op)
{
    struct domain *d = curr->domain;
    struct evtchn_fifo *f = d->evtchn_fifo;
    if (!f || !f->vcpu[curr->id].control)
        return -XEN_EOPNOTSUPP;
    domain_lock(d, curr);
    int rc = f->nr_pages == MAX_ARRAY_PAGES ? -XEN_ENOSPC : 0;
    struct page_info *pg = rc ? NULL : claim_guest_frame(curr, op->array_gfn);
    if (pg) {
        f->page[f->nr_pages] = pg;
        f->words[f->nr_pages] = mfn_to_virt(d->hv, page_to_mfn(d->hv, pg));
        lock(&d->hv->event_lock);
        f->nr_pages++;
        unlock(&d->hv->event_lock);
    }
    domain_unlock(d, curr);
    return rc ? rc : pg ? 0 : -XEN_EINVAL;
}

void evtchn_fifo_give_back(struct domain *d)
{
    struct evtchn_fifo *f = d->evtchn_fifo;
    if (!f)
        return;
    lock(&d->hv->event_lock);
    uint32_t nr_pages = f->nr_pages;
    f->nr_pages = 0;
    for (uint32_t i = 0; i < d->max_vcpus; i++)
        f->vcpu[i].control = NULL;
    unlock(&d->hv->event_lock);
    struct vcpu *curr = current_caller.vcpu;
    domain_lock_any(d, curr);
    for (uint32_t i = 0; i < nr_pages; i++)
        release_guest_frame(d, f->page[i]);
    for (uint32_t i = 0; i < d->max_vcpus; i++) {
        if (f->vcpu[i].page)
            release_guest_frame(d, f->vcpu[i].page);
        f->vcpu[i].page = NULL;
    }
    domain_unlock_any(d, curr);
}

void evtchn_fifo_destroy(struct domain *d)
{
    free(d->evtchn_fifo);
    d->evtchn_fifo = NULL;
}
