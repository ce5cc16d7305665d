/* emu_fiber.h - switching between the stacks of CUDA threads and the scheduler's.
 *
 * Owns one switch of the callee-saved registers, written by hand because
 * swapcontext asks the kernel for the signal mask each time, which would be most of the emulator's cost.
 * Invariant: a fiber starts in a function that never returns. Used by emu_machine.cpp alone.
 */
#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <cstdint>

extern "C" void la_emu_switch(void **save, void *load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl la_emu_switch
.hidden la_emu_switch
.type la_emu_switch, @function
la_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size la_emu_switch, .-la_emu_switch
)");

/* The stack pointer from which a switch enters `start`. */
static inline void *fiber_prepare(char *stack, size_t bytes, void (*start)())
{
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
    void **sp = reinterpret_cast<void **>(top);
    *--sp = nullptr; /* a return address that is never used keeps the alignment of a call */
    *--sp = reinterpret_cast<void *>(start);
    for (int i = 0; i < 6; i++) {
        *--sp = nullptr;
    }
    return sp;
}
#else
#error "the emulator knows how to switch stacks on x86-64"
#endif

#endif
