/* cpu.c - see cpu.h. */
#include "cpu.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
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

/* 1 + the highest level, 0 until this thread asked: cpuid leaves a virtual machine, 6 us each time. */
static _Thread_local int known_isa;

int la_cpu_has(int isa)
{
    if (known_isa == 0) {
        known_isa = 1 + highest_isa();
    }
    return isa >= 0 && isa < known_isa;
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

/* ---- processors ------------------------------------------------------------------------------ */

enum { MAX_CPUS = 4096, PATH_BYTES = 4096, LINE_BYTES = 64 };

/* The first line of a group's file, "" without one; in version 1 the mount is part of the group. */
static void read_group(const char *root, const char *group, const char *file, char *line)
{
    char path[PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/sys/fs/cgroup%s/%s", root, group, file);
    FILE *f = n > 0 && n < PATH_BYTES ? fopen(path, "re") : NULL;
    line[0] = '\0';
    if (f != NULL) {
        if (fgets(line, LINE_BYTES, f) == NULL) {
            line[0] = '\0';
        }
        fclose(f);
    }
}

/* quota / period of one group, rounded down to whole processors; 0 if unlimited. */
static int group_cpus(const char *root, const char *group, int version)
{
    char line[LINE_BYTES], *end;
    read_group(root, group, version == 2 ? "cpu.max" : "cpu.cfs_quota_us", line);
    long long quota = strtoll(line, &end, 10); /* 0 for "max" */
    if (version == 1) {
        read_group(root, group, "cpu.cfs_period_us", line);
        end = line;
    }
    long long period = strtoll(end, NULL, 10);
    if (quota <= 0 || period <= 0) {
        return 0;
    }
    long long n = quota / period;
    return n < 1 ? 1 : n > MAX_CPUS ? MAX_CPUS : (int)n;
}

/* Whether "cpu" is in a comma-separated list. */
static int lists_cpu(const char *names)
{
    for (const char *at = names; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, "cpu", 3) == 0 && (at[3] == '\0' || at[3] == ',')) {
            return 1;
        }
    }
    return 0;
}

int la_cgroup_cpus(const char *root)
{
    char path[PATH_BYTES], line[PATH_BYTES], group[PATH_BYTES + 8];
    int n = snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = n > 0 && n < PATH_BYTES ? fopen(path, "re") : NULL;
    int least = 0;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        /* number:controllers:/path; version 2 has no controllers */
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *place = names != NULL ? strchr(names + 1, ':') : NULL;
        if (place == NULL) {
            continue;
        }
        *place++ = '\0';
        int version = names[1] == '\0' ? 2 : 1;
        if (version == 1 && !lists_cpu(names + 1)) {
            continue;
        }
        (void)snprintf(group, sizeof group, "%s%s", version == 1 ? "/cpu" : "", place);
        /* The group, then each above it. In a container the path may be the host's: then only the
         * last, the mount itself, is there. */
        for (char *cut = group; cut != NULL;) {
            int cpus = group_cpus(root, group, version);
            least = cpus > 0 && (least == 0 || cpus < least) ? cpus : least;
            cut = strrchr(group, '/');
            if (cut != NULL) {
                *cut = '\0';
            }
        }
    }
    if (f != NULL) {
        fclose(f);
    }
    return least;
}

/* The mask must have room for every processor the system could have; how many, only trying tells. */
static int affinity_count(void)
{
    int n = 0;
    for (size_t cpus = CPU_SETSIZE; n == 0 && cpus <= (size_t)CPU_SETSIZE << 10; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        size_t bytes = CPU_ALLOC_SIZE(cpus);
        if (set == NULL) {
            break;
        }
        if (sched_getaffinity(0, bytes, set) == 0) {
            n = CPU_COUNT_S(bytes, set);
        }
        else if (errno != EINVAL) {
            cpus = (size_t)CPU_SETSIZE << 10;
        }
        CPU_FREE(set);
    }
    return n;
}

int la_cpu_count(void)
{
    int n = affinity_count();
    int quota = la_cgroup_cpus("");
    if (quota > 0 && quota < n) {
        n = quota;
    }
    return n < 1 ? 1 : n;
}

int la_cpu_threads(int asked)
{
    int cpus = la_cpu_count();
    if (asked < 0) {
        return asked < -MAX_CPUS ? MAX_CPUS : -asked;
    }
    return asked == 0 || asked > cpus ? cpus : asked;
}
