/* cpu.h - what this machine offers: instruction sets and processors this process may use.
 *
 * Owns cpuid and the reading of affinity masks and cgroup quotas. Invariant: answers do not depend on
 * environment variables; overrides are decided above. Called by model/backend_cpu.c and the tests.
 */
#ifndef LA_CPU_H
#define LA_CPU_H

/* Levels as in kernels/kernels.h's la_isa, in order. 1 if the processor and the system support it. */
int la_cpu_has(int isa);
/* "scalar", "avx2", ...; NULL beyond the last. */
const char *la_cpu_isa_name(int isa);
/* Level of a name, -1 if unknown. */
int la_cpu_isa_from_name(const char *name);
/* Processors this process may use: affinity mask, then the cgroup's cpu quota, at least 1. */
int la_cpu_count(void);

#endif
