/* A server of NBD's transmission phase, on a thread of its own. See nbd_server.c. */
#ifndef TEST_BLKBACK_NBD_SERVER_H
#define TEST_BLKBACK_NBD_SERVER_H
#include <stdint.h>

struct nbd_server;
/* `socket` becomes the server's. It hangs up, in the middle of a reply, after `replies`; from then on it would answer `garbage`
 * instead, if that is not 0 (a seed). */
struct nbd_server *nbd_server_start(int socket, int image, uint32_t replies, uint64_t garbage);
void nbd_server_join(struct nbd_server *server); /* it has hung up, or its peer has */
#endif
