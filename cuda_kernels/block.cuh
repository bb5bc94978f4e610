// What the threads of a block find together. Blocks have a multiple of 32 threads, along x.
#pragma once

enum { CHUNKS = 512 };  // equal parts of a field or a list, each summed by one block

// The list entries of a thread: from the first one on, a step apart.
__device__ __forceinline__ int first_entry() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int entry_step() { return gridDim.x * blockDim.x; }

// Largest of the threads' values, for every thread; NaN is lost.
template <typename T>
__device__ T block_max(T value) {
    VS_SHARED(T, lane, [32]);
    for (int step = 16; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(~0u, value, step);
        value = other > value ? other : value;
    }
    if (threadIdx.x % 32 == 0) lane[threadIdx.x / 32] = value;
    __syncthreads();
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp)
        value = lane[warp] > value ? lane[warp] : value;
    __syncthreads();
    return value;
}

// Sum of the threads' values in one fixed order, for every thread.
__device__ __forceinline__ double block_sum(double value) {
    VS_SHARED(double, lane, [32]);
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0) lane[threadIdx.x / 32] = value;
    __syncthreads();
    double total = 0.0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += lane[warp];
    __syncthreads();
    return total;
}
