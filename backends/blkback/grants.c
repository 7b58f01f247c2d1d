/*
 * Mapped grants. A frontend with persistent grants uses the same frames again and again: they stay mapped, found by gref in
 * a hash table and kept in a list by their last use. When `max_persistent` are kept, the least recently used ones go, a
 * twentieth at once so that one unmap hypercall serves many; when all are in use, further ones are mapped for one request
 * only. Frontends without persistent grants get all theirs unmapped before the answer.
 *
 * Persistent grants are mapped writable, whatever the request: the next one may be a read. Of others, those whose contents
 * are only read are mapped read-only, since the frontend may have granted no more. The same gref may occur twice in a request.
 *
 * One queue's thread uses a cache; `unmap` failing is hyper gone, and then nothing matters.
 */
#include "grants.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK 128 /* grants allocated at once */
#define PURGE_FRACTION 20

struct chunk {
    struct chunk *next;
    struct grant grant[CHUNK];
};

struct grants {
    struct grant_source source;
    domid_t domid;
    uint32_t max_persistent, nr_persistent;
    uint32_t nr_buckets; /* a power of two */
    struct grant **bucket;
    struct grant *newest, *oldest;
    struct grant *spare;
    struct chunk *chunks;
    uint32_t nr_stale; /* to be unmapped */
    struct grant *stale[GRANTS_AT_ONCE];
};

struct grants *grants_create(const struct grant_source *source, domid_t domid, uint32_t max_persistent)
{
    struct grants *g = calloc(1, sizeof(*g));

    if (!g)
        return NULL;
    g->source = *source;
    g->domid = domid;
    g->max_persistent = max_persistent;
    g->nr_buckets = 64;
    while (g->nr_buckets < max_persistent)
        g->nr_buckets *= 2;
    g->bucket = calloc(g->nr_buckets, sizeof(struct grant *));
    if (!g->bucket) {
        free(g);
        return NULL;
    }
    return g;
}

void *grants_page(const struct grants *g, const struct grant *grant) { return g->source.bank + (grant->mfn << 12); }

uint32_t grants_nr_persistent(const struct grants *g) { return g->nr_persistent; }

/* ---- entries, the table, the list */

static struct grant *take_spare(struct grants *g)
{
    if (!g->spare) {
        struct chunk *chunk = calloc(1, sizeof(*chunk));

        if (!chunk)
            return NULL;
        chunk->next = g->chunks;
        g->chunks = chunk;
        for (uint32_t i = 0; i < CHUNK; i++) {
            chunk->grant[i].same_bucket = g->spare;
            g->spare = &chunk->grant[i];
        }
    }
    struct grant *grant = g->spare;

    g->spare = grant->same_bucket;
    memset(grant, 0, sizeof(*grant));
    return grant;
}

static void give_spare(struct grants *g, struct grant *grant)
{
    grant->same_bucket = g->spare;
    g->spare = grant;
}

static struct grant **bucket_of(struct grants *g, grant_ref_t gref)
{
    return &g->bucket[(gref * 0x9e3779b1u >> 8) & (g->nr_buckets - 1)];
}

static struct grant *find(struct grants *g, grant_ref_t gref)
{
    struct grant *grant = *bucket_of(g, gref);

    while (grant && grant->gref != gref)
        grant = grant->same_bucket;
    return grant;
}

static void list_remove(struct grants *g, struct grant *grant)
{
    *(grant->newer ? &grant->newer->older : &g->newest) = grant->older;
    *(grant->older ? &grant->older->newer : &g->oldest) = grant->newer;
    grant->newer = grant->older = NULL;
}

static void list_insert(struct grants *g, struct grant *grant)
{
    grant->older = g->newest;
    *(g->newest ? &g->newest->newer : &g->oldest) = grant;
    g->newest = grant;
}

static void keep(struct grants *g, struct grant *grant)
{
    struct grant **bucket = bucket_of(g, grant->gref);

    grant->persistent = true;
    grant->same_bucket = *bucket;
    *bucket = grant;
    list_insert(g, grant);
    g->nr_persistent++;
}

static void unkeep(struct grants *g, struct grant *grant)
{
    struct grant **link = bucket_of(g, grant->gref);

    while (*link != grant)
        link = &(*link)->same_bucket;
    *link = grant->same_bucket;
    list_remove(g, grant);
    grant->persistent = false;
    g->nr_persistent--;
}

/* ---- unmapping */

void grants_flush(struct grants *g)
{
    struct gnttab_unmap_grant_ref op[GRANTS_AT_ONCE];

    if (!g->nr_stale)
        return;
    for (uint32_t i = 0; i < g->nr_stale; i++)
        op[i] = (struct gnttab_unmap_grant_ref){.dev_bus_addr = g->stale[i]->mfn << 12, .handle = g->stale[i]->handle};
    (void)g->source.unmap(g->source.context, op, g->nr_stale);
    for (uint32_t i = 0; i < g->nr_stale; i++)
        give_spare(g, g->stale[i]);
    g->nr_stale = 0;
}

static void retire(struct grants *g, struct grant *grant)
{
    if (g->nr_stale == GRANTS_AT_ONCE)
        grants_flush(g);
    g->stale[g->nr_stale++] = grant;
}

static void purge(struct grants *g)
{
    uint32_t wanted = g->max_persistent / PURGE_FRACTION + 1;

    for (struct grant *grant = g->oldest, *newer; grant && wanted; grant = newer) {
        newer = grant->newer;
        if (!grant->uses) {
            unkeep(g, grant);
            retire(g, grant);
            wanted--;
        }
    }
    grants_flush(g);
}

/* ---- mapping */

/* Whether one more may be kept. Makes room for it. */
static bool may_keep(struct grants *g)
{
    if (g->nr_persistent >= g->max_persistent && g->max_persistent)
        purge(g);
    return g->nr_persistent < g->max_persistent;
}

/* False if any could not be mapped; `failed` says which. */
static bool map_batch(struct grants *g, struct grant **batch, uint32_t n, bool writable)
{
    struct gnttab_map_grant_ref op[GRANTS_AT_ONCE];
    bool all = true;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t flags = GNTMAP_device_map | (writable || batch[i]->persistent ? 0 : GNTMAP_readonly);
        op[i] = (struct gnttab_map_grant_ref){
            .flags = flags, .ref = batch[i]->gref, .dom = g->domid, .status = GNTST_general_error};
    }
    if (n)
        (void)g->source.map(g->source.context, op, n); /* each op says how it went, also those not tried */
    for (uint32_t i = 0; i < n; i++) {
        batch[i]->handle = op[i].handle;
        batch[i]->mfn = op[i].dev_bus_addr >> 12;
        batch[i]->failed = op[i].status != GNTST_okay || batch[i]->mfn >= g->source.max_mfn;
        all &= !batch[i]->failed;
    }
    return all;
}

/* Looks `gref` up, or makes an entry for it at the end of batch. NULL: no memory. */
static struct grant *find_or_add(struct grants *g, grant_ref_t gref, struct grant **batch, uint32_t *nr_batch)
{
    struct grant *grant = g->max_persistent ? find(g, gref) : NULL;

    if (grant) {
        list_remove(g, grant);
        list_insert(g, grant);
    } else {
        bool kept = may_keep(g);

        grant = take_spare(g);
        if (!grant)
            return NULL;
        grant->gref = gref;
        if (kept)
            keep(g, grant);
        batch[(*nr_batch)++] = grant;
    }
    grant->uses++;
    return grant;
}

/* Nothing of a failed grants_get() stays, but what could be kept and is mapped. */
static void give_up(struct grants *g, struct grant **out, uint32_t got, struct grant **batch, uint32_t nr_batch)
{
    for (uint32_t i = 0; i < got; i++)
        out[i]->uses--;
    for (uint32_t i = 0; i < nr_batch; i++) {
        if (batch[i]->failed) {
            if (batch[i]->persistent)
                unkeep(g, batch[i]);
            give_spare(g, batch[i]);
        } else if (!batch[i]->persistent) {
            retire(g, batch[i]);
        }
    }
}

bool grants_get(struct grants *g, const grant_ref_t *grefs, uint32_t n, bool writable, struct grant **out)
{
    struct grant *batch[GRANTS_AT_ONCE];
    uint32_t nr_batch = 0, got = 0;

    while (got < n && (out[got] = find_or_add(g, grefs[got], batch, &nr_batch)))
        got++;
    if (map_batch(g, batch, nr_batch, writable) && got == n)
        return true;
    give_up(g, out, got, batch, nr_batch);
    return false;
}

void grants_put(struct grants *g, struct grant **held, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!--held[i]->uses && !held[i]->persistent)
            retire(g, held[i]);
}

void grants_destroy(struct grants *g)
{
    if (!g)
        return;
    while (g->newest) {
        struct grant *grant = g->newest;

        unkeep(g, grant);
        retire(g, grant);
    }
    grants_flush(g);
    for (struct chunk *chunk = g->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        free(chunk);
    }
    free(g->bucket);
    free(g);
}
