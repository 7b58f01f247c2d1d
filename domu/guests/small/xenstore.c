/*
 * A client of xenstore on its ring: one request at a time. Watch events that come in between are counted.
 */
#include "small.h"
#include "io/xs_wire.h"

static volatile struct xenstore_domain_interface *ring; /* NULL: there is none */
static bool watch_fired;

void xenstore_init(void)
{
    if (!(start_info->flags & SIF_INITDOMAIN) && start_info->store_mfn)
        ring = mfn_to_virt(start_info->store_mfn);
}

bool xenstore_there(void) { return ring != NULL; }

uint64_t xenstore_event(void) { return ring ? 1UL << start_info->store_evtchn : 0; }

static void send(const void *data, size_t bytes)
{
    const char *from = data;
    while (bytes) {
        uint32_t taken = __atomic_load_n(&ring->req_cons, __ATOMIC_ACQUIRE);
        uint32_t free = sizeof(ring->req) - (ring->req_prod - taken);
        if (!free) {
            wait_events(xenstore_event());
            continue;
        }
        for (; free && bytes; free--, bytes--) {
            ring->req[MASK_XENSTORE_IDX(ring->req_prod)] = *from++;
            __atomic_store_n(&ring->req_prod, ring->req_prod + 1, __ATOMIC_RELEASE);
        }
        notify(start_info->store_evtchn);
    }
}

static bool answer_there(void)
{
    return ring->rsp_cons != __atomic_load_n(&ring->rsp_prod, __ATOMIC_ACQUIRE);
}

/* `to` may be NULL to skip. */
static void receive(char *to, size_t bytes)
{
    while (bytes) {
        if (!answer_there()) {
            wait_events(xenstore_event());
            continue;
        }
        for (; bytes && answer_there(); bytes--) {
            char c = ring->rsp[MASK_XENSTORE_IDX(ring->rsp_cons)];
            if (to)
                *to++ = c;
            __atomic_store_n(&ring->rsp_cons, ring->rsp_cons + 1, __ATOMIC_RELEASE);
        }
        notify(start_info->store_evtchn);
    }
}

/* Takes one message; its type. Of the body, `bytes` - 1 at most are kept, and a NUL. */
static uint32_t receive_message(char *body, size_t bytes)
{
    struct xsd_sockmsg head;
    receive((char *)&head, sizeof(head));
    size_t kept = head.len < bytes - 1 ? head.len : bytes - 1;
    receive(body, kept);
    receive(NULL, head.len - kept);
    body[kept] = 0;
    if (head.type == XS_WATCH_EVENT)
        watch_fired = true;
    return head.type;
}

/* Sends `path` with its NUL and `more_bytes` of `more`; whether the answer, put into `reply`, is no error. */
static bool request(uint32_t type, const char *path, const char *more, size_t more_bytes, char *reply,
                    size_t bytes)
{
    if (!ring)
        return false;
    size_t path_bytes = strlen(path) + 1;
    struct xsd_sockmsg head = {.type = type, .len = (uint32_t)(path_bytes + more_bytes)};
    send(&head, sizeof(head));
    send(path, path_bytes);
    send(more, more_bytes);
    uint32_t answer;
    do
        answer = receive_message(reply, bytes);
    while (answer == XS_WATCH_EVENT);
    return answer == type;
}

bool xenstore_read(const char *path, char *value, size_t bytes)
{
    return request(XS_READ, path, "", 0, value, bytes);
}

bool xenstore_write(const char *path, const char *value)
{
    char reply[16];
    return request(XS_WRITE, path, value, strlen(value), reply, sizeof(reply));
}

bool xenstore_watch(const char *path)
{
    char reply[16];
    return request(XS_WATCH, path, "small", sizeof("small"), reply, sizeof(reply));
}

bool xenstore_fired(void)
{
    char body[256];
    while (ring && answer_there())
        receive_message(body, sizeof(body));
    bool fired = watch_fired;
    watch_fired = false;
    return fired;
}
