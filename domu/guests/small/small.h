/*
 * What the rooms of the small guest share: hypercalls, text, events, time.
 */
#ifndef SMALL_H
#define SMALL_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "event_channel.h"
#include "sched.h"
#include "vcpu.h"
#include "xen.h"

#define PAGE_BYTES 4096UL
#define VIRT_BASE 0xffffffff80000000UL
#define barrier() __asm__ volatile("" ::: "memory")

extern struct start_info *start_info;
extern struct shared_info shared_info;

/* hypercall.c */
long hypercall(unsigned nr, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5);
_Noreturn void shut_down(unsigned reason);
static inline uint64_t addr(const volatile void *p) { return (uint64_t)p; }

/* memory.c */
uint64_t virt_to_mfn(const void *p);
void *mfn_to_virt(uint64_t mfn);
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
size_t strlen(const char *s);
int strcmp(const char *a, const char *b);
/* Takes a decimal number and the blanks behind it off `*text`; `otherwise` where there is none. */
uint64_t take_number(const char **text, uint64_t otherwise);

/* event.c: ports below 64 */
void events_init(void);
uint32_t bind_virq(uint32_t virq);
void notify(uint32_t port);
/* Whether one of `ports` (a bit for each) fired since it was last taken; takes it. */
bool take_events(uint64_t ports);
/* Sleeps until one of `ports` fires; takes it. */
void wait_events(uint64_t ports);
uint64_t system_time_ns(void);

/* console.c */
void console_init(void);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Puts what has come into `line`; true when it is a whole line. `used` starts at 0. */
bool poll_line(char *line, size_t bytes, size_t *used);
uint64_t console_event(void);

/* xenstore.c */
void xenstore_init(void);
bool xenstore_there(void);
/* Reads a node into `value`; false when there is none. */
bool xenstore_read(const char *path, char *value, size_t bytes);
bool xenstore_write(const char *path, const char *value);
bool xenstore_watch(const char *path);
/* Whether a watch fired since it was last asked. */
bool xenstore_fired(void);
uint64_t xenstore_event(void);

/* hostile.c */
void do_badpt(const char *argument);
void do_random(const char *argument);

/* behaviour.c */
void behave(const char *command_line);
#endif
