// The most probable displacement of the wall but for its linear solves; the twin of displacement.py.
#include "stencils.cuh"
#include "block.cuh"

// out = start = a - b.
__global__ void difference(const double *a, const double *b, double *out, double *start,
                          const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) out[m] = start[m] = a[m] - b[m];
}

// out = start = a^2.
__global__ void square(const double *a, double *out, double *start, const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) out[m] = start[m] = a[m] * a[m];
}

// Information per wall area, from that of the voxels spread along the wall.
__global__ void per_area(const double *spread, double area, double *known, const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) known[m] = max(spread[m] / area, 0.0);
}

// Stiffness T and pin of the wall's prior, the s.d. of the start not below floor, and the system that
// they make with the data: precision + area pin, weight = area T, load = weight rough.
__global__ void wall_prior(const double *detail, const double *typical, const double *rough,
                           const double *precision, double reach4, double softness, double floor,
                           double area, int dims, double *sigma, double *stiffness, double *pin,
                           double *total, double *weight, double *load, const int *count) {
    const double stiffest = reach4 * max(*typical, 1e-12);
    for (int m = first_entry(); m < *count; m += entry_step()) {
        const double t = 1.0 / (1.0 / stiffest + softness * max(detail[m], 0.0));
        const double s = max(sigma[m], floor), s2 = s * s;
        sigma[m] = s;
        stiffness[m] = t;
        // The start's s.d. where the image says nothing: displacement.py.
        pin[m] = dims == 2 ? 1.0 / (64.0 * t * s2 * s2)
                           : pow(2.82842712474619009760 * s2 * sqrt(sqrt(t)), -4.0 / 3.0);
        total[m] = precision[m] + area * pin[m];
        weight[m] = area * t;
        load[m] = weight[m] * rough[m];
    }
}

// Right side of the displacement's system, and a start at zero.
__global__ void displacement_rhs(const double *gradient, const double *pin, const double *moved,
                                 const double *pull, double area, double *rhs, double *start,
                                 const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) {
        rhs[m] = gradient[m] - area * pin[m] * moved[m] - pull[m];
        start[m] = 0.0;
    }
}

// Keep a step within reach s.d. of the start and below a limit; its square where |phi| is at most
// near, infinite elsewhere, and the number of those voxels, which starts at zero.
__global__ void take_step(double *step, const double *moved, const double *sigma, const double *phi,
                          double reach, double limit, double near, double *squares, int *found,
                          const int *count) {
    double number = 0.0;
    for (int m = first_entry(); m < *count; m += entry_step()) {
        const double most = reach * sigma[m];
        step[m] = clamped(clamped(moved[m] + step[m], -most, most) - moved[m], -limit, limit);
        const bool counts = fabs(phi[m]) <= near;
        squares[m] = counts ? step[m] * step[m] : infinity<double>();
        number += counts ? 1.0 : 0.0;
    }
    number = block_sum(number);
    if (threadIdx.x == 0) atomicAdd(found, (int)number);
}

// Sum, for each chunk, the values below a limit, and count them: (CHUNKS, 2).
__global__ void sums_below(const double *values, const double *limit, double *parts,
                           const int *count) {
    const int n = *count, size = (n + CHUNKS - 1) / CHUNKS;
    for (int chunk = blockIdx.x; chunk < CHUNKS; chunk += gridDim.x) {
        double sum = 0.0, number = 0.0;
        for (int m = threadIdx.x; m < size && chunk * size + m < n; m += blockDim.x) {
            const double value = values[chunk * size + m];
            sum += value < *limit ? value : 0.0;
            number += value < *limit ? 1.0 : 0.0;
        }
        sum = block_sum(sum);
        number = block_sum(number);
        if (threadIdx.x > 0) continue;
        parts[2 * chunk] = sum;
        parts[2 * chunk + 1] = number;
    }
}

// Move the wall: distance less step at listed voxels; raise most to the largest |phi| there, the bits
// of a float, infinite for NaN, above the voxel that holds it.
template <typename T>
__global__ void move_wall(const int *voxels, const double *phi, const double *step, T *field,
                          unsigned long long *most, const int *count) {
    unsigned long long high = 0;
    for (int e = first_entry(); e < *count; e += entry_step()) {
        const double value = phi[e] - step[e];
        field[voxels[e]] = (T)value;
        const float size = fabs(value) < infinity<double>() ? (float)fabs(value) : infinity<float>();
        const unsigned long long here =
            (unsigned long long)__float_as_int(size) << 32 | (unsigned)voxels[e];
        high = here > high ? here : high;
    }
    high = block_max(high);
    if (threadIdx.x == 0) atomicMax(most, high);
}

// S.d. of the wall's position for a precision known + pin and a stiffness, doubted as far as the
// images show a misfit, with a floor; before is that of the start.
__global__ void wall_sigma(const double *known, const double *pin, const double *stiffness,
                           const double *before, const double *misfit, double floor, int dims,
                           double *sigma, const int *count) {
    for (int m = first_entry(); m < *count; m += entry_step()) {
        const double p = known[m] + pin[m], t = stiffness[m];
        const double s = dims == 2
                             ? 1.0 / sqrt(sqrt(64.0 * p * t))
                             : 1.0 / sqrt(2.82842712474619009760 * sqrt(p * sqrt(p)) * sqrt(sqrt(t)));
        const double b = before[m], v = misfit[m];
        sigma[m] = sqrt(v * s * s + (1.0 - 1.0 / v) * b * b + floor * floor);
    }
}

// Set every entry to a value.
__global__ void fill(const double *value, double *out, int n) {
    for (int i = first_entry(); i < n; i += entry_step()) out[i] = *value;
}
