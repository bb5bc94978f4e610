// Operations on a list of band voxels; the twin of wall.py, one thread for each list entry. How long
// the list is stands on the device.
#include "stencils.cuh"
#include "block.cuh"

// Whether a voxel lies in the band that closest points were found for.
__device__ __forceinline__ bool in_band(const short *layer, int v) { return layer[v] > 0; }

// Count, for each chunk of the field, the band's voxels within the core and beyond: (2, CHUNKS).
__global__ void count_band(const short *layer, const double *distance, double core_mm, int *counts,
                           int n) {
    const int size = (n + CHUNKS - 1) / CHUNKS;
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        double core = 0.0, rest = 0.0;
        for (int m = threadIdx.x; m < size && chunk * size + m < n; m += blockDim.x) {
            const int v = chunk * size + m;
            const bool deep = in_band(layer, v) && distance[v] <= core_mm;
            core += deep ? 1.0 : 0.0;
            rest += in_band(layer, v) && !deep ? 1.0 : 0.0;
        }
        core = block_sum(core);
        rest = block_sum(rest);
        if (threadIdx.x > 0) continue;
        counts[chunk] = (int)core;
        counts[CHUNKS + chunk] = (int)rest;
    }
}

// How many threads of the block before this one hold true; total: how many of all.
__device__ __forceinline__ int place_in_block(bool held, int &total) {
    VS_SHARED(int, found, [32]);
    const unsigned lanes = __ballot_sync(~0u, held), warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) found[warp] = __popc(lanes);
    __syncthreads();
    int before = __popc(lanes & ((1u << threadIdx.x % 32) - 1));
    total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) {
        before += w < warp ? found[w] : 0;
        total += found[w];
    }
    __syncthreads();
    return before;
}

// Sum of entries first .. last - 1, for every thread.
__device__ __forceinline__ int sum_of_counts(const int *counts, int first, int last) {
    double sum = 0.0;
    for (int c = first + threadIdx.x; c < last; c += blockDim.x) sum += counts[c];
    return (int)block_sum(sum);
}

// List the band in memory order, the core first: voxels as numbers (n,) and as (n, 3), their closest
// points' offsets and the distance field there; label counts the list's entries from 1, 0 beyond it.
// size = {entries, entries of the core, entries that there should be}: what has no room is left out.
template <typename T>
__global__ void list_band(const short *layer, const double *distance, const float *offset,
                          const T *field, const int *counts, double core_mm, int room, int *size,
                          int *label, int *voxels, int *index, float *near, double *phi, int nz,
                          int ny, int nx) {
    const int n = nz * ny * nx, each = (n + CHUNKS - 1) / CHUNKS;
    const int core = sum_of_counts(counts, 0, CHUNKS);
    const int all = core + sum_of_counts(counts, CHUNKS, 2 * CHUNKS);
    if (first_entry() == 0) {
        size[0] = min(all, room);
        size[1] = min(core, room);
        size[2] = all;
    }
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        int at[2] = {sum_of_counts(counts, 0, chunk),
                     core + sum_of_counts(counts, CHUNKS, CHUNKS + chunk)};
        const int last = min((chunk + 1) * each, n);
        for (int base = chunk * each; base < last; base += blockDim.x) {
            const int v = base + threadIdx.x;
            const bool listed = v < last && in_band(layer, v);
            const bool deep = listed && distance[v] <= core_mm;
            int deeper, others;
            const int a = at[0] + place_in_block(deep, deeper);
            const int b = at[1] + place_in_block(listed && !deep, others);
            const int e = deep ? a : b;
            at[0] += deeper;
            at[1] += others;
            if (v < last) label[v] = listed && e < room ? e + 1 : 0;
            if (!listed || e >= room) continue;
            voxels[e] = v;
            index[3 * e] = v / (ny * nx);
            index[3 * e + 1] = v / nx % ny;
            index[3 * e + 2] = v % nx;
            for (int axis = 0; axis < 3; ++axis) near[3 * e + axis] = offset[3 * v + axis];
            phi[e] = field[v];
        }
    }
}

// Hessian of phi at the voxel, or beside it at a face of the box: clamped neighbours would invent a
// bend there. Then the three axes' mixed derivatives zy, zx, yx.
template <typename T>
__device__ void second_differences(const T *phi, int k, int j, int i, int nz, int ny, int nx,
                                   double hz, double hy, double hx, double *hessian) {
    k = min(max(k, 1), max(nz - 2, 0));
    j = min(max(j, 1), max(ny - 2, 0));
    i = min(max(i, 1), max(nx - 2, 0));
    const T *p = phi + (k * ny + j) * nx + i;
    const int za = k > 0 ? -ny * nx : 0, zb = k < nz - 1 ? ny * nx : 0;
    const int ya = j > 0 ? -nx : 0, yb = j < ny - 1 ? nx : 0;
    const int xa = i > 0 ? -1 : 0, xb = i < nx - 1 ? 1 : 0;
    const double here = 2.0 * p[0];
    hessian[0] = (p[zb] - here + p[za]) / (hz * hz);
    hessian[1] = (p[yb] - here + p[ya]) / (hy * hy);
    hessian[2] = (p[xb] - here + p[xa]) / (hx * hx);
    hessian[3] = (p[zb + yb] - p[zb + ya] - p[za + yb] + p[za + ya]) / (4.0 * hz * hy);
    hessian[4] = (p[zb + xb] - p[zb + xa] - p[za + xb] + p[za + xa]) / (4.0 * hz * hx);
    hessian[5] = (p[yb + xb] - p[yb + xa] - p[ya + xb] + p[ya + xa]) / (4.0 * hy * hx);
}

// Slope along an axis of n samples and a stride between the neighbours that lie in the box.
template <typename T>
__device__ __forceinline__ double slope_along(const T *p, int at, int n, int stride, double h) {
    const int low = at > 0, high = at < n - 1;
    return (p[high * stride] - p[-low * stride]) / (max(low + high, 1) * h);
}

// Write unit normals (n, 3: z, y, x), mean curvature and blur bend at listed voxels.
template <typename T>
__global__ void wall_geometry(const T *phi, const int *index, double *normal, double *kappa,
                              double *bend, const int *count, int nz, int ny, int nx, double hz,
                              double hy, double hx) {
    const double cap = 2.0 / min(hz, min(hy, hx));
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const int k = index[3 * e], j = index[3 * e + 1], i = index[3 * e + 2];
        const T *p = phi + (k * ny + j) * nx + i;
        double gz = slope_along(p, k, nz, ny * nx, hz), gy = slope_along(p, j, ny, nx, hy);
        double gx = slope_along(p, i, nx, 1, hx);
        const double norm = max(sqrt(gz * gz + gy * gy + gx * gx), 1e-6);
        gz /= norm;
        gy /= norm;
        gx /= norm;
        normal[3 * e] = gz;
        normal[3 * e + 1] = gy;
        normal[3 * e + 2] = gx;
        double m[6];
        second_differences(phi, k, j, i, nz, ny, nx, hz, hy, hx, m);
        double along = m[0] * gz * gz + m[1] * gy * gy + m[2] * gx * gx;
        along += 2.0 * (m[3] * gz * gy + m[4] * gz * gx + m[5] * gy * gx);
        // The Hessian of a distance divided by |grad phi| is the shape operator.
        kappa[e] = clamped((m[0] + m[1] + m[2] - along) / norm, -cap, cap);
        const double mz = hz * hz * gz, my = hy * hy * gy, mx = hx * hx * gx;
        const double across = max(mz * gz + my * gy + mx * gx, 1e-20);
        double blurred = m[0] * mz * mz + m[1] * my * my + m[2] * mx * mx;
        blurred += 2.0 * (m[3] * mz * my + m[4] * mz * mx + m[5] * my * mx);
        bend[e] = (m[0] * hz * hz + m[1] * hy * hy + m[2] * hx * hx - blurred / across) / norm;
    }
}

// Write the blurred lumen fraction and its derivative with the outward displacement.
__global__ void blurred_occupancy(const double *phi, const double *normal, const double *bend,
                                  const double *psf, double *inside, double *slope,
                                  const int *count, double hz, double hy, double hx) {
    const double width = *psf * *psf + 1.0 / 12.0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double z = normal[3 * e] * hz, y = normal[3 * e + 1] * hy, x = normal[3 * e + 2] * hx;
        const double s = sqrt(max(width * (z * z + y * y + x * x), 1e-20));
        // Beyond half of s the expansion in the curvature no longer holds.
        const double shift = clamped(0.5 * width * bend[e], -0.5 * s, 0.5 * s);
        const double a = (phi[e] + shift) / s;
        inside[e] = 0.5 * erfc(a * 0.70710678118654752440);
        slope[e] = exp(-0.5 * a * a) / (2.50662827463100050242 * s);
    }
}

// Write the list entries of the six face neighbours on the same wall, the own one elsewhere.
__global__ void wall_neighbours(const int *label, const int *index, const double *normal,
                                unsigned *table, const int *count, int nz, int ny, int nx) {
    const int n = *count;
    for (int e = first_entry(); e < n; e += entry_step()) {
        const double *own = normal + 3 * e;
        for (int side = 0; side < 6; ++side) {
            const int step = 2 * (side % 2) - 1;
            const int c = index[3 * e] + (side / 2 == 0 ? step : 0);
            const int b = index[3 * e + 1] + (side / 2 == 1 ? step : 0);
            const int a = index[3 * e + 2] + (side / 2 == 2 ? step : 0);
            int m = -1;
            if (min(c, min(b, a)) >= 0 && c < nz && b < ny && a < nx)
                m = label[(c * ny + b) * nx + a] - 1;
            if (m >= n) m = -1;
            if (m >= 0) {
                const double *other = normal + 3 * m;
                const double cosine = own[0] * other[0] + own[1] * other[1] + own[2] * other[2];
                m = cosine > 0.3 ? m : -1;
            }
            table[6 * e + side] = m >= 0 ? m : e;
        }
    }
}

// Write the entry, below core, of the voxel that holds each closest point; -1: none.
__global__ void wall_owner(const int *label, const int *index, const float *offset, const int *core,
                           int *owner, const int *count, int nz, int ny, int nx) {
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const int k = clamped((int)rint(index[3 * e] + (double)offset[3 * e]), 0, nz - 1);
        const int j = clamped((int)rint(index[3 * e + 1] + (double)offset[3 * e + 1]), 0, ny - 1);
        const int i = clamped((int)rint(index[3 * e + 2] + (double)offset[3 * e + 2]), 0, nx - 1);
        const int m = label[(k * ny + j) * nx + i] - 1;
        owner[e] = m < *core ? m : -1;
    }
}

// Trilinear samples at closest points of values known at the voxels labelled 1, 2, ...
__global__ void sample_listed(const int *label, const double *values, const int *index,
                              const float *offset, const double *beyond, double *out,
                              const int *count, const int *n_values, int nz, int ny, int nx) {
    const double elsewhere = *beyond;
    const int known = *n_values;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double z = clamped(index[3 * e] + (double)offset[3 * e], 0.0, nz - 1.0);
        const double y = clamped(index[3 * e + 1] + (double)offset[3 * e + 1], 0.0, ny - 1.0);
        const double x = clamped(index[3 * e + 2] + (double)offset[3 * e + 2], 0.0, nx - 1.0);
        const int k = (int)z, j = (int)y, i = (int)x;
        double total = 0.0;
        for (int c = k; c < min(k + 2, nz); ++c)
            for (int b = j; b < min(j + 2, ny); ++b)
                for (int a = i; a < min(i + 2, nx); ++a) {
                    const int m = label[(c * ny + b) * nx + a];
                    const double weight = (1.0 - fabs(z - c)) * (1.0 - fabs(y - b)) * (1.0 - fabs(x - a));
                    total += weight * (m > 0 && m <= known ? values[m - 1] : elsewhere);
                }
        out[e] = total;
    }
}

// Write listed values into a field.
template <typename V, typename T>
__global__ void scatter(const int *index, const V *values, T *out, const int *count, int ny, int nx) {
    for (int e = first_entry(); e < *count; e += entry_step())
        out[(index[3 * e] * ny + index[3 * e + 1]) * nx + index[3 * e + 2]] = (T)values[e];
}

// Write the weighted moments (1, P, P^2, I, I P) of the voxels labelled 1, 2, ... in blocks of
// lz x ly x lx voxels, (blocks, 5): one thread a block, in memory order, so that the sums are always
// the same.
__global__ void block_sums(const int *label, const double *weight, const double *inside,
                           const double *image, double *sums, int nz, int ny, int nx, int lz, int ly,
                           int lx) {
    const int mz = (nz + lz - 1) / lz, my = (ny + ly - 1) / ly, mx = (nx + lx - 1) / lx;
    const int blocks = mz * my * mx;
    for (int m = first_entry(); m < blocks; m += entry_step()) {
        const int z = m / (my * mx) * lz, y = m / mx % my * ly, x = m % mx * lx;
        double sum[5] = {0.0, 0.0, 0.0, 0.0, 0.0};
        for (int k = z; k < min(z + lz, nz); ++k)
            for (int j = y; j < min(y + ly, ny); ++j)
                for (int i = x; i < min(x + lx, nx); ++i) {
                    const int e = label[(k * ny + j) * nx + i] - 1;
                    if (e < 0) continue;
                    const double w = weight[e], p = inside[e];
                    sum[0] += w;
                    sum[1] += w * p;
                    sum[2] += w * p * p;
                    sum[3] += w * image[e];
                    sum[4] += w * image[e] * p;
                }
        for (int which = 0; which < 5; ++which) sums[m * 5 + which] = sum[which];
    }
}

// Write the samples of an image at listed voxels.
__global__ void gather(const float *image, const int *voxels, double *out, const int *count) {
    for (int e = first_entry(); e < *count; e += entry_step()) out[e] = image[voxels[e]];
}

// Chain the entries of each owner, in any order: head and next count them from 1, 0 ends a chain.
// head starts at zero.
__global__ void chain_owners(const int *owner, int *head, int *next, const int *count) {
    for (int e = first_entry(); e < *count; e += entry_step())
        if (owner[e] >= 0) next[e] = atomicExch(head + owner[e], e + 1);
}

// Write each owner's sums of two values over its chain, which is brought into the order of the list
// first: sums in one order are always the same. The twin is numpy.bincount.
__global__ void chain_sums(int *head, int *next, const double *a, const double *b, double *sum_a,
                           double *sum_b, const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) {
        int e = head[m];
        head[m] = 0;
        while (e != 0) {
            const int following = next[e - 1];
            int *at = head + m;
            while (*at != 0 && *at < e) at = next + *at - 1;
            next[e - 1] = *at;
            *at = e;
            e = following;
        }
        double first = 0.0, second = 0.0;
        for (e = head[m]; e != 0; e = next[e - 1]) {
            first += a[e - 1];
            second += b[e - 1];
        }
        sum_a[m] = first;
        sum_b[m] = second;
    }
}
