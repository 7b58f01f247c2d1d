/*
 * Captures: a copy of what passes a port, or enters a network, as a pcap stream with nanoseconds.
 *
 * Records go through a buffer of a fixed size, written out at the end of a turn. A reader that is slower than the traffic
 * loses whole records, which are counted; it never holds anything up. GSO packets appear as they are, longer than the MTU,
 * and checksums of packets between guests may be unfinished, both as in a capture on Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "switch.h"

#define BUFFER (1u << 20)
#define MAX_SNAPLEN 262144u
#define PCAP_NANOSECONDS 0xa1b23c4du
#define PCAP_ETHERNET 1u

struct pcap_header { uint32_t magic; uint16_t major, minor; uint32_t zone, accuracy, snaplen, link; };
struct pcap_record { uint32_t seconds, nanoseconds, kept, bytes; };

struct capture {
    struct link link; /* of its port or network */
    struct vswitch *sw;
    struct source source;
    struct flush flush;
    int fd, error;
    uint32_t snaplen;
    uint64_t written, lost;
    uint8_t *buffer;
    uint32_t head, used; /* a ring */
};

static void put(struct capture *c, const void *from, uint32_t bytes)
{
    uint32_t at = (c->head + c->used) % BUFFER;
    uint32_t first = bytes < BUFFER - at ? bytes : BUFFER - at;
    memcpy(c->buffer + at, from, first);
    memcpy(c->buffer, (const uint8_t *)from + first, bytes - first);
    c->used += bytes;
}

static void put_record(struct capture *c, const struct iovec *iov, uint32_t n, uint32_t bytes)
{
    struct timespec t;
    uint32_t kept = bytes < c->snaplen ? bytes : c->snaplen;
    if (c->error || c->used + sizeof(struct pcap_record) + kept > BUFFER) {
        c->lost++;
        return;
    }
    clock_gettime(CLOCK_REALTIME, &t);
    struct pcap_record record = {(uint32_t)t.tv_sec, (uint32_t)t.tv_nsec, kept, bytes};
    put(c, &record, sizeof(record));
    for (uint32_t i = 0; i < n && kept; i++) {
        uint32_t part = iov[i].iov_len < kept ? (uint32_t)iov[i].iov_len : kept;
        put(c, iov[i].iov_base, part);
        kept -= part;
    }
    c->written++;
    flush_soon(c->sw, &c->flush);
}

void capture_packet(struct link *captures, struct packet *p, bool tagged)
{
    if (links_empty(captures))
        return;
    struct vswitch *sw = container_of(captures->next, struct capture, link)->sw;
    struct iovec iov[PACKET_MAX_PIECES];
    uint32_t n = packet_iovec(&sw->pool, p, tagged, iov);
    for_each_link(l, captures)
        put_record(container_of(l, struct capture, link), iov, n, p->bytes + (tagged ? VLAN_TAG : 0));
}

static void fail(struct capture *c, int error)
{
    if (!c->error)
        vs_news(c->sw);
    c->error = error;
    c->used = 0;
    source_want(c->sw, &c->source, 0);
}

static void flush(struct flush *f)
{
    struct capture *c = container_of(f, struct capture, flush);
    while (c->used && !c->error) {
        uint32_t n = c->used < BUFFER - c->head ? c->used : BUFFER - c->head;
        ssize_t written = write(c->fd, c->buffer + c->head, n);
        if (written < 0 && (errno == EAGAIN || errno == EINTR)) {
            source_want(c->sw, &c->source, EPOLLOUT);
            return;
        }
        if (written < 0) {
            fail(c, errno);
            return;
        }
        c->head = (c->head + (uint32_t)written) % BUFFER;
        c->used -= (uint32_t)written;
    }
    source_want(c->sw, &c->source, 0);
}

static void ready(struct source *s, uint32_t events)
{
    struct capture *c = container_of(s, struct capture, source);
    if (events & (EPOLLERR | EPOLLHUP)) {
        fail(c, EPIPE);
        epoll_ctl(c->sw->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL); /* a hang-up cannot be masked */
    } else {
        flush(&c->flush);
    }
}

static int check_fd(int fd)
{
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (!S_ISFIFO(st.st_mode) && !S_ISSOCK(st.st_mode))
        return -EINVAL; /* a file can't be waited for, and would hold up the switch */
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) ? -errno : 0;
}

int vs_capture_create(vs_network_t *net, vs_port_t *port, int fd, uint32_t snaplen, vs_capture_t **out)
{
    int rc = check_fd(fd);
    struct capture *c = rc ? NULL : calloc(1, sizeof(*c));
    if (!c)
        return rc ? rc : -ENOMEM;
    *c = (struct capture){.sw = net->sw, .fd = fd, .source = {.ready = ready}};
    c->snaplen = snaplen && snaplen < MAX_SNAPLEN ? snaplen : MAX_SNAPLEN;
    c->buffer = malloc(BUFFER);
    flush_init(&c->flush, flush);
    struct pcap_header header = {PCAP_NANOSECONDS, 2, 4, 0, 0, c->snaplen, PCAP_ETHERNET};
    vs_lock(net->sw);
    rc = c->buffer ? source_add(net->sw, &c->source, fd, 0) : -ENOMEM;
    if (!rc) {
        put(c, &header, sizeof(header));
        flush_soon(net->sw, &c->flush);
        links_append(&c->link, port ? &port->captures : &net->captures);
        vs_wake(net->sw);
    }
    vs_unlock(net->sw);
    if (rc) {
        free(c->buffer);
        free(c);
        return rc;
    }
    *out = c;
    return 0;
}

/* Their port or network goes: they end, and stay their owner's to destroy. */
void captures_end(struct link *captures)
{
    while (!links_empty(captures)) {
        struct capture *c = container_of(captures->next, struct capture, link);
        links_remove(&c->link);
        flush(&c->flush);
        fail(c, ENODEV);
    }
}

int vs_capture_destroy(vs_capture_t *c)
{
    struct vswitch *sw = c->sw;
    vs_lock(sw);
    flush(&c->flush);
    links_remove(&c->link);
    links_remove(&c->flush.link);
    source_remove(sw, &c->source);
    vs_unlock(sw);
    close(c->fd);
    free(c->buffer);
    free(c);
    return 0;
}

int vs_capture_state(vs_capture_t *c, uint64_t *written, uint64_t *lost)
{
    vs_lock(c->sw);
    *written = c->written;
    *lost = c->lost;
    int error = c->error;
    vs_unlock(c->sw);
    return error;
}
