// The narrow band as a list of tiles of a dense field; the twin of tiles.py.
//
// A block takes a tile and strides over the list, whose length stays on the device.
#include "stencils.cuh"
#include "block.cuh"
#include "tiles.cuh"

// Which of a row's voxels lie within the width, as bits.
template <typename T>
__device__ __forceinline__ unsigned row_bits(const T *row, int run, double width) {
    unsigned found = 0;
    for (int i = 0; i < run; ++i) found |= (unsigned)(fabs(row[i]) < width) << i;
    return found;
}

// List the tiles that hold a voxel with |phi| < width, in any order, with the voxels of the band and
// those of them with a face neighbour beyond it as bits of rows. count starts at zero.
template <typename T>
__global__ void collect_tiles(const T *phi, double width, int *tiles, int *count,
                              unsigned short *bits, unsigned short *rim, int nz, int ny, int nx) {
    VS_SHARED(int, slot, [1]);
    const int all = (nz + TILE_Z - 1) / TILE_Z * ((ny + TILE_Y - 1) / TILE_Y) *
                    ((nx + TILE_X - 1) / TILE_X);
    for (int tile = blockIdx.x; tile < all; tile += gridDim.x) {
        const Voxel first = tile_origin(tile, ny, nx);
        const int k = first.k + threadIdx.x / TILE_Y, j = first.j + threadIdx.x % TILE_Y;
        const int i = first.i, run = min(TILE_X, nx - i);
        const T *row = phi + (k * ny + j) * nx + i;
        const bool in_box = k < nz && j < ny;
        const unsigned inside = in_box ? row_bits(row, run, width) : 0;
        if (!__syncthreads_or(inside != 0)) continue;
        if (threadIdx.x == 0) slot[0] = atomicAdd(count, 1);
        __syncthreads();
        unsigned near = 0;
        if (inside != 0) {
            const unsigned before = i == 0 || fabs(row[-1]) < width;
            const unsigned after = i + TILE_X >= nx || fabs(row[run]) < width;
            near = (inside << 1 | before) & (inside >> 1 | after << (run - 1));
            if (k > 0) near &= row_bits(row - ny * nx, run, width);
            if (k + 1 < nz) near &= row_bits(row + ny * nx, run, width);
            if (j > 0) near &= row_bits(row - nx, run, width);
            if (j + 1 < ny) near &= row_bits(row + nx, run, width);
        }
        if (threadIdx.x == 0) tiles[slot[0]] = tile;
        bits[slot[0] * ROWS + threadIdx.x] = (unsigned short)inside;
        rim[slot[0] * ROWS + threadIdx.x] = (unsigned short)(inside & ~near);
        __syncthreads();
    }
}

// Copy the tiles and the neighbours that their stencils read.
template <typename T>
__global__ void copy_tiles(const T *source, const int *tiles, const int *count, T *out, int nz, int ny,
                           int nx) {
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        for (int n = threadIdx.x; n < BLOCK; n += blockDim.x) {
            const int k = first.k - HALO + n / PLANE, j = first.j - HALO + n / BLOCK_X % BLOCK_Y;
            const int i = first.i - HALO + n % BLOCK_X;
            if (min(k, min(j, i)) < 0 || k >= nz || j >= ny || i >= nx) continue;
            out[(k * ny + j) * nx + i] = source[(k * ny + j) * nx + i];
        }
    }
}

// |value|, infinite for NaN.
template <typename T>
__device__ __forceinline__ T magnitude(T value) {
    return fabs(value) < infinity<T>() ? fabs(value) : infinity<T>();
}

// Raise a positive number to another; their bits are ordered as they are.
__device__ __forceinline__ void raise(double *most, double value) {
    atomicMax((unsigned long long *)most, (unsigned long long)__double_as_longlong(value));
}

// Raise out to max |V|, max sum |u_a|/h_a and max |b| in the band; infinite where not finite.
template <typename T>
__global__ void largest_speeds(const T *speed, const T *velocity, const T *bend, const int *tiles,
                               const int *count, const unsigned short *bits, double *out,
                               int n_speed, int dims, int n_bend, int nz, int ny, int nx, double hz,
                               double hy, double hx) {
    VS_SHARED(unsigned short, list, [VOXELS]);
    double normal = 0.0, vector = 0.0, bent = 0.0;
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const int at = in_field(first, list[n], ny, nx);
            double sum = 0.0;
            for (int a = 0; a < dims; ++a)
                sum += fabs((double)velocity[at * dims + a]) / (a == 0 ? hx : (a == 1 ? hy : hz));
            vector = fmax(vector, magnitude(sum));
            if (n_speed > 0) normal = fmax(normal, magnitude((double)speed[n_speed > 1 ? at : 0]));
            if (n_bend > 0) bent = fmax(bent, magnitude((double)bend[n_bend > 1 ? at : 0]));
        }
        __syncthreads();
    }
    const double found[3] = {block_max(normal), block_max(vector), block_max(bent)};
    if (threadIdx.x < 3) raise(out + threadIdx.x, found[threadIdx.x]);
}

// Raise most to max |phi| of the band, infinite for NaN, and lower least to min |phi| of its rim:
// the bits of a float above the voxel that holds it, counted in C order.
template <typename T>
__global__ void inspect_tiles(const T *phi, const int *tiles, const int *count,
                              const unsigned short *bits, const unsigned short *rim,
                              unsigned long long *most, unsigned long long *least, int nz, int ny,
                              int nx) {
    VS_SHARED(unsigned short, list, [VOXELS]);
    unsigned long long high = 0, low = ~0ULL;
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const int at = in_field(first, list[n], ny, nx);
            const unsigned long long here =
                (unsigned long long)__float_as_int(magnitude((float)phi[at])) << 32 | (unsigned)at;
            high = here > high ? here : high;
            if (rim[t * ROWS + list[n] / TILE_X] >> list[n] % TILE_X & 1)
                low = here < low ? here : low;
        }
        __syncthreads();
    }
    atomicMax(most, high);
    atomicMin(least, low);
}

// Clamp phi to +- width beside the band, in the whole box.
template <typename T>
__global__ void band_clamp(T *phi, double width, int phi_size) {
    const T far = (T)width;
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < phi_size; n += gridDim.x * blockDim.x)
        phi[n] = phi[n] < -far ? -far : (phi[n] > far ? far : phi[n]);
}
