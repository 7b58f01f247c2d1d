/*
 * The pump of the user-mode uplink's own process: frames from and to the switch, libslirp for NAT. See slirp.c.
 */
#ifndef UMXEN_NETBACK_SLIRP_H
#define UMXEN_NETBACK_SLIRP_H
#include <stdint.h>

/* cffi: begin */
typedef struct nat nat_t;

struct nat_config { /* addresses in network byte order */
    uint32_t network, netmask, host, dns, dhcp_start;
    uint32_t mtu;
    uint32_t no_host; /* guests do not reach the host's own servers */
};

/* `frames_fd`: a socket that keeps messages apart, to the switch. `responder_fd`: one to who answers DHCP, DNS and, without
 * NAT, ARP. Both stay the caller's. */
int nat_create(const struct nat_config *config, int frames_fd, int responder_fd, nat_t **out);
/* NAT by this library from now on. NULL, or why not; the text is static or dlerror's. */
const char *nat_load(nat_t *nat, const char *library);
const char *nat_version(nat_t *nat); /* NULL: without NAT */
/* Until the switch hangs up or nat_stop. */
int nat_run(nat_t *nat);
void nat_stop(nat_t *nat);
void nat_destroy(nat_t *nat);
/* A port of the host leads to one of a guest. -errno: of binding it; -ENOSYS: no NAT. */
int nat_forward(nat_t *nat, int udp, uint32_t host, uint16_t host_port, uint32_t guest, uint16_t guest_port);
int nat_unforward(nat_t *nat, int udp, uint32_t host, uint16_t host_port);
/* cffi: end */
#endif
