// CUDA kernels on one CPU thread: every CUDA thread is a fiber, blocks run one after the other.
//
// Shared memory is filled with NaN when a block begins. Fibers and blocks run in order (seed 0) or
// shuffled by a seed. A barrier that part of a block never reaches, or that its threads reach at
// different lines, ends the launch with a message instead of hanging.
#pragma once

#include <math.h>  // unlike <cmath> it puts every overload where CUDA has it
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
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

using std::max;
using std::min;

namespace on_cpu {

enum Wait { RUNS, AT_WARP, AT_BLOCK, DONE };

struct Fiber {
    jmp_buf at;
    bool entered;
    Wait wait;
    const char *file;
    int line;
    Dim thread;
    uint64_t given, mask;  // what it brings to a barrier, and the lanes that it waits for
    char *stack;
    void *fake;
};

static std::vector<Fiber> fibers;
static Fiber *current;
static jmp_buf scheduler;
static ucontext_t entry;
static std::function<void()> body;
static unsigned long long block_serial = 0;
static uint64_t warp_seen[32][32];  // what the lanes of each warp brought to its last barrier
static int block_any, block_all, block_count;
static void *scheduler_fake;
static const void *scheduler_stack;
static size_t scheduler_size;
static char message[512];

inline void poison(void *memory, size_t size, unsigned long long &block) {
    if (block == block_serial) return;
    memset(memory, 0xFF, size);
    block = block_serial;
}

inline __attribute__((noinline)) void to_scheduler(bool last) {
    FIBER_SWITCH(last ? nullptr : &current->fake, scheduler_stack, scheduler_size);
    _longjmp(scheduler, 1);
}

inline __attribute__((noinline)) void wait_at(Wait what, const char *file, int line) {
    current->wait = what;
    current->file = file;
    current->line = line;
    if (!_setjmp(current->at)) to_scheduler(false);
    FIBER_ARRIVE(current->fake, &scheduler_stack, &scheduler_size);
}

inline void enter() {
    FIBER_ARRIVE(nullptr, &scheduler_stack, &scheduler_size);
    body();
    current->wait = DONE;
    to_scheduler(true);
}

inline __attribute__((noinline)) void resume(Fiber &fiber) {
    current = &fiber;
    threadIdx = fiber.thread;
    if (!_setjmp(scheduler)) {
        FIBER_SWITCH(&scheduler_fake, fiber.stack, STACK);
        if (fiber.entered) _longjmp(fiber.at, 1);
        fiber.entered = true;
        ucontext_t first = entry;
        first.uc_stack.ss_sp = fiber.stack;
        first.uc_stack.ss_size = STACK;
        makecontext(&first, enter, 0);
        setcontext(&first);
    }
    FIBER_ARRIVE(scheduler_fake, nullptr, nullptr);
}

// Stacks with a page below each that cannot be touched.
inline void make_fibers(Dim block) {
    const size_t page = sysconf(_SC_PAGESIZE), each = STACK + page;
    static std::vector<char *> stacks;
    const size_t count = block.x * block.y * block.z;
    while (stacks.size() < count) {
        void *room = mmap(nullptr, each, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        mprotect(room, page, PROT_NONE);
        stacks.push_back((char *)room + page);
    }
    fibers.resize(count);
    for (unsigned n = 0; n < count; ++n) {
        Fiber &f = fibers[n];
        f.entered = false;
        f.wait = RUNS;
        f.thread = {n % block.x, n / block.x % block.y, n / block.x / block.y};
        f.stack = stacks[n];
    }
}

// Let a warp go on whose lanes have all come to one barrier. A lane waits for those in its mask.
inline bool release_warps() {
    bool released = false;
    for (size_t first = 0; first < fibers.size(); first += 32) {
        const size_t lanes = std::min<size_t>(32, fibers.size() - first);
        Fiber *warp = &fibers[first];
        bool whole = false;
        for (size_t a = 0; a < lanes; ++a) {
            if (warp[a].wait != AT_WARP) continue;
            whole = true;
            for (size_t b = 0; b < lanes; ++b)
                if (warp[a].mask >> b & 1)
                    whole &= warp[b].wait == AT_WARP && warp[b].line == warp[a].line &&
                             warp[b].file == warp[a].file;
            if (!whole) break;
        }
        if (!whole) continue;
        for (size_t a = 0; a < lanes; ++a) {
            if (warp[a].wait != AT_WARP) continue;
            warp_seen[first / 32][a] = warp[a].given;
            warp[a].wait = RUNS;
        }
        released = true;
    }
    return released;
}

inline bool release_block() {
    for (Fiber &f : fibers)
        if (f.wait != AT_BLOCK || f.line != fibers[0].line || f.file != fibers[0].file)
            return false;
    block_any = block_count = 0;
    block_all = 1;
    for (Fiber &f : fibers) {
        block_any |= f.given != 0;
        block_all &= f.given != 0;
        block_count += f.given != 0;
        f.wait = RUNS;
    }
    return true;
}

inline const char *divergent(const char *kernel) {
    for (Fiber &f : fibers)
        if (f.wait == AT_BLOCK || f.wait == AT_WARP) {
            snprintf(message, sizeof message,
                     "%s: divergent barrier, line %d: block (%u, %u, %u), thread (%u, %u, %u)",
                     kernel, f.line, blockIdx.x, blockIdx.y, blockIdx.z, f.thread.x, f.thread.y,
                     f.thread.z);
            break;
        }
    return message;
}

// Run every block; null, or what went wrong.
inline const char *run(const char *kernel, const unsigned *shape, unsigned seed) {
    std::mt19937 random(seed);
    gridDim = {shape[0], shape[1], shape[2]};
    blockDim = {shape[3], shape[4], shape[5]};
    getcontext(&entry);
    std::vector<unsigned> blocks(gridDim.x * gridDim.y * gridDim.z);
    std::iota(blocks.begin(), blocks.end(), 0u);
    if (seed) std::shuffle(blocks.begin(), blocks.end(), random);
    std::vector<unsigned> order(blockDim.x * blockDim.y * blockDim.z);
    std::iota(order.begin(), order.end(), 0u);
    for (unsigned block : blocks) {
        blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y,
                    block / gridDim.x / gridDim.y};
        ++block_serial;
        make_fibers(blockDim);
        for (;;) {
            if (seed) std::shuffle(order.begin(), order.end(), random);
            for (unsigned n : order)
                if (fibers[n].wait == RUNS) resume(fibers[n]);
            bool done = true;
            for (Fiber &f : fibers) done &= f.wait == DONE;
            if (done) break;
            if (!release_warps() && !release_block()) return divergent(kernel);
        }
    }
    return nullptr;
}

template <typename... P, size_t... I>
const char *unpack(const char *name, void (*kernel)(P...), const unsigned *shape, unsigned seed,
                   void **args, std::index_sequence<I...>) {
    body = [=] { kernel(*(std::remove_const_t<P> *)args[I]...); };
    return run(name, shape, seed);
}

template <typename... P>
const char *launch(const char *name, void (*kernel)(P...), const unsigned *shape, unsigned seed,
                   void **args) {
    return unpack(name, kernel, shape, seed, args, std::index_sequence_for<P...>{});
}

inline int block_vote(int value, const char *file, int line, const int &answer) {
    current->given = value != 0;
    wait_at(AT_BLOCK, file, line);
    return answer;
}

template <typename V>
V exchange(unsigned mask, V value, int lane, const char *file, int line) {
    const unsigned thread = current - fibers.data();
    current->given = 0;
    memcpy(&current->given, &value, sizeof value);
    current->mask = mask & (fibers.size() - (thread & ~31u) >= 32
                                ? ~0u : (1u << (fibers.size() - (thread & ~31u))) - 1);
    wait_at(AT_WARP, file, line);
    if (lane < 0 || lane > 31) return value;
    V seen;
    memcpy(&seen, &warp_seen[thread / 32][lane], sizeof seen);
    return seen;
}

inline int lane_id() { return (current - fibers.data()) & 31; }

inline unsigned ballot(unsigned mask, int value, const char *file, int line) {
    exchange(mask, value, -1, file, line);
    const unsigned warp = (current - fibers.data()) / 32;
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
    *at = std::max(old, (V)value);
    return old;
}
template <typename V>
V atomicMin(V *at, std::common_type_t<V> value) {
    const V old = *at;
    *at = std::min(old, (V)value);
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
        return on_cpu::launch(#__VA_ARGS__, &__VA_ARGS__, shape, seed, args);            \
    }
