/*
 * Takes requests until two are waiting or no more come, and answers the later one first. What it writes and reads, it does at
 * once, so a request whose reply never came has been done or not, as with a real server that dies.
 */
#define _GNU_SOURCE
#include "nbd_server.h"

#include <endian.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct nbd_server {
    int socket, image;
    uint32_t replies;
    uint64_t garbage;
    pthread_t thread;
    struct request waiting[2];
    uint8_t *data[2];
};

static int whole(int fd, void *data, size_t bytes)
{
    return recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static int take(struct nbd_server *s, int place)
{
    struct request *r = &s->waiting[place];

    if (!whole(s->socket, r, sizeof(*r)) || be32toh(r->magic) != 0x25609513u)
        return 0;
    uint32_t length = be32toh(r->length);
    uint16_t type = be16toh(r->type);

    s->data[place] = calloc(1, length + 1);
    if (type == 1)
        return whole(s->socket, s->data[place], length) &&
               pwrite(s->image, s->data[place], length, (off_t)be64toh(r->offset)) == (ssize_t)length;
    if (type == 0)
        return pread(s->image, s->data[place], length, (off_t)be64toh(r->offset)) == (ssize_t)length;
    return type == 3 || type == 4;
}

static int answer(struct nbd_server *s, int place)
{
    struct request *r = &s->waiting[place];
    struct reply reply = {htobe32(0x67446698), 0, r->cookie};
    size_t data = be16toh(r->type) == 0 ? be32toh(r->length) : 0;

    if (!s->replies && s->garbage) {
        for (size_t i = 0; i < sizeof(reply); i++)
            ((uint8_t *)&reply)[i] = (uint8_t)((s->garbage = s->garbage * 6364136223846793005ull + 1) >> 33);
        if (s->garbage >> 40 & 1)
            reply.magic = htobe32(0x67446698), reply.error = 0;
    }
    int last = !s->replies && !s->garbage;

    if (send(s->socket, &reply, last ? 7 : sizeof(reply), MSG_NOSIGNAL) < 0 || last)
        return 0;
    s->replies -= s->replies > 0;
    return !data || send(s->socket, s->data[place], data, MSG_NOSIGNAL) == (ssize_t)data;
}

static void *serve(void *data)
{
    struct nbd_server *s = data;
    int goes_on = 1;

    while (goes_on && take(s, 0)) {
        struct pollfd fd = {.fd = s->socket, .events = POLLIN};
        int two = poll(&fd, 1, 2) > 0;

        goes_on = (!two || (take(s, 1) && answer(s, 1))) && answer(s, 0);
        free(s->data[0]), free(s->data[1]);
        s->data[0] = s->data[1] = NULL;
    }
    free(s->data[0]), free(s->data[1]);
    close(s->socket);
    return NULL;
}

struct nbd_server *nbd_server_start(int socket, int image, uint32_t replies, uint64_t garbage)
{
    struct nbd_server *s = calloc(1, sizeof(*s));

    *s = (struct nbd_server){.socket = socket, .image = image, .replies = replies, .garbage = garbage};
    pthread_create(&s->thread, NULL, serve, s);
    return s;
}

void nbd_server_join(struct nbd_server *s)
{
    pthread_join(s->thread, NULL);
    free(s);
}
