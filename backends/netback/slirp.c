/*
 * A loop between three parties: the switch (frames_fd), the responder in Python (responder_fd) and libslirp, which makes
 * sockets of the host out of what guests send. It runs in a process of its own, which has no guest's memory.
 *
 * Each message of frames_fd is a frame behind a struct virtio_net_hdr. To the guests, segments of one TCP connection that
 * follow each other are joined before they are sent: libslirp cuts by the guest's MSS, and 40 messages, packets and
 * interrupts become one. What was joined is flushed when the connection's next segment doesn't fit and at each turn's end.
 *
 * libslirp's own DHCP server is off; frames to a DHCP server's port or to the name server's go to the responder, and
 * without libslirp everything does. TCP packets longer than the MTU come in one piece, checksums complete: libslirp takes
 * them, and that is worth a factor of ten.
 *
 * The library is found at run time, so its structures are declared here as its ABI has them (SlirpConfig version 4, of
 * libslirp 4.5 and later). One lock: libslirp is not for two threads; the loop gives it up while it waits.
 */
#define _GNU_SOURCE
#include "slirp.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_FRAME 65535
#define FRAMES_AT_ONCE 64
#define SEND_PATIENCE_MS 10
#define CONFIG_VERSION 4
#define MTU_MAX 65521
#define ETHERNET 14u
#define IP_HEADER 20u

enum { POLL_IN = 1, POLL_OUT = 2, POLL_PRI = 4, POLL_ERR = 8, POLL_HUP = 16 };

struct slirp_config {
    uint32_t version;
    int restricted;
    bool in_enabled;
    struct in_addr network, netmask, host;
    bool in6_enabled;
    struct in6_addr prefix6;
    uint8_t prefix6_len;
    struct in6_addr host6;
    const char *hostname, *tftp_server, *tftp_path, *bootfile;
    struct in_addr dhcp_start, nameserver;
    struct in6_addr nameserver6;
    const char **dns_search;
    const char *domain;
    size_t mtu, mru;
    bool disable_host_loopback, enable_emu;
    struct sockaddr_in *outbound;
    struct sockaddr_in6 *outbound6;
    bool disable_dns, disable_dhcp;
};

typedef void (*timer_fn)(void *opaque);

struct slirp_callbacks {
    ssize_t (*send_packet)(const void *frame, size_t bytes, void *opaque);
    void (*guest_error)(const char *text, void *opaque);
    int64_t (*clock_get_ns)(void *opaque);
    void *(*timer_new)(timer_fn fn, void *fn_opaque, void *opaque);
    void (*timer_free)(void *timer, void *opaque);
    void (*timer_mod)(void *timer, int64_t expire_ms, void *opaque);
    void (*register_poll_fd)(int fd, void *opaque);
    void (*unregister_poll_fd)(int fd, void *opaque);
    void (*notify)(void *opaque);
    void (*init_completed)(void *slirp, void *opaque);
    void *(*timer_new_opaque)(int id, void *fn_opaque, void *opaque);
};

struct library {
    void *handle;
    void *(*new)(const struct slirp_config *, const struct slirp_callbacks *, void *);
    void (*cleanup)(void *);
    void (*pollfds_fill)(void *, uint32_t *, int (*)(int, int, void *), void *);
    void (*pollfds_poll)(void *, int, int (*)(int, void *), void *);
    void (*input)(void *, const uint8_t *, int);
    int (*add_hostfwd)(void *, int, struct in_addr, int, struct in_addr, int);
    int (*remove_hostfwd)(void *, int, struct in_addr, int);
    const char *(*version)(void);
};

struct vnet_header { uint8_t flags, gso; uint16_t header_bytes, gso_size, checksum_start, checksum_offset; };
enum { VNET_NEEDS_CHECKSUM = 1, VNET_CHECKSUM_VALID = 2, VNET_GSO_TCP4 = 1 };

/* Segments being joined. */
struct joined {
    uint32_t bytes, header, next_seq, nr; /* header: Ethernet, IP and TCP together; bytes 0: none */
    uint16_t mss;
    uint8_t frame[MAX_FRAME];
};

struct nat {
    struct nat_config config;
    int frames_fd, responder_fd, wake_fd;
    pthread_mutex_t lock;
    atomic_bool stopping;
    struct library lib;
    struct slirp_callbacks callbacks;
    void *slirp; /* NULL: no NAT */
    struct pollfd *poll;
    uint32_t nr_poll, max_poll;
    struct joined joined;
    uint8_t message[sizeof(struct vnet_header) + MAX_FRAME + 1];
};

enum { FRAMES, RESPONDER, WAKE, FIRST_OF_SLIRP };

/* ---- frames to the switch --------------------------------------------------------------------------------------- */

static ssize_t send_message(struct nat *nat, struct vnet_header header, const void *frame, size_t bytes)
{
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)frame, bytes}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    for (int i = 0; i < 2; i++) {
        ssize_t sent = sendmsg(nat->frames_fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0)
            return (ssize_t)bytes;
        if (errno != EAGAIN)
            return -1;
        struct pollfd room = {nat->frames_fd, POLLOUT, 0};
        poll(&room, 1, SEND_PATIENCE_MS); /* else it is lost, as frames may be */
    }
    return -1;
}

/* ---- joining segments ------------------------------------------------------------------------------------------- */

static uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }
static void put16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static uint16_t sum16(const uint8_t *p, uint32_t bytes, uint32_t sum)
{
    for (; bytes; bytes -= 2, p += 2)
        sum += get16(p);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* The lengths and checksums of the whole; the TCP checksum is the pseudo header's, for whoever completes it. */
static void seal(struct joined *j)
{
    uint8_t *ip = j->frame + ETHERNET, *tcp = ip + IP_HEADER;
    uint32_t total = j->bytes - ETHERNET;
    put16(ip + 2, total);
    put16(ip + 10, 0);
    put16(ip + 10, (uint16_t)~sum16(ip, IP_HEADER, 0));
    put16(tcp + 16, sum16(ip + 12, 8, IPPROTO_TCP + total - IP_HEADER));
}

static void flush_joined(struct nat *nat)
{
    struct joined *j = &nat->joined;
    struct vnet_header header = {.flags = VNET_CHECKSUM_VALID};
    if (!j->bytes)
        return;
    if (j->nr > 1) {
        seal(j);
        header = (struct vnet_header){VNET_NEEDS_CHECKSUM, VNET_GSO_TCP4, (uint16_t)j->header, j->mss,
                                      ETHERNET + IP_HEADER, 16};
    }
    send_message(nat, header, j->frame, j->bytes);
    j->bytes = 0;
}

/* Bytes of headers of a TCP segment with data and no flags that matter; 0: not one to join. */
static uint32_t joinable(const uint8_t *frame, size_t bytes)
{
    enum { ACK = 0x10, PSH = 8 };
    const uint8_t *ip = frame + ETHERNET, *tcp = ip + IP_HEADER;
    if (bytes < ETHERNET + IP_HEADER + 20 || get16(frame + 12) != 0x0800 || ip[0] != 0x45 || ip[9] != IPPROTO_TCP)
        return 0;
    uint32_t header = ETHERNET + IP_HEADER + (tcp[12] >> 4) * 4u;
    if ((tcp[13] & ~PSH) != ACK || get16(ip + 2) + ETHERNET != bytes || header >= bytes)
        return 0;
    return header;
}

/* Whether the segment goes on where the joined ones end: the same connection, acknowledgement, window and options. */
static bool follows(const struct joined *j, const uint8_t *frame, size_t bytes, uint32_t header)
{
    const uint32_t tcp = ETHERNET + IP_HEADER;
    if (!j->bytes || header != j->header || j->bytes + bytes - header > MAX_FRAME || bytes - header > j->mss)
        return false;
    return get32(frame + tcp + 4) == j->next_seq && !memcmp(frame, j->frame, ETHERNET) &&
           !memcmp(frame + ETHERNET + 12, j->frame + ETHERNET + 12, 12) &&
           !memcmp(frame + tcp + 8, j->frame + tcp + 8, 4) && !memcmp(frame + tcp + 14, j->frame + tcp + 14, 2) &&
           !memcmp(frame + tcp + 20, j->frame + tcp + 20, header - tcp - 20);
}

static void join(struct nat *nat, const uint8_t *frame, uint32_t bytes, uint32_t header)
{
    struct joined *j = &nat->joined;
    uint32_t data = bytes - header;
    if (follows(j, frame, bytes, header)) {
        memcpy(j->frame + j->bytes, frame + header, data);
        j->frame[ETHERNET + IP_HEADER + 13] |= frame[ETHERNET + IP_HEADER + 13];
        j->bytes += data;
        j->nr++;
    } else {
        flush_joined(nat);
        memcpy(j->frame, frame, bytes);
        j->bytes = bytes;
        j->header = header;
        j->mss = (uint16_t)data;
        j->nr = 1;
    }
    j->next_seq = get32(frame + ETHERNET + IP_HEADER + 4) + data;
    if (data < j->mss) /* only the last one may be short */
        flush_joined(nat);
}

static ssize_t send_frame(const void *frame, size_t bytes, void *opaque)
{
    struct nat *nat = opaque;
    uint32_t header = joinable(frame, bytes);
    if (header) {
        join(nat, frame, (uint32_t)bytes, header);
        return (ssize_t)bytes;
    }
    flush_joined(nat);
    return send_message(nat, (struct vnet_header){.flags = VNET_CHECKSUM_VALID}, frame, bytes);
}

/* ---- what else libslirp calls ----------------------------------------------------------------------------------- */

static void guest_error(const char *text, void *opaque) { (void)text, (void)opaque; }

static int64_t clock_ns(void *opaque)
{
    struct timespec t;
    (void)opaque;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

/* Only its IPv6 side, which is off, has timers. */
static void *timer_new(timer_fn fn, void *fn_opaque, void *opaque)
{
    (void)fn, (void)fn_opaque, (void)opaque;
    return calloc(1, 1);
}
static void *timer_new_opaque(int id, void *fn_opaque, void *opaque)
{
    (void)id, (void)fn_opaque, (void)opaque;
    return calloc(1, 1);
}
static void timer_free(void *timer, void *opaque)
{
    (void)opaque;
    free(timer);
}
static void timer_mod(void *timer, int64_t expire_ms, void *opaque) { (void)timer, (void)expire_ms, (void)opaque; }
static void ignore_fd(int fd, void *opaque) { (void)fd, (void)opaque; }
static void notify(void *opaque) { eventfd_write(((struct nat *)opaque)->wake_fd, 1); }
static void init_completed(void *slirp, void *opaque) { (void)slirp, (void)opaque; }

/* ---- loading ---------------------------------------------------------------------------------------------------- */

static const char *find_functions(struct library *lib)
{
    struct { const char *name; void **to; } wanted[] = {
        {"slirp_new", (void **)&lib->new},
        {"slirp_cleanup", (void **)&lib->cleanup},
        {"slirp_pollfds_fill", (void **)&lib->pollfds_fill},
        {"slirp_pollfds_poll", (void **)&lib->pollfds_poll},
        {"slirp_input", (void **)&lib->input},
        {"slirp_add_hostfwd", (void **)&lib->add_hostfwd},
        {"slirp_remove_hostfwd", (void **)&lib->remove_hostfwd},
        {"slirp_version_string", (void **)&lib->version},
    };
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (!(*wanted[i].to = dlsym(lib->handle, wanted[i].name)))
            return dlerror();
    return NULL;
}

static void *start_slirp(struct nat *nat)
{
    const struct nat_config *c = &nat->config;
    struct slirp_config config = {
        .version = CONFIG_VERSION, .in_enabled = true,
        .network.s_addr = c->network, .netmask.s_addr = c->netmask, .host.s_addr = c->host,
        .dhcp_start.s_addr = c->dhcp_start, .nameserver.s_addr = c->dns,
        .mtu = c->mtu, .mru = MTU_MAX,
        .disable_host_loopback = c->no_host, .disable_dhcp = true,
    };
    nat->callbacks = (struct slirp_callbacks){
        .send_packet = send_frame, .guest_error = guest_error, .clock_get_ns = clock_ns,
        .timer_new = timer_new, .timer_free = timer_free, .timer_mod = timer_mod,
        .register_poll_fd = ignore_fd, .unregister_poll_fd = ignore_fd, .notify = notify,
        .init_completed = init_completed, .timer_new_opaque = timer_new_opaque,
    };
    return nat->lib.new(&config, &nat->callbacks, nat);
}

const char *nat_load(nat_t *nat, const char *library)
{
    struct library *lib = &nat->lib;
    lib->handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!lib->handle)
        return dlerror();
    const char *why = find_functions(lib);
    if (!why && !(nat->slirp = start_slirp(nat)))
        why = "libslirp refuses the configuration; it must be version 4.5 or later";
    if (why) {
        dlclose(lib->handle);
        lib->handle = NULL;
    }
    return why;
}

const char *nat_version(nat_t *nat) { return nat->slirp ? nat->lib.version() : NULL; }

/* ---- the loop --------------------------------------------------------------------------------------------------- */

/*
 * Everybody, or one of our addresses: libslirp's MAC is 52:55 and the IP address. What the switch floods is for others, and
 * libslirp, which doesn't look, would answer their TCP segments with a reset.
 */
static bool is_for_us(const struct nat *nat, const uint8_t *frame)
{
    if (frame[0] & 1)
        return true;
    return frame[0] == 0x52 && frame[1] == 0x55 &&
           (!memcmp(frame + 2, &nat->config.host, 4) || !memcmp(frame + 2, &nat->config.dns, 4));
}

/* What the responder answers though there is NAT. */
static bool is_for_responder(const struct nat *nat, const uint8_t *frame, size_t bytes)
{
    uint32_t to;
    if (!nat->slirp)
        return true;
    if (bytes < 14 + 20 + 8 || frame[12] != 0x08 || frame[13] != 0x00 || frame[23] != IPPROTO_UDP)
        return false;
    const uint8_t *udp = frame + 14 + (frame[14] & 15) * 4;
    if (udp + 8 > frame + bytes)
        return false;
    uint16_t port = (uint16_t)(udp[2] << 8 | udp[3]);
    memcpy(&to, frame + 30, 4);
    return port == 67 || (port == 53 && to == nat->config.dns);
}

/* False: there is none, or the switch has hung up. */
static bool take_frame(struct nat *nat)
{
    ssize_t n = recv(nat->frames_fd, nat->message, sizeof(nat->message), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        atomic_store(&nat->stopping, true);
    ssize_t bytes = n - (ssize_t)sizeof(struct vnet_header);
    const uint8_t *frame = nat->message + sizeof(struct vnet_header);
    if (n <= 0 || bytes < (ssize_t)ETHERNET || bytes > MAX_FRAME || !is_for_us(nat, frame))
        return n > 0;
    if (is_for_responder(nat, frame, (size_t)bytes))
        send(nat->responder_fd, frame, (size_t)bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    else
        nat->lib.input(nat->slirp, frame, (int)bytes);
    return true;
}

static void take_answers(struct nat *nat)
{
    ssize_t n = recv(nat->responder_fd, nat->message, sizeof(nat->message), MSG_DONTWAIT);
    if (n > 0)
        send_frame(nat->message, (size_t)n, nat);
    else if (n == 0)
        atomic_store(&nat->stopping, true);
}

static int add_poll(int fd, int events, void *opaque)
{
    struct nat *nat = opaque;
    if (nat->nr_poll == nat->max_poll) {
        uint32_t n = nat->max_poll ? 2 * nat->max_poll : 64;
        struct pollfd *bigger = realloc(nat->poll, n * sizeof(*bigger));
        if (!bigger)
            return -1;
        nat->poll = bigger;
        nat->max_poll = n;
    }
    short wanted = 0;
    wanted |= events & POLL_IN ? POLLIN : 0;
    wanted |= events & POLL_OUT ? POLLOUT : 0;
    wanted |= events & POLL_PRI ? POLLPRI : 0;
    nat->poll[nat->nr_poll] = (struct pollfd){fd, wanted, 0};
    return (int)nat->nr_poll++;
}

static int get_events(int index, void *opaque)
{
    const struct nat *nat = opaque;
    if (index < 0)
        return 0;
    short seen = nat->poll[index].revents;
    return (seen & POLLIN ? POLL_IN : 0) | (seen & POLLOUT ? POLL_OUT : 0) | (seen & POLLPRI ? POLL_PRI : 0) |
           (seen & POLLERR ? POLL_ERR : 0) | (seen & POLLHUP ? POLL_HUP : 0);
}

static void turn(struct nat *nat)
{
    uint32_t timeout = UINT32_MAX;
    nat->nr_poll = 0;
    add_poll(nat->frames_fd, POLL_IN, nat);
    add_poll(nat->responder_fd, POLL_IN, nat);
    add_poll(nat->wake_fd, POLL_IN, nat);
    if (nat->slirp)
        nat->lib.pollfds_fill(nat->slirp, &timeout, add_poll, nat);
    pthread_mutex_unlock(&nat->lock);
    int n = poll(nat->poll, nat->nr_poll, timeout > 60000 ? 60000 : (int)timeout);
    pthread_mutex_lock(&nat->lock);
    eventfd_t ignored;
    if (n > 0 && nat->poll[WAKE].revents)
        eventfd_read(nat->wake_fd, &ignored);
    if (nat->slirp)
        nat->lib.pollfds_poll(nat->slirp, n < 0, get_events, nat);
    if (n > 0 && nat->poll[RESPONDER].revents)
        take_answers(nat);
    for (int i = 0; n > 0 && nat->poll[FRAMES].revents && i < FRAMES_AT_ONCE && take_frame(nat); i++)
        ;
    flush_joined(nat);
}

int nat_run(nat_t *nat)
{
    pthread_mutex_lock(&nat->lock);
    while (!atomic_load(&nat->stopping))
        turn(nat);
    pthread_mutex_unlock(&nat->lock);
    return 0;
}

void nat_stop(nat_t *nat)
{
    atomic_store(&nat->stopping, true);
    notify(nat);
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

int nat_create(const struct nat_config *config, int frames_fd, int responder_fd, nat_t **out)
{
    struct nat *nat = calloc(1, sizeof(*nat));
    if (!nat)
        return -ENOMEM;
    nat->config = *config;
    nat->frames_fd = frames_fd;
    nat->responder_fd = responder_fd;
    nat->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&nat->lock, NULL);
    if (nat->wake_fd < 0) {
        int error = errno;
        free(nat);
        return -error;
    }
    *out = nat;
    return 0;
}

void nat_destroy(nat_t *nat)
{
    if (!nat)
        return;
    if (nat->slirp)
        nat->lib.cleanup(nat->slirp);
    close(nat->wake_fd);
    free(nat->poll);
    free(nat);
}

int nat_forward(nat_t *nat, int udp, uint32_t host, uint16_t host_port, uint32_t guest, uint16_t guest_port)
{
    struct in_addr from = {host}, to = {guest};
    if (!nat->slirp)
        return -ENOSYS;
    notify(nat);
    pthread_mutex_lock(&nat->lock);
    errno = 0;
    int rc = nat->lib.add_hostfwd(nat->slirp, udp, from, host_port, to, guest_port);
    int error = errno ? errno : EADDRINUSE;
    pthread_mutex_unlock(&nat->lock);
    notify(nat); /* the loop must wait for the new socket as well */
    return rc ? -error : 0;
}

int nat_unforward(nat_t *nat, int udp, uint32_t host, uint16_t host_port)
{
    struct in_addr from = {host};
    if (!nat->slirp)
        return -ENOSYS;
    notify(nat);
    pthread_mutex_lock(&nat->lock);
    int rc = nat->lib.remove_hostfwd(nat->slirp, udp, from, host_port);
    pthread_mutex_unlock(&nat->lock);
    notify(nat);
    return rc ? -ENOENT : 0;
}
