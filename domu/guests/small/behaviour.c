/*
 * What the small guest does: the first word of its command line that is a row of the table below.
 */
#include "small.h"

static void do_shell(const char *argument);

static void sleep_ms(uint64_t ms)
{
    static uint32_t port;
    if (!port)
        port = bind_virq(VIRQ_TIMER);
    struct vcpu_set_singleshot_timer timer = {.timeout_abs_ns = system_time_ns() + ms * 1000000};
    long ret = hypercall(__HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 0, addr(&timer), 0, 0);
    if (ret)
        print("umxen: no timer: %ld\n", ret);
    else
        wait_events(1UL << port);
}

static void do_hello(const char *argument)
{
    char domid[16];
    (void)argument;
    if (!xenstore_read("domid", domid, sizeof(domid)))
        domid[0] = '?', domid[1] = 0;
    uint64_t before = system_time_ns();
    sleep_ms(10);
    uint64_t slept = (system_time_ns() - before) / 1000;
    print("umxen: hello from domain %s, a 10 ms timer took %lu us\n", domid, slept);
}

static void do_reboot(const char *argument)
{
    (void)argument;
    shut_down(SHUTDOWN_reboot);
}

static void do_poweroff(const char *argument)
{
    (void)argument;
    shut_down(SHUTDOWN_poweroff);
}

static void do_panic(const char *argument)
{
    (void)argument;
    shut_down(SHUTDOWN_crash);
}

/* A trap while the stack is bad: the frame cannot be written, so the hypervisor ends the domain. */
static void do_crash(const char *argument)
{
    (void)argument;
    print("umxen: crashing\n");
    __asm__ volatile("mov $8, %%esp; ud2" ::: "memory");
}

static void do_fault(const char *argument)
{
    (void)argument;
    *(volatile int *)0xdead000 = 1;
}

static void do_spin(const char *argument)
{
    (void)argument;
    print("umxen: spinning\n");
    for (;;)
        barrier();
}

static void do_tick(const char *argument)
{
    uint64_t ms = take_number(&argument, 1000);
    for (uint64_t n = 1;; n++) {
        sleep_ms(ms);
        print("umxen: tick %lu at %lu ms\n", n, system_time_ns() / 1000000);
    }
}

/* Does what control/shutdown says, if it says something. */
static void obey_shutdown(void)
{
    char order[16] = "";
    if (!xenstore_fired() || !xenstore_read("control/shutdown", order, sizeof(order)) || !order[0])
        return;
    xenstore_write("control/shutdown", "");
    print("umxen: asked to %s\n", order);
    if (!strcmp(order, "reboot"))
        shut_down(SHUTDOWN_reboot);
    if (!strcmp(order, "poweroff") || !strcmp(order, "halt"))
        shut_down(SHUTDOWN_poweroff);
}

static void do_idle(const char *argument)
{
    (void)argument;
    xenstore_watch("control/shutdown");
    print("umxen: idle\n");
    for (;;) {
        obey_shutdown();
        /* With no xenstore nothing is waited for, for ever. */
        wait_events(xenstore_event());
    }
}

static void do_help(const char *argument);

static const struct behaviour {
    const char *name;
    void (*run)(const char *argument);
    const char *help;
} behaviours[] = {
    {"hello", do_hello, "read the domain id from xenstore, wait for a timer"},
    {"tick", do_tick, "tick MS: a line on each tick of a timer, for ever"},
    {"idle", do_idle, "block; obey control/shutdown in xenstore"},
    {"spin", do_spin, "loop for ever"},
    {"poweroff", do_poweroff, "shut down"},
    {"reboot", do_reboot, "shut down, asking to be started again"},
    {"panic", do_panic, "shut down as crashed"},
    {"fault", do_fault, "touch memory that is not there; the trap handler reports it and panics"},
    {"crash", do_crash, "trap with a bad stack, so that the hypervisor ends the domain"},
    {"badpt", do_badpt, "bad page tables, each of which must be refused"},
    {"random", do_random, "random SEED COUNT: calls with random arguments"},
    {"shell", do_shell, "read these words from the console"},
    {"help", do_help, "this list"},
};
enum { NR_BEHAVIOURS = sizeof(behaviours) / sizeof(behaviours[0]) };

static void do_help(const char *argument)
{
    (void)argument;
    for (int i = 0; i < NR_BEHAVIOURS; i++)
        print("  %s: %s\n", behaviours[i].name, behaviours[i].help);
}

/* Runs the row that `text` begins with; false when there is none. */
static bool run_word(const char *text)
{
    for (int i = 0; i < NR_BEHAVIOURS; i++) {
        const char *name = behaviours[i].name, *at = text;
        while (*name && *at == *name)
            name++, at++;
        if (*name || (*at && *at != ' '))
            continue;
        while (*at == ' ')
            at++;
        behaviours[i].run(at);
        return true;
    }
    return false;
}

static void do_shell(const char *argument)
{
    char line[128];
    size_t used = 0;
    (void)argument;
    xenstore_watch("control/shutdown");
    print("umxen: \"help\" lists what there is\nsmall> ");
    for (;;) {
        obey_shutdown();
        while (poll_line(line, sizeof(line) - 1, &used)) {
            if (line[0] && !run_word(line))
                print("umxen: no \"%s\" here\n", line);
            print("small> ");
        }
        wait_events(console_event() | xenstore_event());
    }
}

void behave(const char *command_line)
{
    for (const char *at = command_line; *at;) {
        if (run_word(at))
            return;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    do_hello("");
}
