// One Runge-Kutta stage of the level-set equation on a list of tiles; the twin of advect.py.
//
// phi_t + V |grad phi| + u . grad phi = b kappa |grad phi|. A block of 256 threads loads a tile with
// its neighbours and shares out the voxels of the band, so that no lane idles beside it.
#include "stencils.cuh"
#include "tiles.cuh"
#include "column.cuh"

// One-sided derivatives at sample p along the axis of stride s.
template <typename T, int ORDER>
__device__ __forceinline__ Pair<T> pair_at(const T *p, int s, T h) {
    if (ORDER == 2) return eno2_pair(p[-2 * s], p[-s], p[0], p[s], p[2 * s], h);
    return weno5_pair(p[-3 * s], p[-2 * s], p[-s], p[0], p[s], p[2 * s], p[3 * s], h);
}

// V |grad phi| + u . grad phi of the derivatives along the axes.
template <typename T>
__device__ __forceinline__ T transport(Pair<T> z, Pair<T> y, Pair<T> x, T v, T uz, T uy, T ux) {
    const bool out = v > T(0);
    const T g2 = upwind_sq(z.left, z.right, out) + upwind_sq(y.left, y.right, out) +
                 upwind_sq(x.left, x.right, out);
    T along = uz * (uz > T(0) ? z.left : z.right);
    along += uy * (uy > T(0) ? y.left : y.right);
    along += ux * (ux > T(0) ? x.left : x.right);
    return v * sqrt(g2) + along;
}

// kappa |grad phi| at sample p, of the planes below and above as well: 19 points, |kappa| capped at
// 2/h.
template <typename T>
__device__ __forceinline__ T curvature(const T *below, const T *p, const T *above, int sy, T hz, T hy,
                                       T hx) {
    const T az = T(0.5) / hz, ay = T(0.5) / hy, ax = T(0.5) / hx, here = T(2) * p[0];
    const T z = (above[0] - below[0]) * az, y = (p[sy] - p[-sy]) * ay, x = (p[1] - p[-1]) * ax;
    const T zz = (above[0] + below[0] - here) / (hz * hz);
    const T yy = (p[sy] + p[-sy] - here) / (hy * hy);
    const T xx = (p[1] + p[-1] - here) / (hx * hx);
    const T zy = above[sy] + below[-sy] - (above[-sy] + below[sy]);
    const T zx = above[1] + below[-1] - (above[-1] + below[1]);
    const T yx = p[sy + 1] + p[-sy - 1] - (p[sy - 1] + p[-sy + 1]);
    const T mixed = z * y * zy * (az * ay) + z * x * zx * (az * ax) + y * x * yx * (ay * ax);
    const T g2 = z * z + y * y + x * x;
    const T turned =
        zz * (y * y + x * x) + yy * (z * z + x * x) + xx * (z * z + y * y) - T(2) * mixed;
    const T flattest = T(1e-30);  // square of a slope below which phi has no normal
    const T limit = T(2) / min(hz, min(hy, hx)) * sqrt(g2);
    return clamped(turned / (g2 > flattest ? g2 : flattest), -limit, limit);
}

// What moves a voxel: speed and bend have one sample for each voxel (n_speed, n_bend > 1), one for
// all, or none; velocity has dims components at each voxel, x first, or none.
template <typename T>
struct Motion {
    const T *speed, *velocity, *bend;
    int n_speed, dims, n_bend;

    __device__ bool moves() const { return n_speed + dims > 0; }
    __device__ T v(int at) const { return n_speed > 0 ? speed[n_speed > 1 ? at : 0] : T(0); }
    __device__ T u(int at, int axis) const { return dims > axis ? velocity[at * dims + axis] : T(0); }
    __device__ T b(int at) const { return bend[n_bend > 1 ? at : 0]; }
};

// Write out = ca base + cb (phi + dt rate(phi)) at the voxels of the band.
//
// out may be base, which is read at the voxel itself only; beside the band out must hold the values
// of phi. clock holds dt and how many steps are to be taken: a step of a higher number, counted from
// 0, does nothing.
template <typename T, int ORDER>
__global__ void __launch_bounds__(256)
    advect_tiles(const T *phi, const T *speed, const T *velocity, const T *bend, const T *base,
                 const int *tiles, const int *count, const unsigned short *bits, T *out,
                 const double *clock, int number, T ca, T cb, int n_speed, int dims, int n_bend,
                 int nz, int ny, int nx, T hz, T hy, T hx) {
    VS_SHARED(T, block, [BLOCK]);
    VS_SHARED(unsigned short, list, [VOXELS]);
    if (number >= clock[1]) return;
    const T dt = (T)clock[0];
    const Motion<T> motion = {speed, velocity, bend, n_speed, dims, n_bend};
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        load_block<true>(phi, first, nz, ny, nx, block);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const T *p = block + in_block(list[n]);
            const int at = in_field(first, list[n], ny, nx);
            T rate = T(0);
            if (motion.moves())
                rate = -transport(pair_at<T, ORDER>(p, PLANE, hz), pair_at<T, ORDER>(p, BLOCK_X, hy),
                                  pair_at<T, ORDER>(p, 1, hx), motion.v(at), motion.u(at, 2),
                                  motion.u(at, 1), motion.u(at, 0));
            if (n_bend > 0)
                rate += motion.b(at) * curvature(p - PLANE, p, p + PLANE, BLOCK_X, hz, hy, hx);
            out[at] = ca * base[at] + cb * (*p + dt * rate);
        }
        __syncthreads();
    }
}

constexpr int RING = 4;  // planes: one more than a stencil reads, or a fast thread overwrites one

// Place of plane k, which is not below -3, in the ring.
__device__ __forceinline__ int in_ring(int k) { return (unsigned)(k + 4) % RING * COLUMN_PLANE; }

// The same at every voxel of the field, without tiles.
//
// A block of 32 x 8 threads goes through the planes of a column. The samples along z are a queue in
// registers; three planes lie in shared memory, where each thread puts its own sample and one of the
// 244 around. A fourth plane is written while the three are read.
template <typename T, int ORDER>
__global__ void __launch_bounds__(256)
    advect_dense(const T *phi, const T *speed, const T *velocity, const T *bend, const T *base, T *out,
                 const double *clock, int number, T ca, T cb, int n_speed, int dims, int n_bend,
                 int nz, int ny, int nx, T hz, T hy, T hx) {
    VS_SHARED(T, planes, [RING * COLUMN_PLANE]);
    if (number >= clock[1]) return;
    const T dt = (T)clock[0];
    const Motion<T> motion = {speed, velocity, bend, n_speed, dims, n_bend};
    const ColumnRole role = column_role(threadIdx.x);
    const int jobs = column_jobs(nz, ny, nx);
    for (int job = blockIdx.x; job < jobs; job += gridDim.x) {
        const Voxel first = column_origin(job, ny, nx);
        const int i = first.i + threadIdx.x % WIDE, j = first.j + threadIdx.x / WIDE;
        const int last = min(first.k + DEEP, nz);
        const int y = first.j + role.y, x = first.i + role.x;
        T queue[7];
#pragma unroll
        for (int m = 1; m < 7; ++m) queue[m] = beyond(phi, first.k + m - 6, j, i, nz, ny, nx);
        // Two planes are put in before the first is computed.
        for (int k = first.k - 2; k < last; ++k) {
#pragma unroll
            for (int m = 0; m < 6; ++m) queue[m] = queue[m + 1];
            queue[6] = beyond(phi, k + 3, j, i, nz, ny, nx);
            T *high = planes + in_ring(k + 1);
            high[role.own] = queue[4];
            if (role.brings) high[role.around] = beyond(phi, k + 1, y, x, nz, ny, nx);
            __syncthreads();
            if (k < first.k || i >= nx || j >= ny) continue;
            const T *below = planes + in_ring(k - 1) + role.own, *p = planes + in_ring(k) + role.own;
            const int at = (k * ny + j) * nx + i;
            T rate = T(0);
            if (motion.moves()) {
                const Pair<T> z = ORDER == 2
                                      ? eno2_pair(queue[1], queue[2], queue[3], queue[4], queue[5], hz)
                                      : weno5_pair(queue[0], queue[1], queue[2], queue[3], queue[4],
                                                   queue[5], queue[6], hz);
                rate = -transport(z, pair_at<T, ORDER>(p, COLUMN_ROW, hy), pair_at<T, ORDER>(p, 1, hx),
                                  motion.v(at), motion.u(at, 2), motion.u(at, 1), motion.u(at, 0));
            }
            if (n_bend > 0)
                rate += motion.b(at) *
                        curvature<T>(below, p, high + role.own, COLUMN_ROW, hz, hy, hx);
            out[at] = ca * base[at] + cb * (*p + dt * rate);
        }
        __syncthreads();
    }
}
