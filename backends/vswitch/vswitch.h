/*
 * What the owner of a switch calls: networks, ports on file descriptors, captures, counters, the loop's thread.
 *
 * Every function takes the switch's lock and returns within a burst's time, some 100 us; any thread may call. 0, a count or
 * -errno of the host. Who makes a port of another kind includes switch.h.
 */
#ifndef UMXEN_VSWITCH_H
#define UMXEN_VSWITCH_H
#include <stdint.h>

/* cffi: begin */
typedef struct vswitch vswitch_t;
typedef struct network vs_network_t;
typedef struct port vs_port_t;
typedef struct capture vs_capture_t;

#define VS_PAGE 4096
#define VS_MAX_FRAME 65535
#define VS_VLANS 4096
#define VS_TRUNK_WORDS 64

/* Packets live in `bytes` of `memory`, page-aligned; it stays the caller's and outlives the switch. */
int vs_create(void *memory, uint64_t bytes, vswitch_t **out);
void vs_destroy(vswitch_t *sw); /* the thread is stopped; networks, ports and captures left go with it */
int vs_start(vswitch_t *sw);    /* a thread of its own serves all ports */
void vs_stop(vswitch_t *sw);
int vs_step(vswitch_t *sw, int timeout_ms); /* one turn of the loop by the caller, without a thread */
int vs_news_fd(vswitch_t *sw); /* an eventfd: some port or capture has died, some vif wants attention */

struct vs_limits {
    uint32_t ageing_s;  /* of a learned address */
    uint32_t storm_pps; /* broadcasts, multicasts and floods a port may send in a second; 0: any */
};
int vs_network_create(vswitch_t *sw, const struct vs_limits *limits, vs_network_t **out);
int vs_network_set_limits(vs_network_t *net, const struct vs_limits *limits);
int vs_network_destroy(vs_network_t *net); /* -EBUSY while it has ports */

enum vs_kind {
    VS_STREAM = 1,   /* frames after their length in 4 bytes, big-endian: QEMU's socket and stream netdevs */
    VS_DATAGRAM = 2, /* one frame a message: udp, unix dgram and seqpacket, VDE, tap without offloads */
    VS_MULTICAST = 3 /* `fd` receives, `send_fd` sends; what comes from ourselves is dropped */
};
enum vs_caps {
    VS_CSUM4 = 1,  /* takes partial checksums, of IPv4 */
    VS_CSUM6 = 2,  /* and of IPv6 */
    VS_TSO4 = 4,   /* takes TCP packets over the MTU, of IPv4, to be segmented by it */
    VS_TSO6 = 8,
    VS_BIG = 16,   /* takes TCP packets over the MTU as frames with a complete checksum */
    VS_VNET = 32   /* each datagram has a struct virtio_net_hdr in front, both ways: TAP with offloads, the NAT's process */
};
/* The descriptors become the port's from success on, and non-blocking. */
int vs_port_create(vs_network_t *net, uint32_t kind, int fd, int send_fd, uint32_t caps, vs_port_t **out);
int vs_port_destroy(vs_port_t *port);
int vs_port_error(vs_port_t *port); /* 0 while it lives; else the errno of its end (EPIPE: the peer hung up) */

enum vs_vlan_mode {
    VS_ACCESS = 0, /* untagged frames only, of VLAN `tag`; 0 is the VLAN of untagged frames */
    VS_TRUNK = 1,  /* frames of the trunks' VLANs, tagged; of VLAN 0, untagged */
    VS_NATIVE = 2  /* a trunk whose untagged frames belong to VLAN `tag` */
};
struct vs_port_settings {
    uint32_t vlan_mode, tag;
    uint64_t trunks[64];   /* bit n: VLAN n */
    uint32_t isolated;     /* no frame to other isolated ports */
    uint32_t anti_spoof;   /* source address and ARP sender must be `mac` */
    uint8_t mac[6];
    uint16_t mtu;          /* longer packets are not sent there; 0: any */
    uint64_t rate_bytes;   /* it may send that many ... */
    uint32_t rate_usec;    /* ... in so long; 0: any */
};
int vs_port_set(vs_port_t *port, const struct vs_port_settings *settings);

struct vs_counters {
    uint64_t rx_packets, rx_bytes; /* from the port into the switch */
    uint64_t tx_packets, tx_bytes; /* from the switch to the port */
    uint64_t rx_dropped_vlan, rx_dropped_spoof, rx_dropped_storm, rx_dropped_malformed, rx_dropped_no_memory;
    uint64_t tx_dropped_full, tx_dropped_mtu, tx_dropped_error;
    uint64_t checksums, segments; /* completed, made for this port */
};
int vs_port_counters(vs_port_t *port, struct vs_counters *out);

struct vs_fdb_entry { uint8_t mac[6]; uint16_t vlan; uint32_t age_s; vs_port_t *port; };
int vs_fdb_list(vs_network_t *net, struct vs_fdb_entry *out, uint32_t max); /* how many */

/* All that passes `port`, or, without one, all that enters `net`, as a pcap stream into `fd`, a pipe or a socket. */
int vs_capture_create(vs_network_t *net, vs_port_t *port, int fd, uint32_t snaplen, vs_capture_t **out);
int vs_capture_destroy(vs_capture_t *capture);
/* Frames written and lost so far; the result is vs_port_error's. */
int vs_capture_state(vs_capture_t *capture, uint64_t *written, uint64_t *lost);

struct vs_statistics { uint32_t nr_pages, nr_free_pages, nr_ports, nr_networks; uint64_t turns, naps; };
int vs_statistics(vswitch_t *sw, struct vs_statistics *out);
/* cffi: end */
#endif
