// One Runge-Kutta stage of the level-set equation on a list of tiles; the twin of advect.py.
//
// phi_t + V |grad phi| + u . grad phi = b kappa |grad phi|. A block of 256 threads loads a tile with
// its neighbours and shares out the voxels of the band, so that no lane idles beside it.
#include "stencils.cuh"
#include "tiles.cuh"

// One-sided derivatives at sample p along the axis of stride s.
template <typename T, int ORDER>
__device__ __forceinline__ Pair<T> pair_at(const T *p, int s, T h) {
    if (ORDER == 2) return eno2_pair(p[-2 * s], p[-s], p[0], p[s], p[2 * s], h);
    return weno5_pair(p[-3 * s], p[-2 * s], p[-s], p[0], p[s], p[2 * s], p[3 * s], h);
}

// V |grad phi| + u . grad phi at sample p.
template <typename T, int ORDER>
__device__ __forceinline__ T transport(const T *p, int sz, int sy, T hz, T hy, T hx, T v, T uz, T uy,
                                       T ux) {
    const Pair<T> z = pair_at<T, ORDER>(p, sz, hz);
    const Pair<T> y = pair_at<T, ORDER>(p, sy, hy);
    const Pair<T> x = pair_at<T, ORDER>(p, 1, hx);
    const bool out = v > T(0);
    const T g2 = upwind_sq(z.left, z.right, out) + upwind_sq(y.left, y.right, out) +
                 upwind_sq(x.left, x.right, out);
    T along = uz * (uz > T(0) ? z.left : z.right);
    along += uy * (uy > T(0) ? y.left : y.right);
    along += ux * (ux > T(0) ? x.left : x.right);
    return v * sqrt(g2) + along;
}

// kappa |grad phi| at sample p: 19 points, |kappa| capped at 2/h.
template <typename T>
__device__ __forceinline__ T curvature(const T *p, int sz, int sy, T hz, T hy, T hx) {
    const T az = T(0.5) / hz, ay = T(0.5) / hy, ax = T(0.5) / hx, here = T(2) * p[0];
    const T z = (p[sz] - p[-sz]) * az, y = (p[sy] - p[-sy]) * ay, x = (p[1] - p[-1]) * ax;
    const T zz = (p[sz] + p[-sz] - here) / (hz * hz);
    const T yy = (p[sy] + p[-sy] - here) / (hy * hy);
    const T xx = (p[1] + p[-1] - here) / (hx * hx);
    const T zy = p[sz + sy] + p[-sz - sy] - (p[sz - sy] + p[-sz + sy]);
    const T zx = p[sz + 1] + p[-sz - 1] - (p[sz - 1] + p[-sz + 1]);
    const T yx = p[sy + 1] + p[-sy - 1] - (p[sy - 1] + p[-sy + 1]);
    const T mixed = z * y * zy * (az * ay) + z * x * zx * (az * ax) + y * x * yx * (ay * ax);
    const T g2 = z * z + y * y + x * x;
    const T turned =
        zz * (y * y + x * x) + yy * (z * z + x * x) + xx * (z * z + y * y) - T(2) * mixed;
    const T flattest = T(1e-30);  // square of a slope below which phi has no normal
    const T limit = T(2) / min(hz, min(hy, hx)) * sqrt(g2);
    return clamped(turned / (g2 > flattest ? g2 : flattest), -limit, limit);
}

// Write out = ca base + cb (phi + dt rate(phi)) at the voxels of the band.
//
// speed and bend have one sample for each voxel (n_speed, n_bend > 1), one for all, or none;
// velocity has dims components at each voxel, x first, or none. out may be base, which is read at
// the voxel itself only; beside the band out must hold the values of phi. clock holds dt and how
// many steps are to be taken: a step of a higher number, counted from 0, does nothing.
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
    for (int t = blockIdx.x; t < *count; t += gridDim.x) {
        const Voxel first = tile_origin(tiles[t], ny, nx);
        load_block<true>(phi, first, nz, ny, nx, block);
        const int active = list_active(bits + t * ROWS, list);
        for (int n = threadIdx.x; n < active; n += blockDim.x) {
            const T *p = block + in_block(list[n]);
            const int at = in_field(first, list[n], ny, nx);
            T rate = T(0);
            if (n_speed + dims > 0) {
                const T v = n_speed > 0 ? speed[n_speed > 1 ? at : 0] : T(0);
                const T ux = dims > 0 ? velocity[at * dims] : T(0);
                const T uy = dims > 1 ? velocity[at * dims + 1] : T(0);
                const T uz = dims > 2 ? velocity[at * dims + 2] : T(0);
                rate = -transport<T, ORDER>(p, PLANE, BLOCK_X, hz, hy, hx, v, uz, uy, ux);
            }
            if (n_bend > 0)
                rate += bend[n_bend > 1 ? at : 0] * curvature(p, PLANE, BLOCK_X, hz, hy, hx);
            out[at] = ca * base[at] + cb * (*p + dt * rate);
        }
        __syncthreads();
    }
}
