/*
 * The states through which the two halves of a PV driver meet, each publishing its own in xenstore.
 */
#ifndef UMXEN_PUBLIC_IO_XENBUS_H
#define UMXEN_PUBLIC_IO_XENBUS_H

/* cffi: begin */
enum xenbus_state {
    XenbusStateUnknown = 0,
    XenbusStateInitialising = 1,
    XenbusStateInitWait = 2,    /* backend: waiting for the frontend's details */
    XenbusStateInitialised = 3, /* frontend: details published */
    XenbusStateConnected = 4,
    XenbusStateClosing = 5,
    XenbusStateClosed = 6,
    XenbusStateReconfiguring = 7,
    XenbusStateReconfigured = 8
};
typedef enum xenbus_state XenbusState;
/* cffi: end */
#endif
