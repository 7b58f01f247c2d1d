/*
 * Ports on file descriptors.
 *
 * In: a burst of frames a turn. A datagram is read into pages directly: into one, and the rest of a long one by way of a
 * buffer, until there is a long one; then into as many as the longest takes, until a burst has none. A stream is read into a buffer and cut at its length fields; a length over
 * VS_MAX_FRAME or under an Ethernet header can only mean that the peer is out of step, and ends the port.
 *
 * Out: a bounded queue, flushed once a turn with as few system calls as there may be. What does not fit is dropped at the
 * end of the queue, and counted. A port whose rate is used up is not read until its window ends, so a stream's peer waits
 * and a datagram's loses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "offload.h"
#include "switch.h"

#define BURST 64
#define QUEUE 512u
#define QUEUE_PAGES 1024u
#define LENGTH_BYTES 4u
#define STREAM_BUFFER (256u << 10)
#define LONG_PAGES 17u

/* In front of each datagram of a VS_VNET port, as Linux' TAP and virtio have it. */
struct vnet_header { uint8_t flags, gso; uint16_t header_bytes, gso_size, checksum_start, checksum_offset; };
enum { VNET_NEEDS_CHECKSUM = 1, VNET_CHECKSUM_VALID = 2, VNET_GSO_TCP4 = 1, VNET_GSO_TCP6 = 4, VNET_GSO_ECN = 0x80 };

struct fd_port {
    struct port port;
    struct source in, out; /* out: the sending descriptor, where it is another one */
    struct flush flush;
    uint32_t kind;
    int fd, send_fd;
    bool is_socket, vnet, full; /* full: the descriptor takes no more for now */
    bool long_frames, saw_long;
    struct sockaddr_storage self; /* of send_fd: what comes from there is our own */
    struct packet *queue[QUEUE];
    uint32_t head, tail, pages, sent; /* sent: bytes of the first packet that are out already; streams only */
    uint8_t *buffer;
    uint32_t buffered, parsed;
};

static struct fd_port *fd_port_of(struct port *port) { return container_of(port, struct fd_port, port); }
static struct vswitch *switch_of(const struct fd_port *fp) { return fp->port.net->sw; }
static bool is_transient(int error) { return error == EAGAIN || error == EINTR || error == ENOBUFS || error == ENOMEM; }
/* A datagram socket goes on after these: nobody listens there just now. */
static bool is_peer_away(int error) { return error == ECONNREFUSED || error == ENOTCONN || error == EHOSTUNREACH || error == ENETUNREACH || error == EPERM; }

/* ---- out -------------------------------------------------------------------------------------------------------- */

static void pop(struct fd_port *fp)
{
    struct packet *p = fp->queue[fp->head++ % QUEUE];
    fp->pages -= p->nr_spans;
    fp->sent = 0;
    packet_put(&switch_of(fp)->pool, p);
}

static void output(struct port *port, struct packet *p)
{
    struct fd_port *fp = fd_port_of(port);
    struct vswitch *sw = switch_of(fp);
    if (fp->tail - fp->head == QUEUE || !queue_may_grow(&sw->pool, fp->pages, QUEUE_PAGES, p->nr_spans)) {
        port->count.tx_dropped_full++;
        return;
    }
    packet_get(p);
    fp->queue[fp->tail++ % QUEUE] = p;
    fp->pages += p->nr_spans;
    if (!fp->full)
        flush_soon(sw, &fp->flush);
}

static void want_output(struct fd_port *fp, bool wanted)
{
    struct source *s = fp->send_fd == fp->fd ? &fp->in : &fp->out;
    fp->full = wanted;
    source_want(switch_of(fp), s, wanted ? s->events | EPOLLOUT : s->events & ~(uint32_t)EPOLLOUT);
}

/* What is to be sent of one packet of a stream: its length, then its bytes, without the `skip` that are out. */
static uint32_t stream_pieces(struct fd_port *fp, struct packet *p, uint32_t *length, uint32_t skip, struct iovec *out)
{
    struct iovec piece[PACKET_MAX_PIECES + 1];
    bool tagged = port_sends_tagged(&fp->port, p);
    *length = htonl(p->bytes + (tagged ? VLAN_TAG : 0));
    piece[0] = (struct iovec){length, LENGTH_BYTES};
    uint32_t n = 1 + packet_iovec(&switch_of(fp)->pool, p, tagged, piece + 1), kept = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t gone = skip < piece[i].iov_len ? skip : piece[i].iov_len;
        skip -= (uint32_t)gone;
        if (gone < piece[i].iov_len)
            out[kept++] = (struct iovec){(uint8_t *)piece[i].iov_base + gone, piece[i].iov_len - gone};
    }
    return kept;
}

static uint32_t stream_bytes(const struct fd_port *fp, const struct packet *p)
{
    return LENGTH_BYTES + p->bytes + (port_sends_tagged(&fp->port, p) ? VLAN_TAG : 0);
}

static void stream_sent(struct fd_port *fp, uint32_t bytes)
{
    while (bytes) {
        uint32_t left = stream_bytes(fp, fp->queue[fp->head % QUEUE]) - fp->sent;
        if (bytes < left) {
            fp->sent += bytes;
            return;
        }
        bytes -= left;
        pop(fp);
    }
}

/* Returns the errno of a failure, 0 when something went out. */
static int stream_flush(struct fd_port *fp)
{
    struct iovec iov[BURST * 2 + PACKET_MAX_PIECES + 1];
    uint32_t length[BURST], n = 0, k = 0;
    for (uint32_t i = fp->head; i != fp->tail && k < BURST && n < BURST * 2; i++, k++)
        n += stream_pieces(fp, fp->queue[i % QUEUE], &length[k], i == fp->head ? fp->sent : 0, &iov[n]);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t sent = sendmsg(fp->send_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0)
        return errno;
    stream_sent(fp, (uint32_t)sent);
    return 0;
}

/* What the receiver has to do to the frame. */
static struct vnet_header describe(const struct fd_port *fp, const struct packet *p, bool tagged)
{
    struct vnet_header v = {.flags = p->checksum == CHECKSUM_VERIFIED ? VNET_CHECKSUM_VALID : 0};
    struct headers h;
    if (p->checksum != CHECKSUM_PARTIAL || !parse_headers(&switch_of(fp)->pool, p, &h))
        return v;
    uint16_t tag = tagged ? VLAN_TAG : 0;
    v.flags = VNET_NEEDS_CHECKSUM;
    v.checksum_start = (uint16_t)(h.transport + tag);
    v.checksum_offset = (uint16_t)(h.checksum - h.transport);
    if (p->gso) {
        v.gso = p->gso == GSO_TCP4 ? VNET_GSO_TCP4 : VNET_GSO_TCP6;
        v.gso_size = p->gso_size;
        v.header_bytes = (uint16_t)(h.payload + tag);
    }
    return v;
}

static int datagram_flush(struct fd_port *fp)
{
    struct iovec iov[PACKET_MAX_PIECES + 1];
    struct packet *p = fp->queue[fp->head % QUEUE];
    bool tagged = port_sends_tagged(&fp->port, p);
    struct vnet_header v;
    uint32_t n = 0;
    if (fp->vnet) {
        v = describe(fp, p, tagged);
        iov[n++] = (struct iovec){&v, sizeof(v)};
    }
    n += packet_iovec(&switch_of(fp)->pool, p, tagged, &iov[n]);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t sent = fp->is_socket ? sendmsg(fp->send_fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
                                 : writev(fp->send_fd, iov, (int)n);
    int error = sent < 0 ? errno : 0;
    if (error == EMSGSIZE || error == EINVAL || is_peer_away(error)) {
        fp->port.count.tx_dropped_error++;
        error = 0;
    }
    if (!error)
        pop(fp);
    return error;
}

static void flush(struct flush *f)
{
    struct fd_port *fp = container_of(f, struct fd_port, flush);
    while (fp->head != fp->tail && !fp->port.error) {
        int error = fp->kind == VS_STREAM ? stream_flush(fp) : datagram_flush(fp);
        if (is_transient(error)) {
            want_output(fp, true);
            return;
        }
        if (error)
            port_fail(&fp->port, error);
    }
    if (fp->full)
        want_output(fp, false);
}

/* ---- in --------------------------------------------------------------------------------------------------------- */

static void stop_reading(struct fd_port *fp)
{
    source_want(switch_of(fp), &fp->in, fp->in.events & ~(uint32_t)EPOLLIN);
    fp->in.wake_ns = fp->port.rate.window_ends_ns;
}

static void enter(struct fd_port *fp, struct packet *p)
{
    if (!credit_take(&fp->port.rate, p->bytes, switch_of(fp)->now_ns))
        fp->port.rate.left = 0; /* this one was read already; the next waits */
    if (fp->port.rate.interval_ns && !fp->port.rate.left)
        stop_reading(fp);
    switch_input(&fp->port, p);
}

static bool reads(const struct fd_port *fp) { return (fp->in.events & EPOLLIN) && !fp->port.error; }

static void enter_bytes(struct fd_port *fp, const uint8_t *frame, uint32_t bytes)
{
    struct pool *pool = &switch_of(fp)->pool;
    struct packet *p = packet_alloc(pool);
    if (p && packet_append(pool, p, frame, bytes)) {
        enter(fp, p);
        return;
    }
    if (p)
        packet_put(pool, p);
    fp->port.count.rx_dropped_no_memory++;
}

/* Frames in the buffer, one after the other. False: out of step. */
static bool cut_stream(struct fd_port *fp)
{
    while (fp->buffered - fp->parsed >= LENGTH_BYTES && reads(fp)) {
        uint32_t length;
        memcpy(&length, fp->buffer + fp->parsed, LENGTH_BYTES);
        length = ntohl(length);
        if (length > VS_MAX_FRAME || length < ETH_HEADER)
            return false;
        if (fp->buffered - fp->parsed < LENGTH_BYTES + length)
            break;
        enter_bytes(fp, fp->buffer + fp->parsed + LENGTH_BYTES, length);
        fp->parsed += LENGTH_BYTES + length;
    }
    memmove(fp->buffer, fp->buffer + fp->parsed, fp->buffered - fp->parsed);
    fp->buffered -= fp->parsed;
    fp->parsed = 0;
    return true;
}

static void stream_read(struct fd_port *fp)
{
    ssize_t n = recv(fp->fd, fp->buffer + fp->buffered, STREAM_BUFFER - fp->buffered, MSG_DONTWAIT);
    if (n == 0 && fp->buffered < STREAM_BUFFER)
        port_fail(&fp->port, EPIPE);
    else if (n < 0 && !is_transient(errno))
        port_fail(&fp->port, errno);
    if (n <= 0)
        return;
    fp->buffered += (uint32_t)n;
    if (!cut_stream(fp))
        port_fail(&fp->port, EBADMSG);
}

static bool is_own(const struct fd_port *fp, const struct sockaddr_storage *from)
{
    const struct sockaddr_in *a = (const void *)from, *b = (const void *)&fp->self;
    return fp->kind == VS_MULTICAST && a->sin_family == AF_INET && a->sin_port == b->sin_port &&
           (b->sin_addr.s_addr == INADDR_ANY || a->sin_addr.s_addr == b->sin_addr.s_addr);
}

static ssize_t read_message(struct fd_port *fp, struct iovec *iov, uint32_t n, struct sockaddr_storage *from)
{
    if (!fp->is_socket)
        return readv(fp->fd, iov, (int)n);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    if (fp->kind == VS_MULTICAST) {
        message.msg_name = from;
        message.msg_namelen = sizeof(*from);
    }
    ssize_t bytes = recvmsg(fp->fd, &message, MSG_DONTWAIT);
    return bytes >= 0 && (message.msg_flags & MSG_TRUNC) ? (ssize_t)STREAM_BUFFER : bytes;
}

/* Where a frame is read to: pages of the packet, then the buffer. Returns how many pieces. */
static uint32_t prepare_read(struct fd_port *fp, struct packet *p, struct iovec *iov)
{
    struct pool *pool = &switch_of(fp)->pool;
    uint32_t n = 0, pages = fp->long_frames ? LONG_PAGES : 1, at;
    for (uint32_t i = 0; i < pages; i++) {
        uint32_t room = packet_extend(pool, p, PACKET_PAGE, false, &at);
        if (!room)
            break;
        iov[n++] = (struct iovec){pool_at(pool, at), room};
    }
    if (n)
        iov[n++] = (struct iovec){fp->buffer, STREAM_BUFFER};
    return n;
}

/* A datagram socket that was hung up, as opposed to an empty datagram. */
static void check_hang_up(struct fd_port *fp)
{
    int type;
    socklen_t size = sizeof(type);
    if (fp->is_socket && !getsockopt(fp->fd, SOL_SOCKET, SO_TYPE, &type, &size) && type == SOCK_SEQPACKET)
        port_fail(&fp->port, EPIPE);
}

/* What `bytes` of a frame have come: the packet's length put right. False: it can't be one. */
static bool accept_bytes(struct fd_port *fp, struct packet *p, const struct vnet_header *v, uint32_t bytes)
{
    struct pool *pool = &switch_of(fp)->pool;
    uint32_t direct = p->bytes;
    if (bytes < ETH_HEADER || bytes > VS_MAX_FRAME) {
        fp->port.count.rx_dropped_malformed++;
        return false;
    }
    packet_trim(pool, p, bytes < direct ? bytes : direct);
    if (bytes > direct && !packet_append(pool, p, fp->buffer, bytes - direct)) {
        fp->port.count.rx_dropped_no_memory++;
        return false;
    }
    fp->saw_long |= bytes > PACKET_PAGE;
    if (!fp->vnet)
        return true;
    uint8_t gso = v->gso & (uint8_t)~VNET_GSO_ECN;
    p->checksum = v->flags & VNET_NEEDS_CHECKSUM  ? CHECKSUM_PARTIAL
                  : v->flags & VNET_CHECKSUM_VALID ? CHECKSUM_VERIFIED
                                                   : CHECKSUM_COMPLETE;
    p->gso = gso == VNET_GSO_TCP4 ? GSO_TCP4 : gso == VNET_GSO_TCP6 ? GSO_TCP6 : GSO_NONE;
    p->gso_size = v->gso_size;
    fp->port.count.rx_dropped_malformed += gso && !p->gso;
    return !gso || p->gso;
}

/* One frame. False: there is none, or it could not be read. */
static bool datagram_read(struct fd_port *fp)
{
    struct pool *pool = &switch_of(fp)->pool;
    struct sockaddr_storage from = {0};
    struct vnet_header v = {0};
    struct iovec iov[LONG_PAGES + 2] = {{&v, sizeof(v)}};
    struct packet *p = packet_alloc(pool);
    uint32_t skip = fp->vnet ? 1 : 0, n = p ? prepare_read(fp, p, iov + skip) : 0;
    bool no_room = !n;
    if (no_room)
        iov[skip + n++] = (struct iovec){fp->buffer, STREAM_BUFFER}; /* read and lost */
    ssize_t got = read_message(fp, iov, n + skip, &from);
    if (got < 0 && !is_transient(errno) && !is_peer_away(errno))
        port_fail(&fp->port, errno);
    if (got == 0)
        check_hang_up(fp);
    uint32_t bytes = got > 0 && got >= (ssize_t)(skip * sizeof(v)) ? (uint32_t)(got - (ssize_t)(skip * sizeof(v))) : 0;
    fp->port.count.rx_dropped_no_memory += no_room && got > 0;
    if (got > 0 && !no_room && !is_own(fp, &from) && accept_bytes(fp, p, &v, bytes))
        enter(fp, p);
    else if (p)
        packet_put(pool, p);
    return got > 0;
}

static void read_burst(struct fd_port *fp)
{
    fp->saw_long = false;
    int i = 0;
    while (i < BURST && reads(fp) && datagram_read(fp))
        i++;
    fp->long_frames = fp->saw_long;
}

static void ready(struct source *s, uint32_t events)
{
    struct fd_port *fp = container_of(s, struct fd_port, in);
    if (fp->port.error) {
        epoll_ctl(switch_of(fp)->epoll_fd, EPOLL_CTL_DEL, fp->fd, NULL); /* a hang-up cannot be masked */
        return;
    }
    if (events & EPOLLOUT) {
        fp->full = false;
        flush_soon(switch_of(fp), &fp->flush);
    }
    if (fp->kind == VS_STREAM) {
        if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            stream_read(fp);
        return;
    }
    read_burst(fp);
    if ((events & (EPOLLERR | EPOLLHUP)) && !fp->is_socket)
        port_fail(&fp->port, EIO);
}

static void send_ready(struct source *s, uint32_t events)
{
    struct fd_port *fp = container_of(s, struct fd_port, out);
    (void)events;
    fp->full = false;
    flush_soon(switch_of(fp), &fp->flush);
}

/* The rate's window has ended. */
static void wake(struct source *s)
{
    struct fd_port *fp = container_of(s, struct fd_port, in);
    credit_take(&fp->port.rate, 0, switch_of(fp)->now_ns);
    source_want(switch_of(fp), s, s->events | EPOLLIN);
    if (fp->kind == VS_STREAM && !cut_stream(fp))
        port_fail(&fp->port, EBADMSG);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void destroy(struct port *port)
{
    struct fd_port *fp = fd_port_of(port);
    struct vswitch *sw = switch_of(fp);
    source_remove(sw, &fp->in);
    if (fp->send_fd != fp->fd)
        source_remove(sw, &fp->out);
    links_remove(&fp->flush.link);
    while (fp->head != fp->tail)
        pop(fp);
    close(fp->fd);
    if (fp->send_fd != fp->fd)
        close(fp->send_fd);
    free(fp->buffer);
    free(fp);
}

static const struct port_ops fd_port_ops = {.output = output, .destroy = destroy};

static int watch(struct fd_port *fp)
{
    struct vswitch *sw = switch_of(fp);
    int rc = source_add(sw, &fp->in, fp->fd, EPOLLIN);
    if (rc || fp->send_fd == fp->fd)
        return rc;
    rc = source_add(sw, &fp->out, fp->send_fd, 0);
    if (rc)
        source_remove(sw, &fp->in);
    return rc;
}

static int prepare(struct fd_port *fp)
{
    int type;
    socklen_t size = sizeof(type), address = sizeof(fp->self);
    fp->is_socket = !getsockopt(fp->fd, SOL_SOCKET, SO_TYPE, &type, &size);
    if (fcntl(fp->fd, F_SETFL, fcntl(fp->fd, F_GETFL) | O_NONBLOCK))
        return -errno;
    if (fp->kind == VS_STREAM && (!fp->is_socket || type != SOCK_STREAM))
        return -EPROTOTYPE;
    if (fp->kind == VS_MULTICAST && getsockname(fp->send_fd, (struct sockaddr *)&fp->self, &address))
        return -errno;
    return 0;
}

int vs_port_create(vs_network_t *net, uint32_t kind, int fd, int send_fd, uint32_t caps, vs_port_t **out)
{
    if (kind < VS_STREAM || kind > VS_MULTICAST || fd < 0 || ((caps & VS_VNET) && kind != VS_DATAGRAM))
        return -EINVAL;
    struct fd_port *fp = calloc(1, sizeof(*fp));
    if (!fp)
        return -ENOMEM;
    fp->buffer = malloc(STREAM_BUFFER);
    fp->kind = kind;
    fp->vnet = caps & VS_VNET;
    fp->fd = fd;
    fp->send_fd = send_fd < 0 ? fd : send_fd;
    fp->in = (struct source){.ready = ready, .wake = wake};
    fp->out = (struct source){.ready = send_ready};
    flush_init(&fp->flush, flush);
    vs_lock(net->sw);
    port_init(&fp->port, net, &fd_port_ops, caps);
    int rc = fp->buffer ? prepare(fp) : -ENOMEM;
    if (!rc)
        rc = watch(fp);
    if (rc) {
        port_detach(&fp->port);
        free(fp->buffer);
        free(fp);
    }
    vs_unlock(net->sw);
    if (!rc)
        *out = &fp->port;
    return rc;
}
