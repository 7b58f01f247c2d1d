/*
 * clock NAME COMMAND...: runs the command with its output thrown away and prints the CPU time of it and its children.
 * clock matmul N TIMES, clock forks COUNT PROGRAM ARGUMENT...: two workloads, so that one static program is enough.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int matmul(int n, int times)
{
    double *a = malloc(sizeof(double) * n * n), *b = malloc(sizeof(double) * n * n), *c = calloc(n * n, sizeof(double));
    for (int i = 0; i < n * n; i++) {
        a[i] = i % 7 - 3;
        b[i] = i % 11 * 0.5;
    }
    while (times--)
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++)
                for (int j = 0; j < n; j++)
                    c[i * n + j] += a[i * n + k] * b[k * n + j];
    printf("%g\n", c[n * n / 2]);
    return 0;
}

static int forks(int count, char **command)
{
    while (count--) {
        int status = 1;
        pid_t child = fork();
        if (!child) {
            execv(command[0], command);
            _exit(127);
        }
        if (child < 0 || waitpid(child, &status, 0) < 0 || status)
            return 1;
    }
    return 0;
}

static double seconds(struct timeval t) { return t.tv_sec + t.tv_usec / 1e6; }

static int clock_command(const char *name, char **command)
{
    struct rusage used;
    int status = 1;
    pid_t child = fork();
    if (!child) {
        dup2(open("/dev/null", O_WRONLY), 1);
        execvp(command[0], command);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &used) < 0 || status) {
        printf("clock: %s failed with status %#x\n", name, status);
        return 1;
    }
    printf("clock: %s %.6f\n", name, seconds(used.ru_utime) + seconds(used.ru_stime));
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc == 4 && !strcmp(argv[1], "matmul"))
        return matmul(atoi(argv[2]), atoi(argv[3]));
    if (argc > 3 && !strcmp(argv[1], "forks"))
        return forks(atoi(argv[2]), argv + 3);
    return argc > 2 ? clock_command(argv[1], argv + 2) : 2;
}
