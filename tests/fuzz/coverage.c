/* Tells libFuzzer which code of an extension runs, and what it compares, where the compiler is GCC.

   GCC calls one function for each edge, and has no counters of its own as clang has. Everything here is hidden, so
   that a sanitizer that is loaded first can't take the place of it; `attach` finds the real fuzzer. */

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))
#define SIZE (1 << 14)

static uint8_t counters[SIZE];
static struct { uintptr_t pc, flags; } places[SIZE]; /* libFuzzer wants one for each counter */

HIDDEN void __sanitizer_cov_trace_pc(void) {
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    counters[(pc ^ pc >> 14) & (SIZE - 1)]++;
}

/* A jump, not a call: the fuzzer looks at who called to tell comparisons apart. */
#define FORWARD(name, type)                                 \
    static void (*real_##name)(type, type);                 \
    HIDDEN void __sanitizer_cov_trace_##name(type a, type b) { \
        if (real_##name) real_##name(a, b);                 \
    }
#define ALL(F) F(cmp1, uint8_t) F(cmp2, uint16_t) F(cmp4, uint32_t) F(cmp8, uint64_t) F(const_cmp1, uint8_t) \
    F(const_cmp2, uint16_t) F(const_cmp4, uint32_t) F(const_cmp8, uint64_t)

ALL(FORWARD)

static void (*real_switch)(uint64_t, uint64_t *);
HIDDEN void __sanitizer_cov_trace_switch(uint64_t value, uint64_t *cases) {
    if (real_switch) real_switch(value, cases);
}
HIDDEN void __sanitizer_cov_trace_cmpf(float a, float b) { (void)a, (void)b; }
HIDDEN void __sanitizer_cov_trace_cmpd(double a, double b) { (void)a, (void)b; }

void attach(void *fuzzer) {
    void (*add_counters)(uint8_t *, uint8_t *) = dlsym(fuzzer, "__sanitizer_cov_8bit_counters_init");
    void (*add_places)(void *, void *) = dlsym(fuzzer, "__sanitizer_cov_pcs_init");
    for (size_t i = 0; i < SIZE; i++) places[i].pc = (uintptr_t)&counters[i];
    add_counters(counters, counters + SIZE);
    add_places(places, places + SIZE);
#define FIND(name, type) real_##name = dlsym(fuzzer, "__sanitizer_cov_trace_" #name);
    ALL(FIND)
    real_switch = dlsym(fuzzer, "__sanitizer_cov_trace_switch");
}
