// Conjugate gradients along a wall; the twin of sheet.py, an iteration as four launches.
//
// Sums are taken by each block in a fixed order, stored by block, and added up by every block of the
// next launch in the same order, so that no launch waits for another inside itself. How many voxels the
// wall has stands on the device. rz[i] is the
// squared residual after i iterations; once it is below goal every launch returns at once.
#include "stencils.cuh"
#include "block.cuh"


// Minus the Laplacian along the wall; scale holds l^2/h^2 per axis.
__device__ __forceinline__ double bend_at(const unsigned *table, const double *values, int n,
                                          const double *scale) {
    const double here = values[n];
    const unsigned *beside = table + 6 * n;
    const double z = (here - values[beside[0]]) + (here - values[beside[1]]);
    const double y = (here - values[beside[2]]) + (here - values[beside[3]]);
    const double x = (here - values[beside[4]]) + (here - values[beside[5]]);
    return scale[0] * z + scale[1] * y + scale[2] * x;
}

__device__ __forceinline__ double diagonal_at(const unsigned *table, const double *weight, int n,
                                              const double *scale, bool twice) {
    double links = 0.0, squares = 0.0;
    for (int side = 0; side < 6; ++side) {
        const unsigned m = table[6 * n + side];
        if (m == (unsigned)n) continue;
        links += scale[side / 2];
        squares += weight[m] * scale[side / 2] * scale[side / 2];
    }
    return twice ? weight[n] * links * links + squares : links;
}

// Sum of what the blocks of the launch before left behind.
__device__ __forceinline__ double sum_of(const double *parts) {
    double sum = 0.0;
    for (int block = threadIdx.x; block < gridDim.x; block += blockDim.x) sum += parts[block];
    return block_sum(sum);
}

// Write K values.
__global__ void bend_along_wall(const unsigned *table, const double *scale, const double *values,
                                double *out, const int *count) {
    const int n = *count;
    for (int m = first_entry(); m < n; m += entry_step()) out[m] = bend_at(table, values, m, scale);
}

// Begin: p is the start, and the residual of no iteration counts as above the goal.
__global__ void sheet_reset(const double *x, double *p, double *rz, double *goal,
                            const int *count) {
    const int n = *count;
    for (int m = first_entry(); m < n; m += entry_step()) p[m] = x[m];
    if (first_entry() != 0) return;
    rz[0] = 0.0;
    *goal = -1.0;
}

// Before the first iteration: the residual of the start, the preconditioner, and the sums of the
// squared residual and of the squared goal. q holds the system applied to the start.
__global__ void sheet_start(const unsigned *table, const double *scale, const double *precision,
                            const double *weight, const double *rhs, const double *q, double *r,
                            double *diagonal, double *parts, double *goals, double tolerance,
                            bool twice, const int *count) {
    const int n = *count;
    double sum = 0.0, goal = 0.0;
    for (int m = first_entry(); m < n; m += entry_step()) {
        diagonal[m] = precision[m] + diagonal_at(table, weight, m, scale, twice);
        r[m] = rhs[m] - q[m];
        sum += r[m] * r[m] / diagonal[m];
        goal += tolerance * rhs[m] * (tolerance * rhs[m]) / diagonal[m];
    }
    sum = block_sum(sum);
    goal = block_sum(goal);
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = sum;
        goals[blockIdx.x] = goal;
    }
}

// middle = weight K p, of the system with K twice.
__global__ void sheet_bend(const unsigned *table, const double *scale, const double *weight,
                           const double *p, double *middle, const double *rz, const double *goal,
                           int i, const int *count) {
    const int n = *count;
    if (rz[i] <= *goal) return;
    for (int m = first_entry(); m < n; m += entry_step())
        middle[m] = weight[m] * bend_at(table, p, m, scale);
}

// q = precision p + K bent, and the sum of p q; bent is p, or middle where K stands twice.
__global__ void sheet_system(const unsigned *table, const double *scale, const double *precision,
                             const double *p, const double *bent, double *q, double *parts,
                             const double *rz, const double *goal, int i,
                             const int *count) {
    const int n = *count;
    if (rz[i] <= *goal) return;
    double curve = 0.0;
    for (int m = first_entry(); m < n; m += entry_step()) {
        q[m] = precision[m] * p[m] + bend_at(table, bent, m, scale);
        curve += p[m] * q[m];
    }
    curve = block_sum(curve);
    if (threadIdx.x == 0) parts[blockIdx.x] = curve;
}

// x and r move along p; the sum of the squared residual.
__global__ void sheet_step(const double *p, const double *q, const double *diagonal,
                           const double *curves, double *x, double *r, double *parts,
                           const double *rz, const double *goal, int i,
                             const int *count) {
    const int n = *count;
    if (rz[i] <= *goal) return;
    const double step = rz[i] / sum_of(curves);
    double sum = 0.0;
    for (int m = first_entry(); m < n; m += entry_step()) {
        x[m] += step * p[m];
        r[m] -= step * q[m];
        sum += r[m] * r[m] / diagonal[m];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Turn p into the next direction and write rz[i + 1]; i = -1 begins, and writes goal as well.
__global__ void sheet_turn(const double *r, const double *diagonal, const double *parts,
                           const double *goals, double *p, double *rz, double *goal, int i,
                             const int *count) {
    const int n = *count;
    const bool begins = i < 0;
    if (!begins && rz[i] <= *goal) {
        if (first_entry() == 0) rz[i + 1] = rz[i];
        return;
    }
    const double now = sum_of(parts), ratio = begins ? 0.0 : now / rz[i];
    for (int m = first_entry(); m < n; m += entry_step())
        p[m] = r[m] / diagonal[m] + (begins ? 0.0 : ratio * p[m]);
    const double wanted = begins ? sum_of(goals) : 0.0;
    if (first_entry() != 0) return;
    rz[i + 1] = now;
    if (begins) *goal = wanted;
}
