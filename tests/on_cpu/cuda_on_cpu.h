// CUDA kernels on one CPU thread: every CUDA thread is a fiber, blocks run one after the other.
//
// Shared memory is filled with NaN when a block begins. Fibers and blocks run in order (seed 0) or
// shuffled by a seed. A barrier that part of a block never reaches, or that its threads reach at
// different lines, ends the launch with a message instead of hanging.
#pragma once

// Every library is compiled in each run from nothing: of the standard headers only the light ones.
#include <math.h>  // unlike <cmath> it puts every overload where CUDA has it
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FIBER_SWITCH(save, stack, size) __sanitizer_start_switch_fiber(save, stack, size)
#define FIBER_ARRIVE(saved, stack, size) __sanitizer_finish_switch_fiber(saved, stack, size)
constexpr size_t STACK = 1 << 18;
#else
#define FIBER_SWITCH(save, stack, size)
#define FIBER_ARRIVE(saved, stack, size)
constexpr size_t STACK = 1 << 16;
#endif

#define __global__
#define __device__ inline
#define __host__
#define __forceinline__
#define __launch_bounds__(...)
// `__shared__` on the device; here an array that the first fiber of every block to arrive poisons.
#define VS_SHARED(type, name, dims)            \
    static type name dims;                     \
    static unsigned long long name##_block = 0; \
    on_cpu::poison(&name, sizeof name, name##_block)

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
constexpr const T &max(const T &a, const T &b) {
    return a < b ? b : a;
}
template <typename T>
constexpr const T &min(const T &a, const T &b) {
    return b < a ? b : a;
}

namespace on_cpu {

enum Wait { RUNS, AT_WARP, AT_BLOCK, DONE };

using Place = void *[5];  // where __builtin_setjmp was: it keeps no signals and few registers

struct Fiber {
    Place at;
    bool entered = false;
    Wait wait;
    const char *file;
    int line;
    Dim thread;
    uint64_t given, mask;  // what it brings to a barrier, and the lanes that it waits for
    char *stack = nullptr;
    void *fake;
};

static Fiber fibers[1024];           // one for each thread of the largest block
static unsigned threads;             // of a block of this launch
static std::vector<unsigned> order;  // in which they take their turns
static size_t turn;                  // the next in that order
static Fiber *current;
static Place scheduler;
static ucontext_t entry;
static void (*body)();
static void **arguments;
static unsigned long long block_serial = 0;
static uint64_t warp_seen[32][32];  // what the lanes of each warp brought to its last barrier
static int block_any, block_all, block_count;
static void *scheduler_fake;
static const void *left_stack, *scheduler_stack;  // left_: of whoever gave the turn away last
static size_t left_size, scheduler_size;
static char message[512];

inline void poison(void *memory, size_t size, unsigned long long &block) {
    if (block == block_serial) return;
    memset(memory, 0xFF, size);
    block = block_serial;
}

void run_threads();

// Give the turn to the next fiber that can run, else to the scheduler. No local variable may lie in
// memory here: the sanitizer would guard a frame that is never left.
inline __attribute__((noinline)) void give_turn(void **fake) {
    while (turn < order.size()) {
        Fiber &next = fibers[order[turn++]];
        if (next.wait != RUNS) continue;
        current = &next;
        threadIdx = next.thread;
        FIBER_SWITCH(fake, next.stack, STACK);
        if (next.entered) __builtin_longjmp(next.at, 1);
        next.entered = true;
        getcontext(&entry);
        entry.uc_stack.ss_sp = next.stack;
        entry.uc_stack.ss_size = STACK;
        makecontext(&entry, run_threads, 0);
        setcontext(&entry);
    }
    FIBER_SWITCH(fake, scheduler_stack, scheduler_size);
    __builtin_longjmp(scheduler, 1);
}

inline __attribute__((noinline)) void wait_at(Wait what, const char *file, int line) {
    current->wait = what;
    current->file = file;
    current->line = line;
    if (!__builtin_setjmp(current->at)) give_turn(&current->fake);
    FIBER_ARRIVE(current->fake, &left_stack, &left_size);
}

// A fiber lives as long as the library and runs its thread of one block after the other.
inline void run_threads() {
    FIBER_ARRIVE(nullptr, &left_stack, &left_size);
    if (scheduler_stack == nullptr) {  // the first of all fibers has its turn from the scheduler
        scheduler_stack = left_stack;
        scheduler_size = left_size;
    }
    for (;;) {
        body();
        wait_at(DONE, nullptr, 0);
    }
}

// Every fiber that can run has one turn.
inline __attribute__((noinline)) void give_turns() {
    turn = 0;
    if (!__builtin_setjmp(scheduler)) give_turn(&scheduler_fake);
    FIBER_ARRIVE(scheduler_fake, &left_stack, &left_size);
}

// Stacks with a page below each that cannot be touched.
inline void make_fibers() {
    const size_t page = sysconf(_SC_PAGESIZE), each = STACK + page;
    for (unsigned n = 0; n < threads; ++n) {
        Fiber &fiber = fibers[n];
        fiber.thread = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
        if (fiber.stack != nullptr) continue;
        void *room = mmap(nullptr, each, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        mprotect(room, page, PROT_NONE);
        fiber.stack = (char *)room + page;
    }
}

// Lanes of a warp that wait where one of them does.
inline uint64_t lanes_with(const Fiber *warp, unsigned lanes, const Fiber &one) {
    uint64_t found = 0;
    for (unsigned lane = 0; lane < lanes; ++lane)
        if (warp[lane].wait == AT_WARP && warp[lane].line == one.line && warp[lane].file == one.file)
            found |= uint64_t(1) << lane;
    return found;
}

// Let a warp go on whose lanes have all come to one barrier. A lane waits for those in its mask.
inline bool release_warps() {
    bool released = false;
    for (unsigned first = 0; first < threads; first += 32) {
        const unsigned lanes = min(32u, threads - first);
        Fiber *warp = fibers + first, *seen = nullptr;
        uint64_t there = 0;
        bool whole = true;
        for (unsigned lane = 0; lane < lanes && whole; ++lane) {
            Fiber &fiber = warp[lane];
            if (fiber.wait != AT_WARP) continue;
            if (seen == nullptr || fiber.line != seen->line || fiber.file != seen->file)
                there = lanes_with(warp, lanes, fiber);
            seen = &fiber;
            whole = (fiber.mask & ~there) == 0;
        }
        if (seen == nullptr || !whole) continue;
        for (unsigned lane = 0; lane < lanes; ++lane) {
            if (warp[lane].wait != AT_WARP) continue;
            warp_seen[first / 32][lane] = warp[lane].given;
            warp[lane].wait = RUNS;
        }
        released = true;
    }
    return released;
}

inline bool release_block() {
    for (unsigned n = 0; n < threads; ++n)
        if (fibers[n].wait != AT_BLOCK || fibers[n].line != fibers[0].line ||
            fibers[n].file != fibers[0].file)
            return false;
    block_count = 0;
    for (unsigned n = 0; n < threads; ++n) {
        block_count += fibers[n].given != 0;
        fibers[n].wait = RUNS;
    }
    block_any = block_count > 0;
    block_all = block_count == (int)threads;
    return true;
}

// Say which thread waits for ever; every fiber then begins anew.
inline const char *divergent(const char *kernel) {
    for (unsigned n = threads; n-- > 0;) {
        fibers[n].entered = false;
        if (fibers[n].wait == AT_BLOCK || fibers[n].wait == AT_WARP)
            snprintf(message, sizeof message,
                     "%s: divergent barrier, line %d: block (%u, %u, %u), thread (%u, %u, %u)",
                     kernel, fibers[n].line, blockIdx.x, blockIdx.y, blockIdx.z,
                     fibers[n].thread.x, fibers[n].thread.y, fibers[n].thread.z);
    }
    return message;
}

// Numbers in order, or shuffled by xorshift where there is a state.
inline void arrange(std::vector<unsigned> &numbers, uint64_t &state) {
    if (state == 0) return;
    for (size_t n = numbers.size(); n > 1; --n) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::swap(numbers[n - 1], numbers[state % n]);
    }
}

inline std::vector<unsigned> counted(unsigned n) {
    std::vector<unsigned> numbers(n);
    for (unsigned i = 0; i < n; ++i) numbers[i] = i;
    return numbers;
}

// Run every block; null, or what went wrong.
inline const char *run(const char *kernel, const unsigned *shape, unsigned seed) {
    uint64_t state = seed * 0x9E3779B97F4A7C15;  // zero for zero
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    threads = blockDim.x * blockDim.y * blockDim.z;
    make_fibers();
    order = counted(threads);
    std::vector<unsigned> blocks = counted(gridDim.x * gridDim.y * gridDim.z);
    arrange(blocks, state);
    for (unsigned block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y,
                    block / gridDim.x / gridDim.y};
        ++block_serial;
        unsigned done = 0;
        for (unsigned n = 0; n < threads; ++n) fibers[n].wait = RUNS;
        while (done < threads) {
            arrange(order, state);
            give_turns();
            done = 0;
            for (unsigned n = 0; n < threads; ++n) done += fibers[n].wait == DONE;
            if (done < threads && !release_warps() && !release_block()) return divergent(kernel);
        }
    }
    return nullptr;
}

template <typename... P, size_t... I>
void call(void (*kernel)(P...), std::index_sequence<I...>) {
    kernel(*(std::remove_const_t<P> *)arguments[I]...);
}

template <typename... P>
void call(void (*kernel)(P...)) {
    call(kernel, std::index_sequence_for<P...>{});
}

inline int block_vote(int value, const char *file, int line, const int &answer) {
    current->given = value != 0;
    wait_at(AT_BLOCK, file, line);
    return answer;
}

template <typename V>
V exchange(unsigned mask, V value, int lane, const char *file, int line) {
    const unsigned thread = current - fibers, lanes = min(32u, threads - (thread & ~31u));
    current->given = 0;
    memcpy(&current->given, &value, sizeof value);
    current->mask = mask & (~0u >> (32 - lanes));
    wait_at(AT_WARP, file, line);
    if (lane < 0 || lane > 31) return value;
    V seen;
    memcpy(&seen, &warp_seen[thread / 32][lane], sizeof seen);
    return seen;
}

inline int lane_id() { return (current - fibers) & 31; }

inline unsigned ballot(unsigned mask, int value, const char *file, int line) {
    exchange(mask, value, -1, file, line);
    const unsigned warp = (current - fibers) / 32;
    unsigned found = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (current->mask >> lane & 1) found |= (unsigned)(warp_seen[warp][lane] != 0) << lane;
    return found;
}

}  // namespace on_cpu

#define __syncthreads() on_cpu::block_vote(0, __FILE__, __LINE__, on_cpu::block_any)
#define __syncthreads_or(p) on_cpu::block_vote(p, __FILE__, __LINE__, on_cpu::block_any)
#define __syncthreads_and(p) on_cpu::block_vote(p, __FILE__, __LINE__, on_cpu::block_all)
#define __syncthreads_count(p) on_cpu::block_vote(p, __FILE__, __LINE__, on_cpu::block_count)
#define __syncwarp(...) on_cpu::exchange(~0u, 0, -1, __FILE__, __LINE__)
#define __shfl_sync(m, v, lane) on_cpu::exchange(m, v, lane, __FILE__, __LINE__)
#define __shfl_down_sync(m, v, d) \
    on_cpu::exchange(m, v, on_cpu::lane_id() + (d), __FILE__, __LINE__)
#define __shfl_xor_sync(m, v, d) \
    on_cpu::exchange(m, v, on_cpu::lane_id() ^ (d), __FILE__, __LINE__)
#define __ballot_sync(m, p) on_cpu::ballot(m, (p) != 0, __FILE__, __LINE__)

template <typename V>
V atomicAdd(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = old + value;
    return old;
}
template <typename V>
V atomicSub(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = old - value;
    return old;
}
template <typename V>
V atomicMax(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = max(old, (V)value);
    return old;
}
template <typename V>
V atomicMin(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = min(old, (V)value);
    return old;
}
template <typename V>
V atomicOr(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = old | value;
    return old;
}
template <typename V>
V atomicAnd(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = old & value;
    return old;
}
template <typename V>
V atomicExch(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = value;
    return old;
}
template <typename V>
V atomicCAS(V *at, std::common_type_t<V> expected, std::common_type_t<V> value) {
    const V old = *at;
    if (old == (V)expected) *at = value;
    return old;
}

inline float __fdividef(float a, float b) { return a / b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

template <typename To, typename From>
To bits_as(From x) {
    To out;
    static_assert(sizeof out == sizeof x);
    memcpy(&out, &x, sizeof out);
    return out;
}
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return bits_as<double>(x); }

// One line for each instance of a kernel.
#define VS_KERNEL(symbol, ...)                                                           \
    extern "C" const char *symbol(const unsigned *shape, unsigned seed, void **args) {   \
        on_cpu::arguments = args;                                                        \
        on_cpu::body = [] { on_cpu::call(&__VA_ARGS__); };                               \
        return on_cpu::run(#__VA_ARGS__, shape, seed);                                   \
    }
