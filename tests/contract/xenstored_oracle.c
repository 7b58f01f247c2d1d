/*
 * Preloaded into the real xenstored, so that it runs without a hypervisor and the contract's table can be put to it.
 *
 * Event channels are two FIFOs ($ORACLE_DIR/evt.in: ports that are pending, evt.out: ports it notifies), a domain's
 * ring page is the file ring.<domid>, and the file `domains` says which domains exist: lines `<domid> <r|s|d>`
 * (running, shut down, dying).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xenctrl.h>

static int handle;
static int pending_fd = -1, notify_fd = -1;

static int in_dir(char *out, size_t size, const char *name, int number)
{
    int at = snprintf(out, size, "%s/", getenv("ORACLE_DIR"));

    return at + snprintf(out + at, size - (size_t)at, name, number);
}

static int open_in_dir(const char *name, int number, int flags)
{
    char path[512];

    in_dir(path, sizeof(path), name, number);
    return open(path, flags);
}

void *xenevtchn_open(void *logger, unsigned int flags)
{
    (void)logger, (void)flags;
    pending_fd = open_in_dir("evt.in", 0, O_RDWR | O_NONBLOCK);
    notify_fd = open_in_dir("evt.out", 0, O_RDWR | O_NONBLOCK);
    return &handle;
}

int xenevtchn_fd(void *h) { (void)h; return pending_fd; }
int xenevtchn_bind_virq(void *h, unsigned int virq) { (void)h, (void)virq; return 1; }
int xenevtchn_bind_interdomain(void *h, uint32_t domid, uint32_t port) { (void)h; return (int)(domid * 100 + port); }
int xenevtchn_unbind(void *h, uint32_t port) { (void)h, (void)port; return 0; }
int xenevtchn_unmask(void *h, uint32_t port) { (void)h, (void)port; return 0; }

int xenevtchn_notify(void *h, uint32_t port)
{
    (void)h;
    return write(notify_fd, &port, sizeof(port)) < 0 ? -1 : 0;
}

int xenevtchn_pending(void *h)
{
    uint32_t port;

    (void)h;
    return read(pending_fd, &port, sizeof(port)) == sizeof(port) ? (int)port : -1;
}

void *xengnttab_open(void *logger, unsigned int flags) { (void)logger, (void)flags; return &handle; }
int xengnttab_close(void *h) { (void)h; return 0; }
int xengnttab_set_max_grants(void *h, uint32_t count) { (void)h, (void)count; return 0; }
int xengnttab_unmap(void *h, void *at, uint32_t count) { (void)h, (void)count; return munmap(at, 4096); }

void *xengnttab_map_grant_ref(void *h, uint32_t domid, uint32_t ref, int prot)
{
    int fd = open_in_dir("ring.%d", (int)domid, O_RDWR);
    void *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    (void)h, (void)ref, (void)prot;
    close(fd);
    return at == MAP_FAILED ? NULL : at;
}

xc_interface *xc_interface_open(xentoollog_logger *a, xentoollog_logger *b, unsigned int flags)
{
    (void)a, (void)b, (void)flags;
    return (xc_interface *)&handle;
}

int xc_interface_close(xc_interface *xch) { (void)xch; return 0; }

int xc_domain_getinfo(xc_interface *xch, uint32_t first, unsigned int max, xc_dominfo_t *info)
{
    char path[512], state, best_state = 0;
    unsigned int domid, best = ~0u;

    (void)xch, (void)max;
    in_dir(path, sizeof(path), "domains", 0);
    FILE *file = fopen(path, "r");
    while (file && fscanf(file, "%u %c", &domid, &state) == 2)
        if (domid >= first && domid < best)
            best = domid, best_state = state;
    if (file)
        fclose(file);
    if (!best_state)
        return 0;
    memset(info, 0, sizeof(*info));
    info->domid = best;
    info->running = best_state == 'r';
    info->shutdown = best_state == 's';
    info->dying = best_state == 'd';
    return 1;
}

int open(const char *path, int flags, ...)
{
    static int (*real)(const char *, int, ...);
    char here[512];
    va_list rest;

    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    if (!real)
        real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    if (!strcmp(path, "/proc/xen/xsd_port"))
        in_dir(here, sizeof(here), "port", 0), path = here;
    else if (!strcmp(path, "/proc/xen/xsd_kva"))
        in_dir(here, sizeof(here), "ring.0", 0), path = here;
    return real(path, flags, mode);
}
