/* cpu.h - what this machine offers: instruction sets and processors this process may use.
 *
 * Owns cpuid and the reading of affinity masks and cgroup quotas. Invariant: answers do not depend on
 * environment variables; overrides are decided above. Called by model/backend_cpu.c, model.c, pool.c,
 * python/py_kernels*.c and the tests.
 */
#ifndef LA_CPU_H
#define LA_CPU_H

/* Levels as in kernels/kernels.h's la_isa, in order. 1 if the processor and the system support it. */
int la_cpu_has(int isa);
/* "scalar", "avx2", ...; NULL beyond the last. */
const char *la_cpu_isa_name(int isa);
/* Level of a name, -1 if unknown. */
int la_cpu_isa_from_name(const char *name);
/* The smallest cpu quota among this process's cgroups and those above them, rounded down to whole
 * processors, at least 1; 0 if there is none. root: where proc and sys are, "" but in tests. */
int la_cgroup_cpus(const char *root);
/* Processors this process may use: affinity mask, then the cgroups' cpu quota, at least 1. */
int la_cpu_count(void);
/* Threads to start when `asked` are asked for: 0 is one per usable processor, and more than these would
 * only take turns, so they are not started. Negative: exactly -asked, for tests of many threads. */
int la_cpu_threads(int asked);

#endif
