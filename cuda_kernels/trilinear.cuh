// Trilinear interpolation, clamped to the box.
#pragma once

template <typename T>
__device__ __forceinline__ double trilinear(const T *values, double z, double y, double x, int nz,
                                            int ny, int nx) {
    z = clamped(z, 0.0, nz - 1.0);
    y = clamped(y, 0.0, ny - 1.0);
    x = clamped(x, 0.0, nx - 1.0);
    const int k = min((int)z, max(nz - 2, 0)), j = min((int)y, max(ny - 2, 0));
    const int i = min((int)x, max(nx - 2, 0));
    const double c = z - k, b = y - j, a = x - i;
    const T *p = values + (k * ny + j) * nx + i;
    const int top = k + 1 < nz ? ny * nx : 0, far = j + 1 < ny ? nx : 0, right = i + 1 < nx;
    const double low = (1.0 - b) * ((1.0 - a) * p[0] + a * p[right]) +
                       b * ((1.0 - a) * p[far] + a * p[far + right]);
    const double high = (1.0 - b) * ((1.0 - a) * p[top] + a * p[top + right]) +
                        b * ((1.0 - a) * p[top + far] + a * p[top + far + right]);
    return (1.0 - c) * low + c * high;
}
