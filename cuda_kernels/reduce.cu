// Fields cleared, copied and summed; small decisions that would otherwise need the host.
//
// Sums are taken over CHUNKS equal parts of a field, each by one block in a fixed order, and then
// over the parts: they depend neither on the grid nor on which block comes first.
#include "stencils.cuh"
#include "block.cuh"

__global__ void clear(unsigned *words, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        words[i] = 0;
}

template <typename T>
__global__ void copy(const T *source, T *out, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        out[i] = source[i];
}

// Remember how long a list is, and empty another.
__global__ void keep_count(const int *count, int *kept, int *emptied) {
    if (blockIdx.x + threadIdx.x > 0) return;
    kept[0] = count[0];
    emptied[0] = 0;
}

// Faces of the box that a voxel lies on; a plane has none along its first axis.
__device__ __forceinline__ int faces_at(int at, int nz, int ny, int nx) {
    const int i = at % nx, j = at / nx % ny, k = at / nx / ny;
    const int z = nz > 1 ? (k == 0) + (k == nz - 1) : 0;
    const int y = ny > 1 ? (j == 0) + (j == ny - 1) : 0;
    return z + y + (nx > 1 ? (i == 0) + (i == nx - 1) : 0);
}

// Write, for each chunk: the sum of (moved - earlier)^2 where |phi| < near, the number of those
// voxels, the lumen of moved in voxels (linear over the width), and its voxels in the faces. Where
// the clock says that nothing moves, phi stands for moved.
template <typename T>
__global__ void wall_sums(const T *phi, const T *moved, const T *earlier, const double *clock,
                          double near, double width, double *parts, int nz, int ny, int nx) {
    const int n = nz * ny * nx, size = (n + CHUNKS - 1) / CHUNKS;
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        double sums[4] = {0.0, 0.0, 0.0, 0.0};
        for (int m = threadIdx.x; m < size && chunk * size + m < n; m += blockDim.x) {
            const int at = chunk * size + m;
            const double now = clock[1] > 0.0 ? moved[at] : phi[at];
            if (fabs((double)phi[at]) < near) {
                const double step = now - (double)earlier[at];
                sums[0] += step * step;
                sums[1] += 1.0;
            }
            sums[2] += clamped(0.5 - now / width, 0.0, 1.0);
            if (now < 0.0) sums[3] += faces_at(at, nz, ny, nx);
        }
        for (int c = 0; c < 4; ++c) {
            const double total = block_sum(sums[c]);
            if (threadIdx.x == 0) parts[chunk * 4 + c] = total;
        }
    }
}

// Write, for each chunk: the voxels of the lumen, their sum of the image, and that of all voxels.
template <typename T>
__global__ void mean_sums(const float *image, const T *phi, double *parts, int n) {
    const int size = (n + CHUNKS - 1) / CHUNKS;
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        double sums[3] = {0.0, 0.0, 0.0};
        for (int m = threadIdx.x; m < size && chunk * size + m < n; m += blockDim.x) {
            const int at = chunk * size + m;
            const bool lumen = phi[at] < T(0);
            sums[0] += lumen ? 1.0 : 0.0;
            sums[1] += lumen ? (double)image[at] : 0.0;
            sums[2] += image[at];
        }
        for (int c = 0; c < 3; ++c) {
            const double total = block_sum(sums[c]);
            if (threadIdx.x == 0) parts[chunk * 3 + c] = total;
        }
    }
}

// Sum entries (n, columns) over n by one block: out (columns,).
__global__ void total(const double *parts, double *out, int n, int columns) {
    if (blockIdx.x > 0) return;
    for (int c = 0; c < columns; ++c) {
        double sum = 0.0;
        for (int m = threadIdx.x; m < n; m += blockDim.x) sum += parts[m * columns + c];
        sum = block_sum(sum);
        if (threadIdx.x == 0) out[c] = sum;
    }
}

// Begin a report: no speed yet, and no voxel seen by inspect_tiles.
__global__ void open_report(double *limits, unsigned long long *most, unsigned long long *least) {
    if (blockIdx.x + threadIdx.x > 0) return;
    limits[0] = limits[1] = limits[2] = 0.0;
    most[0] = 0;
    least[0] = ~0ULL;
}

// Choose the steps of a flow: clock = {dt, steps, time gone by}.
//
// limits are max |V|, max sum |u_a|/h_a and max b of the band; squares is the sum of 1/h^2, h the
// smallest spacing. The wall passes `travel` of it in at most `most` stable steps; all steps
// together take `lasting`. Nothing moves where no time is left or a limit is not finite.
__global__ void plan_steps(const double *limits, double *clock, double squares, double h, double cfl,
                           double travel, double most, double lasting) {
    if (blockIdx.x + threadIdx.x > 0) return;
    const double never = infinity<double>();
    const double rate = limits[0] * sqrt(squares) + limits[1] + 2.0 * limits[2] * squares;
    const double stable = rate > 0.0 ? cfl / rate : never;
    const double fastest = limits[0] / h + limits[1];
    double time = min(fastest > 0.0 ? travel / fastest : stable, most * stable);
    time = min(time, lasting - clock[2]);
    const bool moves = time > 0.0 && time < never && rate < never;
    const double steps = moves ? ceil(time / stable - 1e-9) : 0.0;
    clock[0] = moves ? time / steps : 0.0;
    clock[1] = steps;
    clock[2] += moves ? time : 0.0;
}

// Count the values that are not finite, those below zero, and those of at most a magnitude: (3,),
// which start at zero.
template <typename T>
__global__ void survey(const T *values, double most, int *found, int n) {
    double counts[3] = {0.0, 0.0, 0.0};
    for (int i = first_entry(); i < n; i += entry_step()) {
        const double value = values[i];
        counts[0] += fabs(value) < infinity<double>() ? 0.0 : 1.0;
        counts[1] += value < 0.0 ? 1.0 : 0.0;
        counts[2] += fabs(value) <= most ? 1.0 : 0.0;
    }
    for (int c = 0; c < 3; ++c) {
        const double total = block_sum(counts[c]);
        if (threadIdx.x == 0) atomicAdd(found + c, (int)total);
    }
}

// Make the moved wall the present one, and the present one the one before; a wall at rest stays.
template <typename T>
__global__ void accept(const T *moved, T *phi, T *before, const double *clock, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        before[i] = phi[i];
        if (clock[1] > 0.0) phi[i] = moved[i];
    }
}

// Ranks of the two middle values of a list, or, with a share, that of the largest of its smallest
// values: no fewer than one.
__global__ void set_ranks(const int *count, double share, int *ranks) {
    if (first_entry() != 0) return;
    const int last = max((int)(*count * share), 1) - 1;
    ranks[0] = share < 0.0 ? (*count - 1) / 2 : last;
    ranks[1] = share < 0.0 ? *count / 2 : last;
}

// Bits that are ordered as the numbers are.
__device__ __forceinline__ unsigned long long ordered_bits(double x) {
    const unsigned long long bits = (unsigned long long)__double_as_longlong(x);
    return bits >> 63 ? ~bits : bits | 1ULL << 63;
}

// What is known of the value of a rank after some digits: the digits, and its rank among the values
// that share them. digits (passes, 2) and left (passes, 2) hold what each pass began with, counts
// (passes, 2, 256) what it found.
struct Search {
    unsigned long long digits;
    int rank;
};

__device__ __forceinline__ Search searched(const int *ranks, const unsigned *counts,
                                           const unsigned long long *digits, const int *left,
                                           int pass, int which) {
    if (pass == 0) return {0, ranks[which]};
    Search found = {digits[2 * pass - 2 + which], left[2 * pass - 2 + which]};
    const unsigned *number = counts + (2 * pass - 2 + which) * 256;
    int digit = 0;
    while (digit < 255 && found.rank >= (int)number[digit]) found.rank -= (int)number[digit++];
    found.digits = found.digits << 8 | (unsigned)digit;
    return found;
}

// Count the next digit, of eight bits, of the values (or of their distance from a centre) that share
// the digits known so far with the values of two ranks. counts start at zero.
__global__ void rank_digit(const double *values, const double *centre, const int *count,
                           const int *ranks, unsigned *counts, unsigned long long *digits, int *left,
                           int pass) {
    VS_SHARED(unsigned long long, known, [2]);
    VS_SHARED(unsigned, here, [512]);
    if (threadIdx.x < 2) {
        const Search found = searched(ranks, counts, digits, left, pass, threadIdx.x);
        known[threadIdx.x] = found.digits;
        if (blockIdx.x == 0) {
            digits[2 * pass + threadIdx.x] = found.digits;
            left[2 * pass + threadIdx.x] = found.rank;
        }
    }
    for (int n = threadIdx.x; n < 512; n += blockDim.x) here[n] = 0;
    __syncthreads();
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const unsigned long long bits =
            ordered_bits(centre == nullptr ? values[e] : fabs(values[e] - *centre));
        for (int which = 0; which < 2; ++which)
            if (pass == 0 || bits >> (64 - 8 * pass) == known[which])
                atomicAdd(here + which * 256 + (bits >> (56 - 8 * pass) & 255), 1u);
    }
    __syncthreads();
    for (int n = threadIdx.x; n < 512; n += blockDim.x)
        if (here[n] > 0) atomicAdd(counts + 512 * pass + n, here[n]);
}

// Write the mean of the values of two ranks, after eight digits.
__global__ void rank_value(const int *ranks, const unsigned *counts, const unsigned long long *digits,
                           const int *left, double *out) {
    if (first_entry() != 0) return;
    double sum = 0.0;
    for (int which = 0; which < 2; ++which) {
        const unsigned long long bits = searched(ranks, counts, digits, left, 8, which).digits;
        sum += __longlong_as_double((long long)(bits >> 63 ? bits & ~(1ULL << 63) : ~bits));
    }
    *out = 0.5 * sum;
}
