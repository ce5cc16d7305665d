/* cpu.c - see cpu.h. */
#include "cpu.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { ISA_SCALAR, ISA_AVX2, ISA_AVX512, ISA_VNNI, ISA_BF16, ISA_COUNT };

static const char *const isa_names[ISA_COUNT] = {"scalar", "avx2", "avx512", "vnni", "bf16"};

#if defined(__x86_64__)
#include <cpuid.h>

/* The system saves zmm, opmask and ymm state across context switches. */
static int os_saves(unsigned mask)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 27)) == 0) {
        return 0;
    }
    unsigned lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (lo & mask) == mask;
}

static int highest_isa(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) {
        return ISA_SCALAR;
    }
    int fma = (c >> 12) & 1, f16c = (c >> 29) & 1;
    unsigned b7, c7, d7, a71;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) {
        return ISA_SCALAR;
    }
    int avx2 = (b7 >> 5) & 1;
    if (!fma || !f16c || !avx2 || !os_saves(0x6)) {
        return ISA_SCALAR;
    }
    unsigned want512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F, DQ, BW, VL */
    if ((b7 & want512) != want512 || !os_saves(0xe6)) {
        return ISA_AVX2;
    }
    if (((c7 >> 11) & 1) == 0 || ((c7 >> 1) & 1) == 0) { /* VNNI, VBMI */
        return ISA_AVX512;
    }
    if (!__get_cpuid_count(7, 1, &a71, &b, &c, &d) || ((a71 >> 5) & 1) == 0) {
        return ISA_VNNI;
    }
    return ISA_BF16;
}
#else
static int highest_isa(void)
{
    return ISA_SCALAR;
}
#endif

int la_cpu_has(int isa)
{
    return isa >= 0 && isa <= highest_isa();
}

const char *la_cpu_isa_name(int isa)
{
    return isa >= 0 && isa < ISA_COUNT ? isa_names[isa] : NULL;
}

int la_cpu_isa_from_name(const char *name)
{
    for (int i = 0; i < ISA_COUNT; i++) {
        if (strcmp(name, isa_names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

/* quota / period of this process's cgroup, rounded down to whole processors; 0 if unlimited. */
static int cgroup_cpus(void)
{
    long long quota = -1, period = 100000;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f != NULL) {
        char text[32] = "";
        if (fscanf(f, "%31s %lld", text, &period) == 2 && strcmp(text, "max") != 0) {
            (void)sscanf(text, "%lld", &quota);
        }
        fclose(f);
    }
    else if ((f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re")) != NULL) {
        if (fscanf(f, "%lld", &quota) != 1) {
            quota = -1;
        }
        fclose(f);
        f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re");
        if (f != NULL) {
            if (fscanf(f, "%lld", &period) != 1) {
                period = 100000;
            }
            fclose(f);
        }
    }
    if (quota <= 0 || period <= 0) {
        return 0;
    }
    long long n = quota / period;
    return n < 1 ? 1 : n > 4096 ? 4096 : (int)n;
}

int la_cpu_count(void)
{
    cpu_set_t set;
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        n = CPU_COUNT(&set);
    }
    int quota = cgroup_cpus();
    if (quota > 0 && quota < n) {
        n = quota;
    }
    return n < 1 ? 1 : n;
}
