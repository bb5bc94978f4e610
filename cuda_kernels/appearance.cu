// How the images depend on the wall; the twin of appearance.py, one thread for each list entry.
//
// facts = {noise, parts of a noisy vector or 1, largest value of the profile} of a fit stay on the
// device, as does the length of the list.
#include "stencils.cuh"
#include "block.cuh"
#include "trilinear.cuh"

// Blurred speed d - kappa d^2 / 2 at depth d below the wall, its slope, and the weight of the voxel.
__global__ void blurred_flow(const double *phi, const double *normal, const double *bend,
                             const double *kappa, const double *psf, double *inside, double *slope,
                             double *weight, double deep, const int *count, double hz, double hy,
                             double hx) {
    const double width = *psf * *psf + 1.0 / 12.0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double z = normal[3 * e] * hz, y = normal[3 * e + 1] * hy, x = normal[3 * e + 2] * hx;
        const double s = sqrt(width * (z * z + y * y + x * x));
        const double p = phi[e] + clamped(0.5 * width * bend[e], -0.5 * s, 0.5 * s);
        const double bell = exp(-0.5 * (p / s) * (p / s)) / 2.50662827463100050242;
        const double share = 0.5 * erfc(p / s * 0.70710678118654752440);
        const double ramp = s * bell - p * share;
        const double square = (p * p + s * s) * share - p * s * bell;
        const double k = clamped(kappa[e], 0.0, 1.0 / deep);
        inside[e] = ramp - 0.5 * k * square;
        slope[e] = share - k * ramp;
        weight[e] = phi[e] > -deep ? 1.0 : 0.0;
    }
}

// Begin a fit: no noise known, one part, no largest value yet.
__global__ void begin_fit(double *facts) {
    if (first_entry() != 0) return;
    facts[0] = facts[2] = 0.0;
    facts[1] = 1.0;
}

// Raise out to the largest value; out starts at zero.
__global__ void largest(const double *values, double *out, const int *count) {
    double most = 0.0;
    for (int e = first_entry(); e < *count; e += entry_step()) most = max(most, values[e]);
    most = block_max(most);
    if (threadIdx.x == 0)
        atomicMax((unsigned long long *)out, (unsigned long long)__double_as_longlong(most));
}

// Linear between samples a step apart from zero on, constant beyond the last.
__device__ __forceinline__ double between(const double *samples, double x, double step, int n) {
    const double at = clamped(x / step, 0.0, n - 1.0);
    const int low = min((int)at, n - 2);
    return samples[low] + (at - low) * (samples[low + 1] - samples[low]);
}

// The place, times step, at which rising samples take a value.
__device__ __forceinline__ double place_of(const double *samples, double value, double step, int n) {
    if (!(value > samples[0])) return 0.0;
    if (value >= samples[n - 1]) return (n - 1) * step;
    int low = 0, high = n - 1;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (samples[middle] <= value)
            low = middle;
        else
            high = middle;
    }
    return (low + (value - samples[low]) / (samples[high] - samples[low])) * step;
}

// Profile, slope and s.d., in units of the noise, of the length of a noisy vector, and the trust in
// each voxel, by the fit before; of one part the profile itself, and with afresh its own weights. The
// noise of the vector is so many times louder than that of the image.
__global__ void lengthen(const double *inside, const double *slope, const double *own,
                         const double *outer, const double *contrast, const double *weight,
                         const double *facts, double louder, const double *mean, const double *gain,
                         const double *spread, double step, int n, bool rests, bool afresh,
                         double *long_inside, double *long_slope, double *long_spread, double *trust,
                         const int *count) {
    const double noise = louder * facts[0], far = (n - 1) * step;
    const bool single = facts[1] <= 1.0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        trust[e] = single && afresh ? own[e] : weight[e];
        if (single) {
            long_inside[e] = inside[e];
            long_slope[e] = slope[e];
            long_spread[e] = 1.0;
            continue;
        }
        const double rest = rests ? 0.0 : place_of(mean, outer[e] / noise, step, n);
        const double clear = rest + contrast[e] * inside[e] / noise, size = fabs(clear);
        const double length = between(mean, size, step, n) + max(size - far, 0.0);
        const bool seen = fabs(contrast[e]) > 1e-9 * noise;
        const double base = between(mean, rest, step, n);
        long_inside[e] = seen ? (length - base) / (contrast[e] / noise) : inside[e];
        const double rise = between(gain, size, step, n);
        long_slope[e] = (clear > 0.0 ? rise : (clear < 0.0 ? -rise : 0.0)) * slope[e];
        long_spread[e] = between(spread, size, step, n);
    }
}

struct Means {
    double outer, contrast;
};

// Solve the 2 x 2 normal equations from moments (1, P, P^2, I, I P).
__device__ __forceinline__ Means solved(const double *m, Means fallback, double floor) {
    const double determinant = m[0] * m[2] - m[1] * m[1];
    if (!(determinant > floor * max(m[0] * m[0], 1e-300))) return fallback;
    return {(m[3] * m[2] - m[4] * m[1]) / determinant, (m[0] * m[4] - m[1] * m[3]) / determinant};
}

// Intensities of the surroundings and contrast of each block from moments (blocks, 5) filtered by a
// window of so many blocks; a block that saw little is pulled to those of the whole (5,).
__global__ void solve_blocks(const double *wide, const double *whole, double window, double ridge,
                             double *outer, double *contrast, int n) {
    const Means all = solved(whole, {0.0, 0.0}, 0.0);
    const double pull = ridge / max(whole[0], 1e-12);
    const double sign = all.contrast > 0.0 ? 1.0 : (all.contrast < 0.0 ? -1.0 : 0.0);
    for (int m = first_entry(); m < n; m += entry_step()) {
        const double r0 = pull * whole[0], r1 = pull * whole[1], r2 = pull * whole[2];
        const double *w = wide + 5 * m;
        const double moments[5] = {
            window * w[0] + r0, window * w[1] + r1, window * w[2] + r2,
            window * w[3] + (r0 * all.outer + r1 * all.contrast),
            window * w[4] + (r1 * all.outer + r2 * all.contrast)};
        const Means found = solved(moments, all, 1e-9);
        outer[m] = found.outer;
        contrast[m] = sign * max(sign * found.contrast, 0.0);
    }
}

// Intensities at the voxels, linear between the centres of blocks of size b*, and what the model
// leaves: the residual, the same in units of its spread, and the strength of the signal. Of one part
// a fit that is taken again stays as it is.
__global__ void fit_residual(const double *samples, const double *inside, const double *long_inside,
                             const double *spread, const int *index, const double *outer_blocks,
                             const double *contrast_blocks, const double *facts, bool again,
                             double *outer, double *contrast, double *residual, double *scaled,
                             double *strength, const int *count, int nbz, int nby, int nbx, int bz,
                             int by, int bx) {
    const bool stays = again && facts[1] <= 1.0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        if (!stays) {
            const double z = (index[3 * e] + 0.5) / bz - 0.5, y = (index[3 * e + 1] + 0.5) / by - 0.5;
            const double x = (index[3 * e + 2] + 0.5) / bx - 0.5;
            outer[e] = trilinear(outer_blocks, z, y, x, nbz, nby, nbx);
            contrast[e] = trilinear(contrast_blocks, z, y, x, nbz, nby, nbx);
            residual[e] = samples[e] - outer[e] - contrast[e] * long_inside[e];
        }
        scaled[e] = residual[e] / spread[e];
        strength[e] = fabs(contrast[e] * inside[e]);
    }
}

// S.d. of the noise from the median absolute deviation, no less than a share of the signal.
__global__ void fit_noise(const double *deviation, const double *strength, double share,
                          double *facts) {
    if (first_entry() == 0) facts[0] = max(max(1.4826 * *deviation, share * *strength), 1e-12);
}

// Weights that are small where the residual is no noise.
__global__ void weigh(const double *residual, const double *contrast, const double *spread,
                      const double *own, const double *facts, double *weight, const int *count) {
    const double noise = facts[0], peak = facts[2];
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double r = residual[e] / (4.0 * noise + 0.5 * fabs(contrast[e]) * peak);
        weight[e] = own[e] / (spread[e] * spread[e] * (1.0 + r * r * (r * r)));
    }
}

// The lesser of the signals far inside and far outside.
__global__ void lowest_signal(const double *outer, const double *contrast, const double *facts,
                              double *out, const int *count) {
    for (int e = first_entry(); e < *count; e += entry_step())
        out[e] = min(outer[e], outer[e] + contrast[e] * facts[2]);
}

// Take a vector of so many parts, or of one where noise makes it no longer.
__global__ void decide_parts(const double *lowest, double clear, double parts, double *facts) {
    if (first_entry() == 0) facts[1] = *lowest > clear * facts[0] ? 1.0 : parts;
}

// Sum, for each chunk, the squared residuals, none over four s.d. of the noise.
__global__ void cost_sums(const double *residual, const double *facts, double *parts,
                          const int *count) {
    const int n = *count, size = (n + CHUNKS - 1) / CHUNKS;
    const double most = 4.0 * facts[0];
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        double sum = 0.0;
        for (int m = threadIdx.x; m < size && chunk * size + m < n; m += blockDim.x) {
            const double cost = min(fabs(residual[chunk * size + m]), most);
            sum += cost * cost;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) parts[chunk] = sum;
    }
}

// Go downhill over the costs of n blurs from the one nearest to psf, then to the vertex of the
// parabola through the best and its neighbours.
__global__ void choose_psf(const double *blurs, const double *costs, double *psf, int n) {
    if (first_entry() != 0) return;
    int best = 0;
    for (int m = 1; m < n; ++m)
        if (fabs(blurs[m] - *psf) < fabs(blurs[best] - *psf)) best = m;
    best = clamped(best, 1, n - 2);
    while (best > 1 && costs[best - 1] < costs[best]) --best;
    while (best < n - 2 && costs[best + 1] < costs[best]) ++best;
    const double *x = blurs + best - 1, *c = costs + best - 1;
    const double low = (c[1] - c[0]) / (x[1] - x[0]), high = (c[2] - c[1]) / (x[2] - x[1]);
    const double bend = (high - low) / (x[2] - x[0]);
    double vertex = 0.5 * (x[0] + x[1]) - 0.5 * low / bend;
    if (!(bend > 0.0)) vertex = c[0] <= c[1] && c[0] <= c[2] ? x[0] : (c[1] <= c[2] ? x[1] : x[2]);
    *psf = clamped(vertex, blurs[0], blurs[n - 1]);
}

// out = a b.
__global__ void product(const double *a, const double *b, double *out, const int *count) {
    for (int e = first_entry(); e < *count; e += entry_step()) out[e] = a[e] * b[e];
}

// Powers of sums over blocks, in moments (blocks, 5) of weight one: the sum squared takes the place of
// the sum of P. Raise most to the largest sum of P^2; most starts at zero.
__global__ void square_sums(double *moments, double *most, int n) {
    double high = 0.0;
    for (int m = first_entry(); m < n; m += entry_step()) {
        moments[5 * m + 1] *= moments[5 * m + 1];
        high = max(high, moments[5 * m + 2]);
    }
    high = block_max(high);
    if (threadIdx.x == 0)
        atomicMax((unsigned long long *)most, (unsigned long long)__double_as_longlong(high));
}

// Ratio of the powers of square_sums in each window; without any power of its own, small.
__global__ void window_excess(const double *wide, const double *most, double *out, int n) {
    const double least = 1e-12 * max(*most, 1e-300);
    for (int m = first_entry(); m < n; m += entry_step())
        out[m] = wide[5 * m + 1] / max(wide[5 * m + 2], least);
}

// Misfit at the voxels, linear between the centres of blocks of size b*, believed as far as that of
// the whole (5,) is beyond one; the largest of the images, as is that of the whole in most.
__global__ void misfit_at(const double *blocks, const int *index, const double *whole, bool first,
                          double *misfit, double *most, const int *count, int nbz, int nby, int nbx,
                          int bz, int by, int bx) {
    const double all = whole[1] > 0.0 ? max(whole[1] / max(whole[2], 1e-300), 1.0) : 1.0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double z = (index[3 * e] + 0.5) / bz - 0.5, y = (index[3 * e + 1] + 0.5) / by - 0.5;
        const double x = (index[3 * e + 2] + 0.5) / bx - 0.5;
        const double here = trilinear(blocks, z, y, x, nbz, nby, nbx);
        const double found = 1.0 + (1.0 - 1.0 / all) * max(here - 1.0, 0.0);
        misfit[e] = first ? found : max(misfit[e], found);
    }
    if (first_entry() == 0) *most = first ? all : max(*most, all);
}

// Precision of a displacement and its gradient at each voxel, added to those of other images.
__global__ void inform(const double *slope, const double *contrast, const double *weight,
                       const double *residual, const double *facts, bool first, double *precision,
                       double *gradient, const int *count) {
    const double variance = facts[0] * facts[0];
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double jacobian = contrast[e] * slope[e], weighted = weight[e] * jacobian / variance;
        precision[e] = (first ? 0.0 : precision[e]) + weighted * jacobian;
        gradient[e] = (first ? 0.0 : gradient[e]) + weighted * residual[e];
    }
}
