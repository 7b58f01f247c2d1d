/*
 * Addresses, and the few functions that a compiler expects to find.
 */
#include "small.h"

uint64_t virt_to_mfn(const void *p)
{
    return ((const uint64_t *)start_info->mfn_list)[(addr(p) - VIRT_BASE) / PAGE_BYTES];
}

/* For frames of our own that the initial mapping covers. */
void *mfn_to_virt(uint64_t mfn)
{
    return (void *)(VIRT_BASE + ((const uint64_t *)MACH2PHYS_VIRT_START)[mfn] * PAGE_BYTES);
}

void *memcpy(void *to, const void *from, size_t n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memset(void *to, int byte, size_t n)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (unsigned char)*a - (unsigned char)*b;
}

uint64_t take_number(const char **text, uint64_t otherwise)
{
    const char *at = *text;
    uint64_t value = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    if (at == *text)
        return otherwise;
    while (*at == ' ')
        at++;
    *text = at;
    return value;
}
