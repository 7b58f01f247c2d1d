/*
 * Both ends of the two byte rings every PV guest has: xenstore and console. See rings.c.
 */
#ifndef UMXEN_GUEST_RINGS_H
#define UMXEN_GUEST_RINGS_H
#include <stdint.h>

#include "io/console.h"
#include "io/xs_wire.h"

/* cffi: begin */
/* Bytes copied, consumed or accepted (0: nothing there, or no room), or -1: the other side's indices make no sense. */
int32_t ring_xenstore_peek(const struct xenstore_domain_interface *page, void *to, uint32_t max);
int32_t ring_xenstore_consume(struct xenstore_domain_interface *page, uint32_t bytes);
int32_t ring_xenstore_write(struct xenstore_domain_interface *page, const void *from, uint32_t bytes);
/* How far Dom0's end has come: what it has consumed and produced, free-running. For a daemon that follows a killed one. */
uint32_t ring_xenstore_req_cons(const struct xenstore_domain_interface *page);
uint32_t ring_xenstore_rsp_prod(const struct xenstore_domain_interface *page);
/* Both directions empty. For a domain that does not run, or after it said it reconnects. */
void ring_xenstore_reset(struct xenstore_domain_interface *page);
int32_t ring_console_read(struct xencons_interface *page, void *to, uint32_t max);
int32_t ring_console_write(struct xencons_interface *page, const void *from, uint32_t bytes);
/* The guest's ends. */
int32_t ring_xenstore_ask(struct xenstore_domain_interface *page, const void *from, uint32_t bytes);
int32_t ring_xenstore_answer(struct xenstore_domain_interface *page, void *to, uint32_t max);
int32_t ring_console_print(struct xencons_interface *page, const void *from, uint32_t bytes);
int32_t ring_console_type(struct xencons_interface *page, void *to, uint32_t max);
/* cffi: end */
#endif
