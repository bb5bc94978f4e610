// What moves a wall by an image: means of its two sides and the speeds that they give.
#include "stencils.cuh"
#include "tiles.cuh"

// Speed [(I - outer)^2 - (I - inner)^2] / D^2 within +-1 (Chan & Vese 2001, eq. 9).
__device__ __forceinline__ double speed_between(double image, double inner, double outer) {
    const double contrast = max((inner - outer) * (inner - outer), 2.2250738585072014e-308);
    const double a = image - outer, b = image - inner;
    return clamped((a * a - b * b) / contrast, -1.0, 1.0);
}

// Speeds of the band by the means of the whole image: sums = {voxels of the lumen, their image,
// that of all voxels}.
template <typename T>
__global__ void region_speed(const float *image, const double *sums, const int *tiles,
                             const int *count, const unsigned short *bits, T *speed, int nz, int ny,
                             int nx) {
    VS_SHARED(unsigned short, list, [VOXELS]);
    const double inner = sums[1] / sums[0];
    const double outer = (sums[2] - sums[1]) / ((double)nz * ny * nx - sums[0]);
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const int at = in_field(first, list[n], ny, nx);
            speed[at] = (T)speed_between(image[at], inner, outer);
        }
        __syncthreads();
    }
}

// Sums of the band's voxels in blocks of bz x by x bx voxels, (blocks, 4): lumen voxels, their
// image, voxels of the surroundings, their image.
template <typename T>
__global__ void block_means(const float *image, const T *phi, double width, double *sums, int bz,
                            int by, int bx, int nz, int ny, int nx) {
    const int down = (ny + by - 1) / by, across = (nx + bx - 1) / bx;
    const int all = (nz + bz - 1) / bz * down * across;
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < all; n += gridDim.x * blockDim.x) {
        const int k0 = n / across / down * bz, j0 = n / across % down * by, i0 = n % across * bx;
        double lumen = 0.0, inner = 0.0, around = 0.0, outer = 0.0;
        for (int k = k0; k < min(k0 + bz, nz); ++k)
            for (int j = j0; j < min(j0 + by, ny); ++j)
                for (int i = i0; i < min(i0 + bx, nx); ++i) {
                    const int at = (k * ny + j) * nx + i;
                    if (!(fabs((double)phi[at]) < width)) continue;
                    const bool inside = phi[at] < T(0);
                    lumen += inside ? 1.0 : 0.0;
                    inner += inside ? (double)image[at] : 0.0;
                    around += inside ? 0.0 : 1.0;
                    outer += inside ? 0.0 : (double)image[at];
                }
        sums[n * 4] = lumen;
        sums[n * 4 + 1] = inner;
        sums[n * 4 + 2] = around;
        sums[n * 4 + 3] = outer;
    }
}

// Filter fields (n, channels) along an axis: weights (2 radius + 1,); beyond the faces zero, or the
// nearest sample.
template <typename T>
__global__ void filter_axis(const T *values, T *out, const double *weights, int radius, int axis,
                            int nearest, int channels, int nz, int ny, int nx) {
    const int step = axis == 0 ? ny * nx : (axis == 1 ? nx : 1);
    const int size = axis == 0 ? nz : (axis == 1 ? ny : nx);
    const int n = nz * ny * nx * channels;
    for (int m = blockIdx.x * blockDim.x + threadIdx.x; m < n; m += gridDim.x * blockDim.x) {
        const int voxel = m / channels, at = voxel / step % size;
        double sum = 0.0;
        for (int w = -radius; w <= radius; ++w) {
            const int there = clamped(at + w, 0, size - 1);
            if (nearest || there == at + w)
                sum += weights[w + radius] * (double)values[m + (there - at) * step * channels];
        }
        out[m] = (T)sum;
    }
}

// Mean of one side at a block: sums over its window, pulled to the mean of the whole band.
__device__ __forceinline__ double mean_at(const double *wide, const double *whole, int block, int side,
                                          double ridge) {
    const double mean = whole[side + 1] / max(whole[side], 1.0);
    return (wide[block * 4 + side + 1] + ridge * mean) / (wide[block * 4 + side] + ridge);
}

// Speeds of the band by the means about each voxel (Lankton & Tannenbaum 2008, eq. 6 and 7), linear
// between the centres of the blocks. wide are the filtered sums of block_means, whole (4,) their
// totals before; nb* the number of blocks, b* their size.
template <typename T>
__global__ void local_speed(const float *image, const double *wide, const double *whole, double ridge,
                            const int *tiles, const int *count, const unsigned short *bits, T *speed,
                            int nbz, int nby, int nbx, int bz, int by, int bx, int ny, int nx) {
    VS_SHARED(unsigned short, list, [VOXELS]);
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const int at = in_field(first, list[n], ny, nx);
            const double z = clamped((at / nx / ny + 0.5) / bz - 0.5, 0.0, nbz - 1.0);
            const double y = clamped((at / nx % ny + 0.5) / by - 0.5, 0.0, nby - 1.0);
            const double x = clamped((at % nx + 0.5) / bx - 0.5, 0.0, nbx - 1.0);
            const int k = (int)z, j = (int)y, i = (int)x;
            double inner = 0.0, outer = 0.0;
#pragma unroll 1
            for (int c = k; c < min(k + 2, nbz); ++c)
#pragma unroll 1
                for (int b = j; b < min(j + 2, nby); ++b)
#pragma unroll 1
                    for (int a = i; a < min(i + 2, nbx); ++a) {
                        const double w =
                            (1.0 - fabs(z - c)) * (1.0 - fabs(y - b)) * (1.0 - fabs(x - a));
                        const int block = (c * nby + b) * nbx + a;
                        inner += w * mean_at(wide, whole, block, 0, ridge);
                        outer += w * mean_at(wide, whole, block, 2, ridge);
                    }
            speed[at] = (T)speed_between(image[at], inner, outer);
        }
        __syncthreads();
    }
}
