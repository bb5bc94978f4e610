// The reinitialisation equation with the wall pinned; the twin of reinit.py.
//
// u_t = 1 - |grad u| with u = +-phi >= 0. The few voxels beside the wall, whose differences end at the
// crossings of the grid edges, are a list (wall_arms, reinit_walls: in double, as the twin); all
// others go by tiles or by the whole field, and every kernel leaves alone what is another's.
#include "stencils.cuh"
#include "tiles.cuh"
#include "column.cuh"

template <typename T>
__device__ __forceinline__ int sign_of(T x) {
    return (x > T(0)) - (x < T(0));
}

// Whether no wall passes between a voxel of a sign and its six neighbours; on the wall it is zero.
template <typename T>
__device__ __forceinline__ bool is_open(T sign, T a, T b, T c, T d, T e, T f) {
    return sign * a > T(0) && sign * b > T(0) && sign * c > T(0) && sign * d > T(0) &&
           sign * e > T(0) && sign * f > T(0);
}

// Godunov's squared derivative of |phi| along an axis of a block or a register queue. WENO5 where
// the axis goes on and phi is inside the band on all seven samples, else ENO2, which looks past the
// band and past the faces only where that is harmless. Both are odd: the sign comes last.
template <typename T, int ORDER>
__device__ __forceinline__ T slope_sq(bool outside, T m3, T m2, T m1, T c0, T p1, T p2, T p3,
                                      bool inner, T far, T h) {
    const Differences<T> f = differences(m3, m2, m1, c0, p1, p2, p3);
    Pair<T> d;
    T scale = T(1) / (h * h);
    const T low = fmax(fabs(m3), fmax(fabs(m2), fabs(m1)));
    const T most = fmax(low, fmax(fabs(p1), fmax(fabs(p2), fabs(p3))));
    if (ORDER == 5 && inner && most < far) {
        d = weno5_sides(f, h);
        scale *= T(1.0 / 144.0);
    } else {
        d = eno2_sides(f);
    }
    return upwind_sq(d.left, d.right, outside) * scale;
}

// New value of a stage out = ca base + cb (u + dt (1 - |grad u|)), of the sign of phi.
template <typename T>
__device__ __forceinline__ T advanced(T sign, T here, T base, T g2, T dt, T ca, T cb, T least,
                                      T far) {
    const T moved = ca * sign * base + cb * (sign * here + dt * (T(1) - sqrt(g2)));
    return sign * fmin(fmax(moved, least), far);
}

// The step that a voxel away from the wall can take.
template <typename T>
__device__ __forceinline__ T open_step(T cfl, T hz, T hy, T hx) {
    return cfl / sqrt(T(1) / (hz * hz) + T(1) / (hy * hy) + T(1) / (hx * hx));
}

// Blocks that a multiprocessor shall hold: told nothing, the compiler keeps fewer registers than it
// may, and spills.
template <typename T>
constexpr int RESIDENT = sizeof(T) == 4 ? 4 : 1;

// Write one stage at the voxels of the band that are not beside the wall.
template <typename T, int ORDER>
__global__ void __launch_bounds__(256, RESIDENT<T>)
    reinit_tiles(const T *phi, const T *base, const int *tiles, const int *count,
                 const unsigned short *bits, T *out, T ca, T cb, T cfl, T far, int nz, int ny, int nx,
                 T hz, T hy, T hx) {
    VS_SHARED(T, block, [BLOCK]);
    VS_SHARED(unsigned short, list, [VOXELS]);
    const T dt = open_step(cfl, hz, hy, hx), least = T(1e-3) * min(hz, min(hy, hx));
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        load_block<false>(phi, first, nz, ny, nx, block);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const T *p = block + in_block(list[n]);
            const int row = list[n] / TILE_X, at = in_field(first, list[n], ny, nx);
            const T sign = T(sign_of(*p));
            if (sign == T(0)) out[at] = *p;
            if (!is_open(sign, p[-PLANE], p[PLANE], p[-BLOCK_X], p[BLOCK_X], p[-1], p[1])) continue;
            T g2 = T(0);
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) {
                const int s = axis == 0 ? PLANE : (axis == 1 ? BLOCK_X : 1);
                const int size = axis == 0 ? nz : (axis == 1 ? ny : nx);
                const int place = axis == 0   ? first.k + row / TILE_Y
                                  : axis == 1 ? first.j + row % TILE_Y
                                              : first.i + list[n] % TILE_X;
                g2 += slope_sq<T, ORDER>(
                    sign > T(0), p[-3 * s], p[-2 * s], p[-s], p[0], p[s], p[2 * s], p[3 * s],
                    place >= 3 && place < size - 3, far, axis == 0 ? hz : (axis == 1 ? hy : hx));
            }
            out[at] = advanced(sign, *p, base[at], g2, dt, ca, cb, least, far);
        }
        __syncthreads();
    }
}

// Write one stage at all voxels of the field that are not beside the wall.
//
// A block of 32 x 8 threads goes through the planes of a column. The samples along z are a queue in
// registers; those of the plane lie in shared memory, where each thread puts its own sample and one
// of those around. Two planes take turns, so that one barrier a plane is enough.
template <typename T, int ORDER>
__global__ void __launch_bounds__(256)
    reinit_dense(const T *phi, const T *base, T *out, T ca, T cb, T cfl, T far, int nz, int ny, int nx,
                 T hz, T hy, T hx) {
    constexpr int ROW = COLUMN_ROW;
    VS_SHARED(T, planes, [2 * COLUMN_PLANE]);
    const ColumnRole role = column_role(threadIdx.x);
    const int jobs = column_jobs(nz, ny, nx), layer = ny * nx;
    const T dt = open_step(cfl, hz, hy, hx), least = T(1e-3) * min(hz, min(hy, hx));
    for (int job = blockIdx.x; job < jobs; job += gridDim.x) {
        const Voxel first = column_origin(job, ny, nx);
        const int i = first.i + threadIdx.x % WIDE, j = first.j + threadIdx.x / WIDE;
        const int last = min(first.k + DEEP, nz);
        const bool in_box = i < nx && j < ny;
        const bool inner_y = j >= 3 && j < ny - 3, inner_x = i >= 3 && i < nx - 3;
        const int column = min(j, ny - 1) * nx + min(i, nx - 1);
        const int around = clamped(first.j + role.y, 0, ny - 1) * nx + clamped(first.i + role.x, 0, nx - 1);
        T queue[7];
#pragma unroll
        for (int m = 1; m < 7; ++m) queue[m] = phi[clamped(first.k + m - 4, 0, nz - 1) * layer + column];
        for (int k = first.k; k < last; ++k) {
#pragma unroll
            for (int m = 0; m < 6; ++m) queue[m] = queue[m + 1];
            queue[6] = phi[min(k + 3, nz - 1) * layer + column];
            T *plane = planes + (k & 1) * COLUMN_PLANE;
            plane[role.own] = queue[3];
            if (role.brings) plane[role.around] = phi[k * layer + around];
            __syncthreads();
            const T *p = plane + role.own;
            const T here = queue[3];
            const int at = k * layer + column;
            const T sign = T(sign_of(here));
            if (!in_box) continue;
            if (sign == T(0)) out[at] = here;
            if (!is_open(sign, queue[2], queue[4], p[-ROW], p[ROW], p[-1], p[1])) continue;
            T g2 = slope_sq<T, ORDER>(sign > T(0), queue[0], queue[1], queue[2], here, queue[4], queue[5],
                                      queue[6], k >= 3 && k < nz - 3, far, hz);
            g2 += slope_sq<T, ORDER>(sign > T(0), p[-3 * ROW], p[-2 * ROW], p[-ROW], here, p[ROW],
                                     p[2 * ROW], p[3 * ROW], inner_y, far, hy);
            g2 += slope_sq<T, ORDER>(sign > T(0), p[-3], p[-2], p[-1], here, p[1], p[2], p[3], inner_x,
                                     far, hx);
            out[at] = advanced(sign, here, base[at], g2, dt, ca, cb, least, far);
        }
        __syncthreads();
    }
}

// The sample some steps along an axis from voxel (k, j, i), index clamped at the faces.
template <typename T>
__device__ __forceinline__ T sample(const T *phi, int k, int j, int i, int axis, int step, int nz,
                                    int ny, int nx) {
    if (axis == 0) k = clamped(k + step, 0, nz - 1);
    if (axis == 1) j = clamped(j + step, 0, ny - 1);
    if (axis == 2) i = clamped(i + step, 0, nx - 1);
    return phi[(k * ny + j) * nx + i];
}

// Where phi vanishes between two samples of opposite sign, 0 to 1 from the first: cubic through the
// four samples where its two second differences agree, else the quadratic of the smaller one.
template <typename T>
__device__ double edge_crossing(double behind, T here, T there, double beyond) {
    const double left = behind - 2.0 * here + there, right = here - 2.0 * there + beyond;
    const double small = fmin(fabs(left), fabs(right));
    double c2 = 0.5 * minmod(left, right), c3 = 0.0;
    if (c2 != 0.0 && fmax(fabs(left), fabs(right)) < 4.0 * small) {
        c2 = 0.5 * left;
        c3 = (right - left) / 6.0;
    }
    const double c1 = (there - here) - c2 - c3;  // the difference in the type of phi, as the twin
    double low = 0.0, high = 1.0, t = here / (here - there);
    // Newton's method inside a shrinking bracket: the signs at its ends differ.
    for (int step = 0; step < 60; ++step) {
        const double value = here + t * (c1 + t * (c2 + t * c3));
        if (value != 0.0 && (value < 0.0) == (here < 0.0))
            low = t;
        else
            high = t;
        const double slope = c1 + t * (2.0 * c2 + 3.0 * t * c3);
        double moved = slope != 0.0 ? t - value / slope : -1.0;
        if (!(low < moved && moved < high)) moved = 0.5 * (low + high);
        if (fabs(moved - t) <= 1e-15 * t) break;
        t = moved;
    }
    return t;
}

// Write the distances (n, 6), mm, from listed voxels to the wall along the grid edges, sides in the
// order -z, +z, -y, +y, -x, +x; no crossing: the spacing. distance (n) becomes that of the plane
// through the crossings.
template <typename T>
__global__ void wall_arms(const T *phi, const int *voxels, const int *count, double *arms,
                          double *distance, int nz, int ny, int nx, double hz, double hy, double hx) {
    for (int e = blockIdx.x * blockDim.x + threadIdx.x; e < *count; e += gridDim.x * blockDim.x) {
        const int k = voxels[e] / (ny * nx), j = voxels[e] / nx % ny, i = voxels[e] % nx;
        const T here = phi[voxels[e]];
        double plane = 0.0;
        for (int axis = 0; axis < 3; ++axis) {
            const double h = axis == 0 ? hz : (axis == 1 ? hy : hx);
            const int at = axis == 0 ? k : (axis == 1 ? j : i);
            const int size = axis == 0 ? nz : (axis == 1 ? ny : nx);
            double nearest = infinity<double>();
            for (int up = 0; up < 2; ++up) {
                const int step = 2 * up - 1;
                arms[6 * e + 2 * axis + up] = h;
                const T there = sample(phi, k, j, i, axis, step, nz, ny, nx);
                if (sign_of(there) == sign_of(here)) continue;
                double behind = sample(phi, k, j, i, axis, -step, nz, ny, nx);
                double beyond = sample(phi, k, j, i, axis, 2 * step, nz, ny, nx);
                // A missing sample continues the field by the second difference of the others.
                const bool first = at - step < 0 || at - step >= size;
                const bool last = at + 2 * step < 0 || at + 2 * step >= size;
                const double on = beyond, back = behind;
                if (first && last) {
                    behind = 2.0 * here - there;
                    beyond = 2.0 * there - here;
                } else if (first) {
                    behind = 3.0 * here - 3.0 * there + on;
                } else if (last) {
                    beyond = back - 3.0 * here + 3.0 * there;
                }
                const double s = fmax(edge_crossing(behind, here, there, beyond), 1e-12) * h;
                arms[6 * e + 2 * axis + up] = s;
                nearest = fmin(nearest, s);
            }
            if (nearest < infinity<double>()) plane += 1.0 / (nearest * nearest);
        }
        distance[e] = 1.0 / sqrt(plane);
    }
}

// Write one stage at the listed voxels beside the wall: differences end at the crossings.
template <typename T>
__global__ void reinit_walls(const T *phi, const int *voxels, const int *count, const double *arms,
                             const T *base, T *out, double ca, double cb, double cfl, double far,
                             int nz, int ny, int nx, double hz, double hy, double hx) {
    for (int e = blockIdx.x * blockDim.x + threadIdx.x; e < *count; e += gridDim.x * blockDim.x) {
        const int v = voxels[e], k = v / (ny * nx), j = v / nx % ny, i = v % nx;
        const double here = phi[v], sign = here < 0.0 ? -1.0 : 1.0;
        if (here == 0.0) {
            out[v] = T(0);
            continue;
        }
        double g2 = 0.0, rate = 0.0, shortest = infinity<double>();
        for (int axis = 0; axis < 3; ++axis) {
            const double h = axis == 0 ? hz : (axis == 1 ? hy : hx);
            const double below = arms[6 * e + 2 * axis], above = arms[6 * e + 2 * axis + 1];
            const double m2 = sign * sample(phi, k, j, i, axis, -2, nz, ny, nx);
            const double m1 = sign * sample(phi, k, j, i, axis, -1, nz, ny, nx);
            const double p1 = sign * sample(phi, k, j, i, axis, 1, nz, ny, nx);
            const double p2 = sign * sample(phi, k, j, i, axis, 2, nz, ny, nx);
            const double c0 = sign * here, over = 1.0 / (h * h);
            const double middle = (m1 + p1 - 2.0 * c0) * over;
            double left = m1 >= 0.0 ? (c0 - m1) / h : c0 / below;
            double right = p1 >= 0.0 ? (p1 - c0) / h : -c0 / above;
            left += 0.5 * below * minmod((m2 - 2.0 * m1 + c0) * over, middle);
            right -= 0.5 * above * minmod((p2 - 2.0 * p1 + c0) * over, middle);
            const double arm = fmin(below, above);
            g2 += upwind_sq(left, right, true);
            rate += 1.0 / (arm * arm);
            shortest = fmin(shortest, arm);
        }
        const double dt = cfl / sqrt(rate);
        out[v] = (T)advanced(sign, here, (double)base[v], g2, dt, ca, cb, 1e-3 * shortest, far);
    }
}
