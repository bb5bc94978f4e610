// Tiles of 8 x 8 x 16 voxels with the neighbours that stencils read; the twin of tiles.py.
#pragma once

constexpr int TILE_Z = 8, TILE_Y = 8, TILE_X = 16, ROWS = TILE_Z * TILE_Y, HALO = 3;
constexpr int VOXELS = ROWS * TILE_X;
constexpr int BLOCK_Z = TILE_Z + 2 * HALO, BLOCK_Y = TILE_Y + 2 * HALO, BLOCK_X = TILE_X + 2 * HALO;
constexpr int BLOCK = BLOCK_Z * BLOCK_Y * BLOCK_X;
constexpr int PLANE = BLOCK_Y * BLOCK_X;  // stride of a block along z

struct Voxel {
    int k, j, i;
};

// First voxel of a tile, from its number in C order.
__device__ __forceinline__ Voxel tile_origin(int tile, int ny, int nx) {
    const int across = (nx + TILE_X - 1) / TILE_X, down = (ny + TILE_Y - 1) / TILE_Y;
    const int row = tile / across;
    return {row / down * TILE_Z, row % down * TILE_Y, tile % across * TILE_X};
}

// Place of a voxel of the tile, counted in C order, in the block.
__device__ __forceinline__ int in_block(int voxel) {
    const int row = voxel / TILE_X;
    return (row / TILE_Y + HALO) * PLANE + (row % TILE_Y + HALO) * BLOCK_X + voxel % TILE_X + HALO;
}

// Place of a voxel of the tile in the field.
__device__ __forceinline__ int in_field(Voxel first, int voxel, int ny, int nx) {
    const int row = voxel / TILE_X;
    return ((first.k + row / TILE_Y) * ny + first.j + row % TILE_Y) * nx + first.i + voxel % TILE_X;
}

// The line that continues an axis of n samples: the last sample, the one before it, how far beyond.
struct Line {
    int anchor, inner, far;
};

__device__ __forceinline__ Line line_at(int at, int n) {
    if (at < 0) return {0, min(1, n - 1), -at};
    if (at >= n) return {n - 1, max(n - 2, 0), at - n + 1};
    return {at, at, 0};
}

template <typename T>
__device__ __forceinline__ T go_on(T anchor, T inner, int far) {
    return anchor + T(far) * (anchor - inner);
}

// Samples beyond the faces lie on the straight line through the last two, along x, then y, then z:
// a clamped index would bend every wall that leaves the box. An axis of one sample is constant.
template <typename T>
__device__ T beyond_x(const T *row, Line x) {
    return x.far == 0 ? row[x.anchor] : go_on(row[x.anchor], row[x.inner], x.far);
}

template <typename T>
__device__ T beyond_y(const T *plane, Line y, Line x, int nx) {
    const T anchor = beyond_x(plane + y.anchor * nx, x);
    return y.far == 0 ? anchor : go_on(anchor, beyond_x(plane + y.inner * nx, x), y.far);
}

template <typename T>
__device__ T beyond(const T *phi, int k, int j, int i, int nz, int ny, int nx) {
    const Line z = line_at(k, nz), y = line_at(j, ny), x = line_at(i, nx);
    const T anchor = beyond_y(phi + z.anchor * ny * nx, y, x, nx);
    if (z.far == 0) return anchor;
    return go_on(anchor, beyond_y(phi + z.inner * ny * nx, y, x, nx), z.far);
}

__device__ __forceinline__ bool inside_box(Voxel first, int nz, int ny, int nx) {
    return min(first.k, min(first.j, first.i)) >= HALO && first.k + TILE_Z + HALO <= nz &&
           first.j + TILE_Y + HALO <= ny && first.i + TILE_X + HALO <= nx;
}

// Load a tile and its neighbours; beyond the faces straight on, or the nearest sample. No barrier.
template <bool STRAIGHT, typename T>
__device__ void load_block(const T *phi, Voxel first, int nz, int ny, int nx, T *block) {
    const bool free = inside_box(first, nz, ny, nx);
    for (int n = threadIdx.x; n < BLOCK; n += blockDim.x) {
        const int row = n / BLOCK_X;
        const int k = first.k - HALO + row / BLOCK_Y, j = first.j - HALO + row % BLOCK_Y;
        const int i = first.i - HALO + n % BLOCK_X;
        if (free)
            block[n] = phi[(k * ny + j) * nx + i];
        else if (STRAIGHT)
            block[n] = beyond(phi, k, j, i, nz, ny, nx);
        else
            block[n] = phi[(clamped(k, 0, nz - 1) * ny + clamped(j, 0, ny - 1)) * nx +
                           clamped(i, 0, nx - 1)];
    }
}

// List the voxels of a tile whose bits are set, in C order; return their number. Barriers before
// and after: whatever was written to shared memory before the call can be read after it.
__device__ __forceinline__ int list_active(const unsigned short *bits, unsigned short *list) {
    VS_SHARED(int, count, [ROWS]);
    for (int row = threadIdx.x; row < ROWS; row += blockDim.x) count[row] = __popc(bits[row]);
    __syncthreads();
    int total = 0;
    for (int row = 0; row < ROWS; ++row) total += count[row];
    for (int row = threadIdx.x; row < ROWS; row += blockDim.x) {
        int at = 0;
        for (int before = 0; before < row; ++before) at += count[before];
        for (unsigned mask = bits[row]; mask != 0; mask &= mask - 1)
            list[at++] = (unsigned short)(row * TILE_X + __ffs(mask) - 1);
    }
    __syncthreads();
    return total;
}
