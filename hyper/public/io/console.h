/*
 * The PV console page: a ring each way. `in` flows to the guest, `out` from it. Indices count bytes and wrap
 * at 32 bits; they are masked by the ring's size only to address it.
 */
#ifndef UMXEN_PUBLIC_IO_CONSOLE_H
#define UMXEN_PUBLIC_IO_CONSOLE_H
#include <stdint.h>

/* cffi: begin */
typedef uint32_t XENCONS_RING_IDX;

struct xencons_interface {
    char in[1024];
    char out[2048];
    XENCONS_RING_IDX in_cons, in_prod;
    XENCONS_RING_IDX out_cons, out_prod;
};
/* cffi: end */

#define MASK_XENCONS_IDX(idx, ring) ((idx) & (sizeof(ring) - 1))

_Static_assert(sizeof(struct xencons_interface) == 3088, "xencons_interface");
#endif
