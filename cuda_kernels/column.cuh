// Columns of a dense field: 32 x 8 threads go through up to 64 planes.
#pragma once

constexpr int WIDE = 32, HIGH = 8, DEEP = 64;
constexpr int COLUMN_ROW = WIDE + 2 * HALO, COLUMN_PLANE = (HIGH + 2 * HALO) * COLUMN_ROW;

__device__ __forceinline__ int column_jobs(int nz, int ny, int nx) {
    return (nx + WIDE - 1) / WIDE * ((ny + HIGH - 1) / HIGH) * ((nz + DEEP - 1) / DEEP);
}

// First voxel of a column.
__device__ __forceinline__ Voxel column_origin(int job, int ny, int nx) {
    const int across = (nx + WIDE - 1) / WIDE, down = (ny + HIGH - 1) / HIGH;
    return {job / across / down * DEEP, job / across % down * HIGH, job % across * WIDE};
}

// What a thread puts into each plane: its own sample, and one of those around, y and x voxels from
// the first of the column: 192 above and below, 48 at the sides, 4 corners for mixed derivatives.
struct ColumnRole {
    int own, around, y, x;
    bool brings;
};

__device__ __forceinline__ ColumnRole column_role(int thread) {
    constexpr int ROWS_AROUND = 2 * HALO * WIDE, SIDES = 2 * HALO * HIGH;
    const int ty = thread / WIDE, tx = thread % WIDE;
    const int side = thread - ROWS_AROUND, corner = side - SIDES;
    int y = ty < HALO ? ty - HALO : ty - HALO + HIGH, x = tx;
    if (side >= 0) {
        y = side / (2 * HALO);
        x = side % (2 * HALO) < HALO ? side % (2 * HALO) - HALO : side % (2 * HALO) - HALO + WIDE;
    }
    if (corner >= 0) {
        y = corner / 2 == 0 ? -1 : HIGH;
        x = corner % 2 == 0 ? -1 : WIDE;
    }
    return {(ty + HALO) * COLUMN_ROW + tx + HALO, (y + HALO) * COLUMN_ROW + x + HALO, y, x, corner < 4};
}
