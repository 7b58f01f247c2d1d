/*
 * Text: through the console ring; a Dom0 has none and uses console_io. The first line goes both ways.
 */
#include "small.h"
#include "io/console.h"

static volatile struct xencons_interface *ring; /* NULL: there is none */
static bool first_line = true;

enum { PATIENCE_YIELDS = 5000000 };

void console_init(void)
{
    if (!(start_info->flags & SIF_INITDOMAIN) && start_info->console.domU.mfn)
        ring = mfn_to_virt(start_info->console.domU.mfn);
}

uint64_t console_event(void) { return ring ? 1UL << start_info->console.domU.evtchn : 0; }

/* A ring that stays full for millions of yields is broken, or nobody's: it is given up. */
static void put_all(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes && ring; i++) {
        unsigned yields = 0;
        while (ring->out_prod - __atomic_load_n(&ring->out_cons, __ATOMIC_ACQUIRE) >= sizeof(ring->out)) {
            if (yields++ == PATIENCE_YIELDS) {
                ring = NULL;
                return;
            }
            notify(start_info->console.domU.evtchn);
            hypercall(__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, 0, 0);
        }
        ring->out[MASK_XENCONS_IDX(ring->out_prod, ring->out)] = text[i];
        __atomic_store_n(&ring->out_prod, ring->out_prod + 1, __ATOMIC_RELEASE);
    }
    notify(start_info->console.domU.evtchn);
}

static void write_text(const char *text, size_t bytes)
{
    if (!ring || first_line)
        hypercall(__HYPERVISOR_console_io, CONSOLEIO_write, bytes, addr(text), 0, 0);
    if (ring)
        put_all(text, bytes);
    first_line = false;
}

static char *put_number(char *out, uint64_t value, unsigned base)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n)
        *out++ = digits[--n];
    return out;
}

/* %s, %d (long with l), %u, %x, %c; a newline becomes CR LF. What does not fit is cut off. */
void print(const char *format, ...)
{
    char text[1024], *out = text, *end = text + sizeof(text) - 24;
    va_list args;
    va_start(args, format);
    for (; *format && out < end; format++) {
        if (*format == '\n')
            *out++ = '\r';
        if (*format != '%') {
            *out++ = *format;
            continue;
        }
        bool is_long = *++format == 'l';
        format += is_long;
        if (*format == 's') {
            for (const char *s = va_arg(args, const char *); *s && out < end; s++)
                *out++ = *s;
        } else if (*format == 'c') {
            *out++ = (char)va_arg(args, int);
        } else if (*format == 'd') {
            long value = is_long ? va_arg(args, long) : va_arg(args, int);
            if (value < 0)
                *out++ = '-';
            out = put_number(out, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10);
        } else {
            uint64_t value = is_long ? va_arg(args, uint64_t) : va_arg(args, unsigned);
            out = put_number(out, value, *format == 'x' ? 16 : 10);
        }
    }
    va_end(args);
    write_text(text, (size_t)(out - text));
}

bool poll_line(char *line, size_t bytes, size_t *used)
{
    while (ring && ring->in_cons != __atomic_load_n(&ring->in_prod, __ATOMIC_ACQUIRE)) {
        char c = ring->in[MASK_XENCONS_IDX(ring->in_cons, ring->in)];
        __atomic_store_n(&ring->in_cons, ring->in_cons + 1, __ATOMIC_RELEASE);
        notify(start_info->console.domU.evtchn);
        if (c == '\r' || c == '\n') {
            put_all("\r\n", 2);
            line[*used < bytes ? *used : 0] = 0;
            *used = 0;
            return true;
        }
        if ((c == 8 || c == 127) && *used) {
            put_all("\b \b", 3);
            --*used;
        } else if (c >= ' ' && c < 127) {
            put_all(&c, 1);
            if (*used < bytes)
                line[(*used)++] = c;
        }
    }
    return false;
}
