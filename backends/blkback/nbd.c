/*
 * I/O over NBD's transmission phase (the handshake is done by nbd.py): requests are sent as they come, simple replies come in
 * any order. The socket is non-blocking; what it does not take waits in a list, and the engine's descriptor, an epoll of its
 * own, becomes readable for both directions.
 *
 * The server may die: then nothing happens until it is replaced, and all that had no reply is sent again from its start. A
 * request's iovec is therefore never moved forward here; positions are kept beside it. A cookie is a place in `slot`; the
 * server is trusted with the data, but a reply that fits no request ends the connection, not us.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"

#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define ESHUTDOWN_NBD 108
#define MAX_TRIM (1u << 30)
#define MAX_SLOTS 1024
#define MAX_IOV 258

enum { CMD_READ = 0, CMD_WRITE = 1, CMD_FLUSH = 3, CMD_TRIM = 4 };

struct nbd_request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct nbd_reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct nbd_engine {
    struct io_engine engine;
    int socket; /* -1: lost */
    bool wants_output;
    struct io *unsent, **last_unsent; /* the first one may be sent in part */
    struct nbd_request header;
    size_t sent;     /* of the first unsent one, header included */
    struct nbd_reply reply;
    size_t received; /* of the reply, its data included */
    struct io *failed; /* done without the server */
    struct io *slot[MAX_SLOTS];
    uint32_t nr_free, free_slot[MAX_SLOTS];
};

static void append_unsent(struct nbd_engine *n, struct io *io)
{
    io->next = NULL;
    *n->last_unsent = io;
    n->last_unsent = &io->next;
}

static void watch(struct nbd_engine *n, bool output)
{
    struct epoll_event event = {.events = EPOLLIN | (output ? EPOLLOUT : 0)};

    if (n->wants_output != output)
        epoll_ctl(n->engine.fd, EPOLL_CTL_MOD, n->socket, &event);
    n->wants_output = output;
}

static void lose(struct nbd_engine *n)
{
    if (n->socket >= 0)
        close(n->socket); /* takes it out of the epoll set */
    n->socket = -1;
}

/* What of `iov` lies beyond `skip` bytes, at most `limit` bytes of it. */
static int iov_from(const struct iovec *iov, uint32_t nr_iov, size_t skip, size_t limit, struct iovec *out)
{
    int n = 0;

    for (uint32_t i = 0; i < nr_iov && limit; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        size_t bytes = iov[i].iov_len - skip < limit ? iov[i].iov_len - skip : limit;

        out[n++] = (struct iovec){(char *)iov[i].iov_base + skip, bytes};
        limit -= bytes;
        skip = 0;
    }
    return n;
}

/* ---- sending */

static uint32_t length_of(const struct io *io)
{
    uint64_t most = io->kind == IO_DISCARD ? MAX_TRIM : UINT32_MAX;

    return io->kind == IO_FLUSH ? 0 : (uint32_t)(io->bytes < most ? io->bytes : most);
}

static void make_header(struct nbd_engine *n, const struct io *io)
{
    static const uint16_t type[] = {
        [IO_READ] = CMD_READ, [IO_WRITE] = CMD_WRITE, [IO_FLUSH] = CMD_FLUSH, [IO_DISCARD] = CMD_TRIM};

    n->header = (struct nbd_request){
        .magic = htobe32(REQUEST_MAGIC),
        .type = htobe16(type[io->kind]),
        .cookie = htobe64(io->cookie),
        .offset = htobe64(io->kind == IO_FLUSH ? 0 : io->offset),
        .length = htobe32(length_of(io)),
    };
}

/* Sends of the first unsent io what the socket takes; false when it takes no more. */
static bool send_some(struct nbd_engine *n)
{
    struct io *io = n->unsent;
    struct iovec iov[MAX_IOV];
    size_t total = sizeof(n->header) + (io->kind == IO_WRITE ? io->bytes : 0);
    int count = 0;

    if (!n->sent)
        make_header(n, io);
    if (n->sent < sizeof(n->header))
        iov[count++] = (struct iovec){(char *)&n->header + n->sent, sizeof(n->header) - n->sent};
    if (io->kind == IO_WRITE) {
        size_t skip = n->sent > sizeof(n->header) ? n->sent - sizeof(n->header) : 0;

        count += iov_from(io->iov, io->nr_iov, skip, SIZE_MAX, iov + count);
    }
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(n->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            lose(n);
        return false;
    }
    n->sent += (size_t)sent;
    if (n->sent == total) {
        n->sent = 0;
        if (!(n->unsent = io->next))
            n->last_unsent = &n->unsent;
    }
    return true;
}

static void nbd_commit(struct io_engine *base)
{
    struct nbd_engine *n = (struct nbd_engine *)base;

    while (n->socket >= 0 && n->unsent && send_some(n))
        ;
    if (n->socket >= 0)
        watch(n, n->unsent != NULL);
}

static void nbd_submit(struct io_engine *base, struct io *io)
{
    struct nbd_engine *n = (struct nbd_engine *)base;

    if (!n->nr_free) {
        io->result = -EBUSY;
        io->next = n->failed;
        n->failed = io;
        return;
    }
    io->cookie = n->free_slot[--n->nr_free];
    n->slot[io->cookie] = io;
    append_unsent(n, io);
}

/* ---- receiving */

static ssize_t receive(struct nbd_engine *n, struct iovec *iov, int count)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    ssize_t got = recvmsg(n->socket, &message, MSG_DONTWAIT);

    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
        lose(n);
    return got;
}

/* The request that the reply is for; NULL when there is none. */
static struct io *replied(const struct nbd_engine *n)
{
    uint64_t cookie = be64toh(n->reply.cookie);

    if (be32toh(n->reply.magic) != REPLY_MAGIC || be32toh(n->reply.error) == ESHUTDOWN_NBD || cookie >= MAX_SLOTS)
        return NULL;
    return n->slot[cookie];
}

/* All of a reply is here. The io when it is done; a long discard goes on with its next part. */
static struct io *finish_reply(struct nbd_engine *n, struct io *io)
{
    uint32_t error = be32toh(n->reply.error);

    n->received = 0;
    io->result = error ? -(int)error : 0;
    if (!error && io->kind == IO_DISCARD && !io_advance(io, length_of(io))) {
        append_unsent(n, io);
        nbd_commit(&n->engine);
        return NULL;
    }
    n->slot[io->cookie] = NULL;
    n->free_slot[n->nr_free++] = (uint32_t)io->cookie;
    return io;
}

/* Takes more of the present reply; false when there is nothing now. `done` gets the io when it is complete. */
static bool receive_some(struct nbd_engine *n, struct io **done)
{
    struct iovec iov[MAX_IOV];
    ssize_t got;

    if (n->received < sizeof(n->reply)) {
        iov[0] = (struct iovec){(char *)&n->reply + n->received, sizeof(n->reply) - n->received};
        if ((got = receive(n, iov, 1)) <= 0)
            return false;
        n->received += (size_t)got;
        if (n->received < sizeof(n->reply))
            return true;
    }
    struct io *io = replied(n);

    if (!io) {
        lose(n);
        return false;
    }
    uint64_t data = io->kind == IO_READ && !n->reply.error ? io->bytes : 0;
    uint64_t have = n->received - sizeof(n->reply);

    if (have < data) {
        int count = iov_from(io->iov, io->nr_iov, have, data - have, iov);

        if ((got = receive(n, iov, count)) <= 0)
            return false;
        n->received += (size_t)got;
        have += (size_t)got;
    }
    if (have == data)
        *done = finish_reply(n, io);
    return true;
}

static struct io *nbd_reap(struct io_engine *base)
{
    struct nbd_engine *n = (struct nbd_engine *)base;
    struct io *list = n->failed, *io;

    n->failed = NULL;
    nbd_commit(base);
    for (io = NULL; n->socket >= 0 && receive_some(n, &io); io = NULL) {
        if (io) {
            io->next = list;
            list = io;
        }
    }
    return list;
}

/* ---- life */

bool nbd_engine_lost(const struct io_engine *base) { return ((const struct nbd_engine *)base)->socket < 0; }

static void use_socket(struct nbd_engine *n, int socket)
{
    struct epoll_event event = {.events = EPOLLIN};

    n->socket = socket;
    n->wants_output = false;
    if (epoll_ctl(n->engine.fd, EPOLL_CTL_ADD, socket, &event))
        lose(n);
}

void nbd_engine_replace(struct io_engine *base, int socket)
{
    struct nbd_engine *n = (struct nbd_engine *)base;

    lose(n);
    n->sent = n->received = 0;
    n->unsent = NULL;
    n->last_unsent = &n->unsent;
    use_socket(n, socket);
    for (uint32_t i = 0; i < MAX_SLOTS; i++)
        if (n->slot[i])
            append_unsent(n, n->slot[i]);
    nbd_commit(base);
}

static void nbd_destroy(struct io_engine *base)
{
    lose((struct nbd_engine *)base);
    close(base->fd);
    free(base);
}

static const struct io_engine_ops nbd_ops = {nbd_submit, nbd_commit, nbd_reap, nbd_destroy};

struct io_engine *nbd_engine_create(int socket)
{
    struct nbd_engine *n = calloc(1, sizeof(*n));

    if (!n)
        return NULL;
    n->engine.ops = &nbd_ops;
    n->engine.fd = epoll_create1(EPOLL_CLOEXEC);
    if (n->engine.fd < 0) {
        free(n);
        return NULL;
    }
    n->last_unsent = &n->unsent;
    while (n->nr_free < MAX_SLOTS) {
        n->free_slot[n->nr_free] = MAX_SLOTS - 1 - n->nr_free;
        n->nr_free++;
    }
    use_socket(n, socket);
    return &n->engine;
}
