// Tricubic Lagrange interpolation with gradient and Hessian, in voxels; the twin of tricubic.py.
//
// T is the type of the field, R that of the arithmetic.
#pragma once

template <typename R>
struct Jet {
    R value, z, y, x, zz, yy, xx, zy, zx, yx;
};

template <typename R>
struct Weights {
    R value[4], slope[4], bend[4];
};

// Weights of samples at -3/2, -1/2, 1/2, 3/2 for value, slope and bend of their cubic at s.
template <typename R>
__device__ __forceinline__ Weights<R> cubic_weights(R s) {
    const R q = s * s - R(0.25), r = s * s - R(2.25), t = R(2) * s, sixth = R(1.0 / 6.0);
    const R a = R(1.5) - s, b = R(1.5) + s, c = R(0.5) - s, d = R(0.5) + s;
    return {{q * a * sixth, r * c * R(-0.5), r * d * R(-0.5), q * b * sixth},
            {(t * a - q) * sixth, (t * c - r) * R(-0.5), (t * d + r) * R(-0.5), (t * b + q) * sixth},
            {c, R(3) * s - R(0.5), R(-0.5) - R(3) * s, d}};
}

// First of the four samples about an offset from voxel at, and the place s between them. An offset
// on a grid plane belongs to two cells; lower chooses.
template <typename R>
struct Cell {
    int first;
    R s;
};

template <typename R>
__device__ __forceinline__ Cell<R> cell(R o, int at, int n, bool lower) {
    int below = (int)floor(o);
    if (lower && below == o) --below;
    const int first = clamped(at + below - 1, 0, max(n - 4, 0));
    return {first, o - (R)(first - at) - R(1.5)};
}

template <typename R>
__device__ __forceinline__ R dot4(const R *w, R a, R b, R c, R d) {
    return (w[0] * a + w[3] * d) + (w[1] * b + w[2] * c);
}

template <typename R>
__device__ __forceinline__ void add(Jet<R> &sum, Jet<R> jet) {
    sum = {sum.value + jet.value, sum.z + jet.z,   sum.y + jet.y,   sum.x + jet.x,   sum.zz + jet.zz,
           sum.yy + jet.yy,       sum.xx + jet.xx, sum.zy + jet.zy, sum.zx + jet.zx, sum.yx + jet.yx};
}

// Add the jet of one cell. Planes are taken in pairs, outer and inner, like the samples of a row.
template <typename T, typename R>
__device__ void add_cell(const T *phi, int nz, int ny, int nx, Cell<R> z, Cell<R> y, Cell<R> x,
                         Jet<R> &sum) {
    const Weights<R> wx = cubic_weights(x.s), wy = cubic_weights(y.s), wz = cubic_weights(z.s);
    const T *corner = phi + (z.first * ny + y.first) * nx + x.first;
    Jet<R> cell = {};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        Jet<R> both = {};
#pragma unroll
        for (int end = 0; end < 2; ++end) {
            const int c = pair == 0 ? 3 * end : 1 + end;
            if (c > 0 && nz == 1) break;
            R value[4], slope[4], bend[4];
#pragma unroll
            for (int b = 0; b < 4; ++b) {
                const T *row = corner + (c * ny + b) * nx;
                const R m = row[0], n = row[1], p = row[2], q = row[3];
                value[b] = dot4(wx.value, m, n, p, q);
                slope[b] = dot4(wx.slope, m, n, p, q);
                bend[b] = dot4(wx.bend, m, n, p, q);
            }
            const R v = dot4(wy.value, value[0], value[1], value[2], value[3]);
            const R vy = dot4(wy.slope, value[0], value[1], value[2], value[3]);
            const R vx = dot4(wy.value, slope[0], slope[1], slope[2], slope[3]);
            const R here = nz == 1 ? R(1) : wz.value[c];
            const R rise = nz == 1 ? R(0) : wz.slope[c];
            both.value += here * v;
            both.z += rise * v;
            both.y += here * vy;
            both.x += here * vx;
            both.zz += (nz == 1 ? R(0) : wz.bend[c]) * v;
            both.yy += here * dot4(wy.bend, value[0], value[1], value[2], value[3]);
            both.xx += here * dot4(wy.value, bend[0], bend[1], bend[2], bend[3]);
            both.zy += rise * vy;
            both.zx += rise * vx;
            both.yx += here * dot4(wy.slope, slope[0], slope[1], slope[2], slope[3]);
        }
        add(cell, both);
    }
    add(sum, cell);
}

template <typename R>
__device__ __forceinline__ R in_box(R o, int at, int n) {
    return clamped(o, (R)-at, (R)(n - 1 - at));
}

// Offset of a grid plane for those near it, so that no rounding error chooses the cell.
template <typename R>
__device__ __forceinline__ R snapped(R o) {
    const R plane = floor(o + R(0.5));
    return fabs(o - plane) < R(1e-9) ? plane : o;
}

// Interpolate at an offset from voxel (k, j, i).
//
// On a grid plane, where the slopes of the cells differ, their mean. Beyond the faces the field
// continues by its Taylor expansion about the nearest point of the box; where that turns the slope
// too far to be believed, no slope is returned.
template <typename T, typename R>
__device__ Jet<R> tricubic(const T *phi, int nz, int ny, int nx, int k, int j, int i, R oz, R oy,
                           R ox) {
    const R bz = in_box(oz, k, nz), by = in_box(oy, j, ny), bx = in_box(ox, i, nx);
    R z = snapped(bz), y = snapped(by), x = snapped(bx);
    Jet<R> jet = {};
    int cells = 0;
#pragma unroll 1
    for (int n = 0; n < 8; ++n) {
        const Cell<R> a = cell(z, k, nz, n & 4), b = cell(y, j, ny, n & 2), c = cell(x, i, nx, n & 1);
        if ((n & 4 && a.first == cell(z, k, nz, false).first) ||
            (n & 2 && b.first == cell(y, j, ny, false).first) ||
            (n & 1 && c.first == cell(x, i, nx, false).first))
            continue;
        add_cell(phi, nz, ny, nx, a, b, c, jet);
        ++cells;
    }
    if (cells > 1) {
        const R share = R(1) / cells;
        jet = {share * jet.value, share * jet.z,  share * jet.y,  share * jet.x,  share * jet.zz,
               share * jet.yy,    share * jet.xx, share * jet.zy, share * jet.zx, share * jet.yx};
    }
    if (bz == oz && by == oy && bx == ox) return jet;
    z = oz - bz;
    y = oy - by;
    x = ox - bx;
    const R rz = jet.zz * z + jet.zy * y + jet.zx * x;
    const R ry = jet.zy * z + jet.yy * y + jet.yx * x;
    const R rx = jet.zx * z + jet.yx * y + jet.xx * x;
    const R g2 = jet.z * jet.z + jet.y * jet.y + jet.x * jet.x;
    const bool believed = rz * rz + ry * ry + rx * rx < R(0.5) * g2;
    if (believed)
        jet.value += (jet.z + R(0.5) * rz) * z + (jet.y + R(0.5) * ry) * y + (jet.x + R(0.5) * rx) * x;
    jet.z = believed ? jet.z + rz : R(0);
    jet.y = believed ? jet.y + ry : R(0);
    jet.x = believed ? jet.x + rx : R(0);
    return jet;
}
