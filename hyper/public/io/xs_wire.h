/*
 * xenstore's wire format, the same over a socket and over a domain's ring page: a header, then `len` bytes.
 */
#ifndef UMXEN_PUBLIC_IO_XS_WIRE_H
#define UMXEN_PUBLIC_IO_XS_WIRE_H
#include <stdint.h>
#include "../errno.h"

/* cffi: begin */
enum xsd_sockmsg_type {
    XS_CONTROL = 0,
    XS_DEBUG = 0, /* the older name */
    XS_DIRECTORY = 1,
    XS_READ = 2,
    XS_GET_PERMS = 3,
    XS_WATCH = 4,
    XS_UNWATCH = 5,
    XS_TRANSACTION_START = 6,
    XS_TRANSACTION_END = 7,
    XS_INTRODUCE = 8,
    XS_RELEASE = 9,
    XS_GET_DOMAIN_PATH = 10,
    XS_WRITE = 11,
    XS_MKDIR = 12,
    XS_RM = 13,
    XS_SET_PERMS = 14,
    XS_WATCH_EVENT = 15,
    XS_ERROR = 16,
    XS_IS_DOMAIN_INTRODUCED = 17,
    XS_RESUME = 18,
    XS_SET_TARGET = 19,
    XS_RESET_WATCHES = 21, /* 20 was given up */
    XS_DIRECTORY_PART = 22,
    XS_TYPE_COUNT = 23,
    XS_INVALID = 0xffff
};

struct xsd_sockmsg {
    uint32_t type;
    uint32_t req_id; /* copied into the reply */
    uint32_t tx_id;  /* 0: no transaction */
    uint32_t len;    /* bytes that follow */
};

/* The two strings of a watch event. */
enum xs_watch_type { XS_WATCH_PATH = 0, XS_WATCH_TOKEN = 1 };

enum {
    XENSTORE_RING_SIZE = 1024,
    XENSTORE_PAYLOAD_MAX = 4096,
    XENSTORE_ABS_PATH_MAX = 3072,
    XENSTORE_REL_PATH_MAX = 2048,
    XENSTORE_SERVER_FEATURE_RECONNECTION = 1,
    XENSTORE_SERVER_FEATURE_ERROR = 2,
    XENSTORE_CONNECTED = 0,
    XENSTORE_RECONNECT = 1,
    XENSTORE_ERROR_NONE = 0,
    XENSTORE_ERROR_COMM = 1,
    XENSTORE_ERROR_RINGIDX = 2,
    XENSTORE_ERROR_PROTO = 3
};

typedef uint32_t XENSTORE_RING_IDX;

struct xenstore_domain_interface {
    char req[XENSTORE_RING_SIZE]; /* guest to xenstored */
    char rsp[XENSTORE_RING_SIZE]; /* replies and watch events */
    XENSTORE_RING_IDX req_cons, req_prod;
    XENSTORE_RING_IDX rsp_cons, rsp_prod;
    uint32_t server_features;
    uint32_t connection; /* XENSTORE_CONNECTED or XENSTORE_RECONNECT */
    uint32_t error;      /* XENSTORE_ERROR_* */
};
/* cffi: end */

#define MASK_XENSTORE_IDX(idx) ((idx) & (XENSTORE_RING_SIZE - 1))

#define XS_WRITE_NONE "NONE"
#define XS_WRITE_CREATE "CREATE"
#define XS_WRITE_CREATE_EXCL "CREATE|EXCL"

/* Errors travel as text; these are the ones that may appear. */
struct xsd_errors {
    int errnum;
    const char *errstring;
};
#define XSD_ERROR(x) { XEN_##x, #x }
static const struct xsd_errors xsd_errors[] __attribute__((unused)) = {
    XSD_ERROR(EINVAL),    XSD_ERROR(EACCES), XSD_ERROR(EEXIST), XSD_ERROR(EISDIR), XSD_ERROR(ENOENT),
    XSD_ERROR(ENOMEM),    XSD_ERROR(ENOSPC), XSD_ERROR(EIO),    XSD_ERROR(ENOTEMPTY), XSD_ERROR(ENOSYS),
    XSD_ERROR(EROFS),     XSD_ERROR(EBUSY),  XSD_ERROR(EAGAIN), XSD_ERROR(EISCONN), XSD_ERROR(E2BIG),
    XSD_ERROR(EPERM),
};

_Static_assert(sizeof(struct xsd_sockmsg) == 16, "xsd_sockmsg");
_Static_assert(sizeof(struct xenstore_domain_interface) == 2076, "xenstore_domain_interface");
#endif
