/*
 * The switch from inside: what files of this folder share, and what a maker of ports of another kind needs.
 *
 * One lock for everything: the loop's thread holds it for a turn and gives it up while it waits for descriptors. Whoever
 * else wants it says so by `waiting`, and the loop lets it in before the next turn: a busy loop starves nobody.
 *
 * A port's kind is its ops. output() gets a packet that the port can take as it is (see vs_caps) and takes a reference if
 * it keeps it. A kind's own work, which is not answering a descriptor, happens in the switch's hook, once a turn.
 */
#ifndef UMXEN_VSWITCH_SWITCH_H
#define UMXEN_VSWITCH_SWITCH_H
#include <pthread.h>
#include <stdatomic.h>

#include "packet.h"
#include "vswitch.h"

#define NSEC_PER_SEC 1000000000ull
#define NSEC_PER_USEC 1000ull
#define NEVER UINT64_MAX
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))

/* ---- lists ------------------------------------------------------------------------------------------------------ */

struct link { struct link *next, *prev; };

static inline void links_init(struct link *l) { l->next = l->prev = l; }
static inline bool links_empty(const struct link *l) { return l->next == l; }
static inline void links_append(struct link *l, struct link *head)
{
    l->next = head;
    l->prev = head->prev;
    head->prev->next = l;
    head->prev = l;
}
static inline void links_remove(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    links_init(l);
}
#define for_each_link(pos, head) for (struct link *pos = (head)->next; pos != (head); pos = pos->next)

/* ---- credit: so many bytes or packets in so long, as Xen's netback counts ---------------------------------------- */

struct credit {
    uint64_t amount, interval_ns; /* interval 0: no limit */
    uint64_t left, window_ends_ns;
};

void credit_set(struct credit *c, uint64_t amount, uint64_t interval_ns);
/* Takes `n`. False: wait until c->window_ends_ns. More than a whole window's amount passes at a window's start. */
bool credit_take(struct credit *c, uint64_t n, uint64_t now_ns);

/* ---- descriptors ------------------------------------------------------------------------------------------------ */

/* Something the loop waits for: a descriptor, a time, or both. */
struct source {
    struct link link;
    void (*ready)(struct source *, uint32_t events);
    void (*wake)(struct source *); /* at wake_ns, once; NEVER: not at all */
    uint64_t wake_ns;
    int fd;
    uint32_t events; /* EPOLL* asked for */
    uint32_t slot;
};

/* How an event finds its source: one read before a source was removed finds another generation. */
struct slot {
    struct source *source;
    uint32_t generation;
};

int source_add(struct vswitch *sw, struct source *s, int fd, uint32_t events);
void source_want(struct vswitch *sw, struct source *s, uint32_t events);
void source_remove(struct vswitch *sw, struct source *s);

/* Something with output to push out at a turn's end: flush_soon() at any time, flush() once. */
struct flush {
    struct link link;
    void (*flush)(struct flush *);
};

static inline void flush_init(struct flush *f, void (*fn)(struct flush *))
{
    links_init(&f->link);
    f->flush = fn;
}
void flush_soon(struct vswitch *sw, struct flush *f);

/* ---- networks, ports -------------------------------------------------------------------------------------------- */

#define FDB_WAYS 4u
#define FDB_SETS 1024u
#define FDB_PER_PORT 1024u /* addresses learned of one port: one that invents them fills no table */

struct fdb_entry {
    struct port *port; /* NULL: free */
    uint64_t seen_ns;
    uint16_t vlan;
    uint8_t mac[6];
};

struct network {
    struct vswitch *sw;
    struct link link, ports, captures;
    uint64_t ageing_ns;
    uint32_t storm_pps;
    struct fdb_entry fdb[FDB_SETS][FDB_WAYS];
};

struct port;

struct port_ops {
    void (*output)(struct port *, struct packet *);
    /* NULL: all. For multicasts that are no broadcasts. */
    bool (*wants_multicast)(struct port *, const uint8_t *mac);
    void (*destroy)(struct port *);
};

struct port {
    struct network *net;
    struct link link, captures;
    const struct port_ops *ops;
    uint32_t caps; /* VS_* */
    int error;
    bool carrier; /* frames are sent to it */
    uint32_t nr_learned;
    struct vs_port_settings set;
    struct credit rate, storm;
    struct vs_counters count;
};

/* What a maker of ports adds to each turn. */
struct hook {
    /* Returns whether there is more to do at once. *wake_ns: when it wants to be called next at the latest. */
    bool (*turn)(struct hook *, uint64_t *wake_ns);
};

struct vswitch {
    struct pool pool;
    pthread_mutex_t mutex;
    pthread_cond_t let_in;
    atomic_uint waiting;
    pthread_t thread;
    bool running;
    atomic_bool stopping;
    int epoll_fd, wake_fd, news_fd;
    uint64_t now_ns, hash_key, turns, naps;
    struct link networks, sources, flushes;
    struct slot *slots;
    uint32_t nr_slots;
    struct hook *hook;
};

void vs_lock(struct vswitch *sw);
void vs_unlock(struct vswitch *sw);
void vs_wake(struct vswitch *sw); /* the loop makes a turn soon */
void vs_news(struct vswitch *sw);
uint64_t vs_clock(void);

/* A frame of `p`'s owner enters the switch by `port`. The packet goes over to the switch. */
void switch_input(struct port *port, struct packet *p);
/* A packet leaves by `port`: adapted to what it takes, counted, captured. The caller keeps its reference. */
void switch_output(struct port *port, struct packet *p);
/* Whether a frame of the packet's VLAN carries its tag there. */
bool port_sends_tagged(const struct port *port, const struct packet *p);
int port_init(struct port *port, struct network *net, const struct port_ops *ops, uint32_t caps);
void port_detach(struct port *port); /* forgets its addresses, ends its captures */
void port_fail(struct port *port, int error);

/*
 * How many pages a queue may hold at most: its own limit, or a part of what is free. So queues nobody empties cannot take
 * all memory, however many there are.
 */
static inline bool queue_may_grow(const struct pool *pool, uint32_t held, uint32_t limit, uint32_t more)
{
    return held + more <= limit && held + more <= pool->nr_free / 4 + 8;
}

/* ---- captures, flushing ----------------------------------------------------------------------------------------- */

void capture_packet(struct link *captures, struct packet *p, bool tagged);
void captures_end(struct link *captures);
#endif
