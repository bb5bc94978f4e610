// Closest points on the zero set of the tricubic interpolant of phi; the twin of closest_point.py.
//
// Dense where the twin keeps lists: layer holds 0 for an unknown voxel, its layer (1, 2, ...) for a
// listed one and minus that beyond the band; offsets (3 a voxel) and distances stand at the voxels.
// A list (voxels and their number) only says what to do next, in any order: every result depends on
// the layers before alone. T is the type of phi, R that of the arithmetic.
#include "stencils.cuh"
#include "block.cuh"
#include "tricubic.cuh"
#include "trilinear.cuh"

struct Grid {
    int nz, ny, nx;
};

template <typename R>
struct Size {
    R z, y, x;
    __device__ R least() const { return min(z, min(y, x)); }
    __device__ R most() const { return max(z, max(y, x)); }
};

// A closest point as an offset in voxels, and its distance in mm.
template <typename R>
struct Foot {
    R z, y, x, distance;
};


template <typename T>
__device__ __forceinline__ int sign_of(T x) {
    return (x > T(0)) - (x < T(0));
}

// The distance by which a closest point must be nearer to replace another.
template <typename R>
__device__ __forceinline__ R slack(Size<R> h) {
    return R(1e-3) * h.least();
}

template <typename R>
__device__ __forceinline__ R length(R z, R y, R x) {
    return sqrt(z * z + y * y + x * x);
}

// Number of the face neighbour on a side (-z, +z, -y, +y, -x, +x), -1 beyond the faces.
__device__ __forceinline__ int beside(int v, int side, Grid n) {
    const int plane = n.ny * n.nx;
    if (side == 0) return v >= plane ? v - plane : -1;
    if (side == 1) return v / plane < n.nz - 1 ? v + plane : -1;
    if (side == 2) return v / n.nx % n.ny > 0 ? v - n.nx : -1;
    if (side == 3) return v / n.nx % n.ny < n.ny - 1 ? v + n.nx : -1;
    if (side == 4) return v % n.nx > 0 ? v - 1 : -1;
    return v % n.nx < n.nx - 1 ? v + 1 : -1;
}

__device__ __forceinline__ int layer_beside(const short *layer, int v, int side, Grid n) {
    const int there = beside(v, side, n);
    return there < 0 ? 0 : layer[there];
}

// Step to the neighbour on a side, along an axis: 0 is z.
__device__ __forceinline__ int way(int side, int axis) {
    return side / 2 == axis ? 2 * (side % 2) - 1 : 0;
}

// Newton's method for x - v + m grad phi = 0, phi(x) = 0 (Saye 2014, section 3) from an offset.
template <typename T, typename R>
__device__ Foot<R> project(const T *phi, Grid n, int v, Foot<R> start, bool outside, Size<R> size) {
    const int k = v / (n.ny * n.nx), j = v / n.nx % n.ny, i = v % n.nx;
    const R h = size.least(), flattest = sizeof(R) == 4 ? R(1e-30) : R(1e-60);
    const R iz = R(1) / size.z, iy = R(1) / size.y, ix = R(1) / size.x;
    const R az = start.z * size.z, ay = start.y * size.y, ax = start.x * size.x;
    R pz = az, py = ay, px = ax;
#pragma unroll 1
    for (int step = 0; step < 12; ++step) {
        const Jet<R> f = tricubic<T, R>(phi, n.nz, n.ny, n.nx, k, j, i, pz * iz, py * iy, px * ix);
        const R gz = f.z * iz, gy = f.y * iy, gx = f.x * ix;
        const R g2 = gz * gz + gy * gy + gx * gx;
        if (!(g2 > flattest)) break;
        const R zz = f.zz * (iz * iz), yy = f.yy * (iy * iy), xx = f.xx * (ix * ix);
        const R zy = f.zy * (iz * iy), zx = f.zx * (iz * ix), yx = f.yx * (iy * ix);
        const R r = R(1) / g2;
        const R m = -(pz * gz + py * gy + px * gx) * r;
        R down = -f.value * r;
        const R bz = zz * gz + zy * gy + zx * gx;
        const R by = zy * gz + yy * gy + yx * gx;
        const R bx = zx * gz + yx * gy + xx * gx;
        const R trace = zz + yy + xx - (bz * gz + by * gy + bx * gx) * r;
        R gauss = gz * gz * (yy * xx - yx * yx);
        gauss += gy * gy * (zz * xx - zx * zx);
        gauss += gx * gx * (zz * yy - zy * zy);
        R cross = gz * gy * (zx * yx - zy * xx);
        cross += gz * gx * (zy * yx - zx * yy);
        cross += gy * gx * (zy * zx - yx * zz);
        gauss = (gauss + R(2) * cross) * r;
        const R det = R(1) + m * (trace + m * gauss);
        const bool stable = det > R(0.05) && R(2) + m * trace > R(0);
        // Tangential residual, less what the step along the normal brings.
        R wz = -pz - m * down * bz, wy = -py - m * down * by, wx = -px - m * down * bx;
        R along = (wz * gz + wy * gy + wx * gx) * r;
        wz -= along * gz;
        wy -= along * gy;
        wx -= along * gx;
        R sz = wz, sy = wy, sx = wx;
        if (stable) {
            const R tz = wz + m * (zz * wz + zy * wy + zx * wx);
            const R ty = wy + m * (zy * wz + yy * wy + yx * wx);
            const R tx = wx + m * (zx * wz + yx * wy + xx * wx);
            along = (tz * gz + ty * gy + tx * gx) * r;
            const R q = R(1) / det, both = R(2) + m * trace;
            sz = (both * wz - tz + along * gz) * q;
            sy = (both * wy - ty + along * gy) * q;
            sx = (both * wx - tx + along * gx) * q;
        }
        const R aside = sz * sz + sy * sy + sx * sx, depth = down * down * g2;
        const bool near = stable && aside < h * h && depth < h * h;
        if (!near) {
            const R part = aside > R(0) ? R(0.5) * min(R(1), h / sqrt(aside)) : R(0);
            const R limit = h * sqrt(r);
            down = clamped(down, -limit, limit);
            sz *= part;
            sy *= part;
            sx *= part;
        }
        sz += down * gz;
        sy += down * gy;
        sx += down * gx;
        if (near) {
            R bend = sz * sz * zz + sy * sy * yy + sx * sx * xx;
            bend += R(2) * (sz * sy * zy + sz * sx * zx + sy * sx * yx);
            const R back = R(-0.5) * bend * r;
            sz += back * gz;
            sy += back * gy;
            sx += back * gx;
        }
        pz += sz;
        py += sy;
        px += sx;
        // A step of less than 0.15 voxels is followed by one below 1e-3.
        if (near && aside + depth < R(0.15 * 0.15) * h * h) {
            const R distance = length(pz, py, px);
            const bool wrong = (pz * gz + py * gy + px * gx > R(0)) == outside;
            if (wrong && distance > slack(size)) break;
            return {pz * iz, py * iy, px * ix, distance};
        }
        if (fabs(az - pz) + fabs(ay - py) + fabs(ax - px) > R(4) * size.most()) break;
    }
    return {R(0), R(0), R(0), infinity<R>()};
}

// List the voxels whose sign (-1, 0, 1) differs from that of a face neighbour, as layer 1; the other
// voxels are unknown. count starts at zero.
template <typename T>
__global__ void list_interface(const T *phi, short *layer, int *voxels, int *count, int nz, int ny,
                               int nx) {
    const Grid n = {nz, ny, nx};
    for (int v = first_entry(); v < nz * ny * nx; v += entry_step()) {
        const int here = sign_of(phi[v]);
        bool found = false;
        for (int side = 0; side < 6; ++side) {
            const int there = beside(v, side, n);
            found |= there >= 0 && sign_of(phi[there]) != here;
        }
        layer[v] = found;
        if (found) voxels[atomicAdd(count, 1)] = v;
    }
}

// Foot of the plane through the linear crossings on the edges at a voxel; closest is the distance of
// the nearest crossing. Equal crossings on both sides cancel.
template <typename T, typename R>
__device__ Foot<R> plane_foot(const T *phi, Grid n, int v, Size<R> h, R &closest) {
    const T here = phi[v];
    R offset[3] = {}, total = R(0);
    closest = infinity<R>();
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        const R step = axis == 0 ? h.z : (axis == 1 ? h.y : h.x);
        R nearest = infinity<R>(), side = R(0);
#pragma unroll
        for (int up = 0; up < 2; ++up) {
            const int w = beside(v, 2 * axis + up, n);
            if (w < 0) continue;
            const T there = phi[w];
            if (sign_of(there) == sign_of(here)) continue;
            const R crossing = (R)(fabs(here) / (fabs(here) + fabs(there))) * step;
            if (crossing == nearest) side = R(0);
            if (crossing < nearest) {
                nearest = crossing;
                side = R(2 * up - 1);
            }
        }
        if (!(nearest < infinity<R>())) continue;
        const R inverse = R(1) / max(nearest, R(1e-30));
        total += inverse * inverse;
        closest = min(closest, nearest);
        offset[axis] = side * inverse / step;
    }
    return {offset[0] / total, offset[1] / total, offset[2] / total, R(1) / sqrt(total)};
}

// Slope along an axis between the neighbours of v that lie in the box.
template <typename T, typename R>
__device__ __forceinline__ R slope_at(const T *phi, Grid n, int v, int axis, R h) {
    const int low = beside(v, 2 * axis, n), high = beside(v, 2 * axis + 1, n);
    const R rise = (R)(phi[high < 0 ? v : high] - phi[low < 0 ? v : low]);
    return rise / (R(max((low >= 0) + (high >= 0), 1)) * h);
}

template <typename R>
__device__ __forceinline__ void put(Foot<R> foot, float *offset, double *distance) {
    offset[0] = (float)foot.z;
    offset[1] = (float)foot.y;
    offset[2] = (float)foot.x;
    *distance = (double)foot.distance;
}

// Closest points of the voxels beside the wall, started where the linear field at the voxel
// vanishes, else at the foot of the plane through the edge crossings, which is also the answer where
// neither leads to a point of the wall.
template <typename T, typename R>
__global__ void seed_closest(const T *phi, const int *voxels, const int *count, float *offset,
                             double *distance, int nz, int ny, int nx, R hz, R hy, R hx) {
    const Grid n = {nz, ny, nx};
    const Size<R> h = {hz, hy, hx};
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const int v = voxels[e];
        const R here = phi[v];
        Foot<R> found = {};
        if (here != R(0)) {
            R closest;
            const Foot<R> foot = plane_foot<T, R>(phi, n, v, h, closest);
            const R near = closest + R(0.25) * h.least();
            const R gz = slope_at(phi, n, v, 0, hz), gy = slope_at(phi, n, v, 1, hy);
            const R gx = slope_at(phi, n, v, 2, hx);
            const R g2 = gz * gz + gy * gy + gx * gx;
            const R flattest = sizeof(R) == 4 ? R(1e-30) : R(1e-60);
            bool from_slope = g2 > flattest && fabs(here) < R(1.5) * h.least() * sqrt(g2);
            const R step = -here / g2;
            found.distance = infinity<R>();
            // One copy of the projection, which is long: from the slope first, then from the foot.
#pragma unroll 1
            for (int attempt = from_slope ? 0 : 1; attempt < 2; ++attempt) {
                const Foot<R> slope = {step * gz / hz, step * gy / hy, step * gx / hx, R(0)};
                found = project<T, R>(phi, n, v, attempt ? foot : slope, here > R(0), h);
                if (found.distance <= near) break;
            }
            if (!(found.distance <= near)) found = foot;
        }
        put(found, offset + 3 * v, distance + v);
    }
}

// Give the unknown face neighbours of waiting voxels within the level the layer p and list them;
// waiting voxels farther away go on to still.
__device__ __forceinline__ void take_layer(short *layer, const double *distance, const int *waiting,
                                           int n_waiting, int *still, int *n_still, int *voxels,
                                           int *count, double level, int p, Grid n, int first,
                                           int step) {
    for (int e = first; e < n_waiting; e += step) {
        const int v = waiting[e];
        if (distance[v] > level) {
            still[atomicAdd(n_still, 1)] = v;
            continue;
        }
        for (int side = 0; side < 6; ++side) {
            const int there = beside(v, side, n);
            if (there < 0 || layer[there] != 0) continue;
            if (atomicCAS((unsigned short *)layer + there, (unsigned short)0, (unsigned short)p) == 0)
                voxels[atomicAdd(count, 1)] = there;
        }
    }
}

__global__ void next_layer(short *layer, const double *distance, const int *waiting,
                           const int *n_waiting, int *still, int *n_still, int *voxels, int *count,
                           double level, int p, int nz, int ny, int nx) {
    take_layer(layer, distance, waiting, *n_waiting, still, n_still, voxels, count, level, p,
               {nz, ny, nx}, first_entry(), entry_step());
}

// Side and place of the nearest closest point known to the face neighbours in layers 1 .. most.
// Equal distances are decided by the offsets' magnitudes, which mirrors leave alone.
template <typename R>
__device__ Foot<R> nearest_candidate(const short *layer, const float *offset, int v, int most, Grid n,
                                     Size<R> h, int &chosen) {
    R best = infinity<R>(), z = best, y = best, x = best;
    chosen = -1;
    for (int side = 0; side < 6; ++side) {
        const int there = beside(v, side, n);
        if (there < 0 || layer[there] <= 0 || layer[there] > most) continue;
        const R oz = offset[3 * there] + R(way(side, 0)), oy = offset[3 * there + 1] + R(way(side, 1));
        const R ox = offset[3 * there + 2] + R(way(side, 2));
        const R mz = oz * h.z, my = oy * h.y, mx = ox * h.x, d2 = mz * mz + my * my + mx * mx;
        bool less = d2 < best;
        if (d2 == best) less = fabs(oz) < fabs(z) || (fabs(oz) == fabs(z) && fabs(oy) < fabs(y));
        if (!less) continue;
        best = d2;
        z = oz;
        y = oy;
        x = ox;
        chosen = side;
    }
    return {z, y, x, sqrt(best)};
}

// Closest point from a start, else from the candidate, else the candidate: an upper bound.
template <typename T, typename R>
__device__ Foot<R> settle(const T *phi, Grid n, int v, Foot<R> start, Foot<R> candidate, Size<R> h) {
    const R most = candidate.distance + slack(h);
#pragma unroll 1
    for (int attempt = 0; attempt < 2; ++attempt) {
        const Foot<R> found =
            project<T, R>(phi, n, v, attempt ? candidate : start, phi[v] > T(0), h);
        if (found.distance <= most) return found;
    }
    return candidate;
}

// Closest points of list entries from first on, which are in layer p, from those of the layers
// before: started at the linear continuation of the closest points of the two voxels further in.
// Beyond the band the continuation itself will do; such voxels are no candidates for others.
template <typename T, typename R>
__device__ void grow(const T *phi, short *layer, float *offset, double *distance, const int *voxels,
                     int first, int count, int *still, int *n_still, double band, int p, Grid n,
                     Size<R> h, int thread, int step) {
    for (int e = first + thread; e < count; e += step) {
        const int v = voxels[e];
        int side;
        const Foot<R> candidate = nearest_candidate<R>(layer, offset, v, p - 1, n, h, side);
        Foot<R> start = candidate, found = {R(0), R(0), R(0), infinity<R>()};
        const int inner = beside(v, side, n), next = beside(inner, side, n);
        if (next >= 0 && layer[next] > 0 && layer[next] < p) {
            const float *a = offset + 3 * inner, *b = offset + 3 * next;
            const Foot<R> on = {R(2) * a[0] - b[0], R(2) * a[1] - b[1], R(2) * a[2] - b[2], R(0)};
            const R apart = length((on.z - candidate.z) * h.z, (on.y - candidate.y) * h.y,
                                   (on.x - candidate.x) * h.x);
            if (apart < h.least()) {
                start = on;
                found = on;
                found.distance = length(on.z * h.z, on.y * h.y, on.x * h.x);
            }
        }
        const bool far = found.distance > (R)band + R(0.1) * h.least() &&
                         found.distance <= candidate.distance;
        if (!far) found = settle<T, R>(phi, n, v, start, candidate, h);
        put(found, offset + 3 * v, distance + v);
        if ((double)found.distance > band)
            layer[v] = (short)-p;
        else
            still[atomicAdd(n_still, 1)] = v;
    }
}

template <typename T, typename R>
__global__ void grow_closest(const T *phi, short *layer, float *offset, double *distance,
                             const int *voxels, const int *first, const int *count, int *still,
                             int *n_still, double band, int p, int nz, int ny, int nx, R hz, R hy,
                             R hx) {
    grow<T, R>(phi, layer, offset, distance, voxels, *first, *count, still, n_still, band, p,
               {nz, ny, nx}, {hz, hy, hx}, first_entry(), entry_step());
}

// Take layers p, p + 1, ... until no voxel waits; one block, for the last few voxels.
template <typename T, typename R>
__global__ void finish_layers(const T *phi, short *layer, float *offset, double *distance,
                              int *voxels, int *count, int *waiting, int *n_waiting, int *still,
                              int *n_still, double band, int p, int nz, int ny, int nx, R hz, R hy,
                              R hx) {
    if (blockIdx.x > 0) return;
    const Grid n = {nz, ny, nx};
    int *from = waiting, *n_from = n_waiting, *to = still, *n_to = n_still;
    for (;; ++p) {
        __syncthreads();
        const int taken = *n_from, known = *count;
        if (taken == 0) return;
        __syncthreads();
        if (threadIdx.x == 0) *n_to = 0;
        __syncthreads();
        take_layer(layer, distance, from, taken, to, n_to, voxels, count, infinity<double>(), p, n,
                   threadIdx.x, blockDim.x);
        __syncthreads();
        const int listed = *count;
        grow<T, R>(phi, layer, offset, distance, voxels, known, listed, to, n_to, band, p, n,
                   {hz, hy, hx}, threadIdx.x, blockDim.x);
        int *const swap = from, *const n_swap = n_from;
        from = to;
        n_from = n_to;
        to = swap;
        n_to = n_swap;
    }
}

// List which candidates lie nearer to the closest point of a face neighbour than to their own, and
// take the candidates' flags, one bit a voxel, away.
template <typename R>
__device__ void find(const short *layer, const float *offset, const double *distance,
                     const int *candidates, int n_candidates, unsigned *flag, int *which,
                     int *n_which, Grid n, Size<R> h, int first, int step) {
    for (int e = first; e < n_candidates; e += step) {
        const int v = candidates[e];
        atomicAnd(flag + v / 32, ~(1u << v % 32));
        const R limit = max((R)distance[v] - slack(h), R(0));
        bool found = false;
        for (int side = 0; side < 6; ++side) {
            const int there = beside(v, side, n);
            if (there < 0 || layer[there] <= 0) continue;
            const R z = (offset[3 * there] + R(way(side, 0))) * h.z;
            const R y = (offset[3 * there + 1] + R(way(side, 1))) * h.y;
            const R x = (offset[3 * there + 2] + R(way(side, 2))) * h.x;
            found |= z * z + y * y + x * x < limit * limit;
        }
        if (found) which[atomicAdd(n_which, 1)] = v;
    }
}

template <typename R>
__global__ void find_improvable(const short *layer, const float *offset, const double *distance,
                                const int *candidates, const int *n_candidates, unsigned *flag,
                                int *which, int *n_which, int nz, int ny, int nx, R hz, R hy, R hx) {
    find<R>(layer, offset, distance, candidates, *n_candidates, flag, which, n_which, {nz, ny, nx},
            {hz, hy, hx}, first_entry(), entry_step());
}

// Closest points of some voxels from the nearest of their neighbours', one for each list entry.
template <typename T, typename R>
__device__ void improve(const T *phi, const short *layer, const float *offset, const int *which,
                        int n_which, float *new_offset, double *new_distance, Grid n, Size<R> h,
                        int first, int step) {
    for (int e = first; e < n_which; e += step) {
        int side;
        const int v = which[e];
        const Foot<R> candidate = nearest_candidate<R>(layer, offset, v, 32767, n, h, side);
        put(settle<T, R>(phi, n, v, candidate, candidate, h), new_offset + 3 * e, new_distance + e);
    }
}

template <typename T, typename R>
__global__ void improve_closest(const T *phi, const short *layer, const float *offset,
                                const int *which, const int *n_which, float *new_offset,
                                double *new_distance, int nz, int ny, int nx, R hz, R hy, R hx) {
    improve<T, R>(phi, layer, offset, which, *n_which, new_offset, new_distance, {nz, ny, nx},
                  {hz, hy, hx}, first_entry(), entry_step());
}

// Put new closest points in their places; their listed face neighbours become candidates, each once.
__device__ __forceinline__ void put_back(short *layer, float *offset, double *distance,
                                         const int *which, int n_which, const float *new_offset,
                                         const double *new_distance, double band, unsigned *flag,
                                         int *candidates, int *n_candidates, Grid n, int first,
                                         int step) {
    for (int e = first; e < n_which; e += step) {
        const int v = which[e];
        for (int a = 0; a < 3; ++a) offset[3 * v + a] = new_offset[3 * e + a];
        distance[v] = new_distance[e];
        if (new_distance[e] <= band) layer[v] = (short)abs(layer[v]);
        for (int side = 0; side < 6; ++side) {
            const int there = beside(v, side, n);
            if (there < 0 || layer[there] == 0) continue;
            const unsigned bit = 1u << there % 32;
            if (!(atomicOr(flag + there / 32, bit) & bit))
                candidates[atomicAdd(n_candidates, 1)] = there;
        }
    }
}

__global__ void put_improved(short *layer, float *offset, double *distance, const int *which,
                             const int *n_which, const float *new_offset, const double *new_distance,
                             double band, unsigned *flag, int *candidates, int *n_candidates, int nz,
                             int ny, int nx) {
    put_back(layer, offset, distance, which, *n_which, new_offset, new_distance, band, flag,
             candidates, n_candidates, {nz, ny, nx}, first_entry(), entry_step());
}

// Correct until nothing improves, at most so many times; one block, for the last few voxels.
template <typename T, typename R>
__global__ void finish_corrections(const T *phi, short *layer, float *offset, double *distance,
                                   int *which, int *n_which, float *new_offset,
                                   double *new_distance, double band, unsigned *flag,
                                   int *candidates, int *n_candidates, int passes, int nz, int ny,
                                   int nx, R hz, R hy, R hx) {
    if (blockIdx.x > 0) return;
    const Grid n = {nz, ny, nx};
    const Size<R> h = {hz, hy, hx};
    for (int pass = 0; pass < passes; ++pass) {
        __syncthreads();
        if (threadIdx.x == 0) *n_which = 0;
        __syncthreads();
        find<R>(layer, offset, distance, candidates, *n_candidates, flag, which, n_which, n, h,
                threadIdx.x, blockDim.x);
        __syncthreads();
        const int found = *n_which;
        if (threadIdx.x == 0) *n_candidates = 0;
        if (found == 0) return;
        improve<T, R>(phi, layer, offset, which, found, new_offset, new_distance, n, h, threadIdx.x,
                      blockDim.x);
        __syncthreads();
        put_back(layer, offset, distance, which, found, new_offset, new_distance, band, flag,
                 candidates, n_candidates, n, threadIdx.x, blockDim.x);
    }
}

// Write +- far with the sign of phi.
template <typename T>
__global__ void fill_far(const T *phi, T far, T *out, int size) {
    for (int v = first_entry(); v < size; v += entry_step()) out[v] = phi[v] < T(0) ? -far : far;
}

// Write signed distances, clamped to far, at listed voxels; the sign is that of phi.
template <typename T>
__global__ void write_distance(const T *phi, const int *voxels, const double *distance,
                               const int *count, T far, T *out) {
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const int v = voxels[e];
        // The smallest positive distance keeps the sign of a voxel that lies on the wall.
        const T d = (T)max(min(distance[v], (double)far), 1e-30);
        out[v] = phi[v] == T(0) ? T(0) : (phi[v] < T(0) ? -d : d);
    }
}

// Trilinear samples of a field at the closest points of listed voxels, one for each list entry.
template <typename T>
__global__ void sample_at(const T *values, const int *voxels, const int *count, const float *offset,
                          double *out, int nz, int ny, int nx) {
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const int v = voxels[e];
        const double z = v / (ny * nx) + (double)offset[3 * v];
        const double y = v / nx % ny + (double)offset[3 * v + 1];
        const double x = v % nx + (double)offset[3 * v + 2];
        out[e] = trilinear(values, z, y, x, nz, ny, nx);
    }
}
