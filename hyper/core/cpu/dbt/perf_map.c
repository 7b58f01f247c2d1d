/*
 * A map of translated code for `perf report`: with UMXEN_PERF_MAP in its environment hyper keeps /tmp/perf-PID.map, which it
 * opens before it gives up opening files. One line a block: host address, bytes, name. A name tells domain, guest mode and pc;
 * code of the cold half has its own. perf takes the last line for an address, so a map stays true after the cache is flushed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>

#include "cpu/dbt/dbt.h"

void perf_map_open(struct hv *hv)
{
    char path[64];
    if (!getenv("UMXEN_PERF_MAP"))
        return;
    snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    hv->perf_map = fd > 0 ? fd : 0;
}

void perf_map_close(struct hv *hv)
{
    if (hv->perf_map)
        close(hv->perf_map);
    hv->perf_map = 0;
}

void perf_map_add(struct engine_domain *ed, const uint8_t *from, const uint8_t *to, const char *what, uint64_t pc)
{
    int fd = ed->domain->hv->perf_map;
    if (fd && to > from)
        dprintf(fd, "%lx %lx d%u:%s:%lx\n", (unsigned long)from, (unsigned long)(to - from), ed->domain->id, what,
                (unsigned long)pc);
}
