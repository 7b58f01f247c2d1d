/*
 * The hypervisor console: a ring of text that Dom0 reads (xm dmesg). The machine's own lines begin with "(XEN) ", those
 * guests write through console_io with "(dN) ". Indices run on for ever; the ring holds the last `size` bytes.
 *
 * A guest's text arrives by lines, without control characters, and at most CONSOLE_RATE bytes a second per domain, so
 * that no guest can wash away what others said. The ring's lock is a leaf and is never held for more than one line.
 */
#include <stdarg.h>

#include "event.h"
#include "hypercall.h"

#define CONSOLE_RATE (128u << 10) /* bytes a second, and the most at once: a kernel's early boot log fits */

struct console_ring {
    lock_t lock;
    char *text;
    uint32_t size, start, end; /* start: first byte that was not cleared */
    _Atomic bool news;
};

int console_init(struct hv *hv)
{
    struct console_ring *c = calloc(1, sizeof(*c));
    if (!c)
        return -XEN_ENOMEM;
    hv->console = c;
    lock_init(&c->lock);
    c->size = hv->config.console_bytes ? hv->config.console_bytes : 64u << 10;
    c->text = calloc(1, c->size);
    return c->text ? 0 : -XEN_ENOMEM;
}

void console_destroy(struct hv *hv)
{
    if (hv->console)
        free(hv->console->text);
    free(hv->console);
    hv->console = NULL;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void append_locked(struct console_ring *c, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        c->text[c->end++ & (c->size - 1)] = text[i];
}

/* Dom0 hears about it only if it asked to: VIRQ_CON_RING needs a lock that writers may not take. */
static void notify(struct hv *hv)
{
    const struct domain *dom0 = hv->dom0;
    if (dom0 && dom0->vcpu[0] && dom0->vcpu[0]->virq_port[VIRQ_CON_RING] &&
        !atomic_exchange(&hv->console->news, true))
        hv_post_work(hv);
}

static void append_line(struct hv *hv, const char *prefix, const char *text, size_t bytes)
{
    struct console_ring *c = hv->console;
    lock(&c->lock);
    append_locked(c, prefix, strlen(prefix));
    append_locked(c, text, bytes);
    append_locked(c, "\n", 1);
    unlock(&c->lock);
    notify(hv);
}

void console_work(struct hv *hv)
{
    if (atomic_exchange(&hv->console->news, false))
        send_global_virq(hv, VIRQ_CON_RING);
}

void hv_printk(struct hv *hv, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (n > 0)
        append_line(hv, "(XEN) ", text, n < (int)sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

void hv_console_write(hv_t *hv, const char *text, size_t bytes)
{
    while (bytes) {
        const char *end = memchr(text, '\n', bytes);
        size_t n = end ? (size_t)(end - text) : bytes;
        append_line(hv, "(XEN) ", text, n);
        text += n + (end != NULL);
        bytes -= n + (end != NULL);
    }
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

int64_t console_read(struct hv *hv, char *out, uint32_t *count, bool clear, bool incremental, uint32_t *index)
{
    struct console_ring *c = hv->console;
    lock(&c->lock);
    uint32_t from = incremental ? *index : c->start, n = 0;
    uint32_t held = c->end < c->size ? c->end : c->size; /* `end` wraps after 4 GiB of text */
    if (c->end - from > held)
        from = c->end - held;
    while (n < *count && from != c->end)
        out[n++] = c->text[from++ & (c->size - 1)];
    if (clear)
        c->start = from;
    unlock(&c->lock);
    *count = n;
    *index = from;
    return 0;
}

/* ---- what guests write ------------------------------------------------------------------------------------------ */

static void flush_line(struct domain *d)
{
    struct domain_console *c = &d->console;
    char prefix[16];
    snprintf(prefix, sizeof(prefix), "(d%u) ", d->id);
    if (c->used <= c->budget) {
        c->budget -= c->used;
        append_line(d->hv, prefix, c->line, c->used);
    }
    c->used = 0;
}

static void refill_budget(struct domain *d)
{
    struct domain_console *c = &d->console;
    uint64_t now = hv_now(d->hv), passed = now - c->refilled_ns;
    if (!c->refilled_ns || passed >= NSEC_PER_SEC)
        c->budget = CONSOLE_RATE;
    else
        c->budget += (uint32_t)(passed * CONSOLE_RATE / NSEC_PER_SEC);
    if (c->budget > CONSOLE_RATE)
        c->budget = CONSOLE_RATE;
    c->refilled_ns = now;
}

static void put_char(struct domain *d, char ch)
{
    struct domain_console *c = &d->console;
    if (ch == '\n') {
        flush_line(d);
    } else if (ch == '\t' || (ch >= ' ' && ch != 0x7f)) {
        c->line[c->used++] = ch;
        if (c->used == sizeof(c->line))
            flush_line(d);
    }
}

static int64_t console_write(struct vcpu *curr, struct domain *d, uint64_t from, uint64_t count)
{
    char piece[128];
    uint64_t done = 0;
    while (done < count) {
        size_t n = count - done < sizeof(piece) ? count - done : sizeof(piece);
        if (copy_from_guest(piece, from + done, n))
            return -XEN_EFAULT;
        domain_lock(d, curr);
        refill_budget(d);
        for (size_t i = 0; i < n; i++)
            put_char(d, piece[i]);
        domain_unlock(d, curr);
        done += n;
        if (done < count && hypercall_preempt_check())
            return hypercall_continue(__HYPERVISOR_console_io, 3, (uint64_t)CONSOLEIO_write, count - done, from + done);
    }
    return 0;
}

int64_t do_console_io(struct vcpu *curr, uint64_t cmd, uint64_t count, uint64_t arg)
{
    struct domain *d = current_caller.domain;
    if ((uint32_t)count > INT32_MAX)
        return -XEN_EINVAL;
    switch ((uint32_t)cmd) {
    case CONSOLEIO_write:
        return console_write(curr, d, arg, (uint32_t)count);
    case CONSOLEIO_read: /* there is no keyboard */
        return d->is_privileged ? 0 : -XEN_EPERM;
    default:
        return -XEN_ENOSYS;
    }
}
