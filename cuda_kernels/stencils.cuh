// Point formulas of the level-set kernels; the twin of stencils.py.
#pragma once

#ifndef VS_SHARED  // tests/on_cpu defines it otherwise
#define VS_SHARED(type, name, dims) __shared__ type name dims
#endif

template <typename T>
struct Pair {
    T left, right;
};

template <typename T>
__device__ __forceinline__ T infinity() {
    return (T)__longlong_as_double(0x7ff0000000000000LL);
}

template <typename T>
__device__ __forceinline__ T clamped(T x, T low, T high) {
    return x < low ? low : (x > high ? high : x);
}

// 1/x to an ulp or two, in one instruction for float.
__device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.0f, x); }
__device__ __forceinline__ double reciprocal(double x) { return 1.0 / x; }

template <typename T>
struct Three {
    T a, b, c;
};

// Numbers in the ratio of the inverse squares: for float a reciprocal is one instruction, for double
// one division and products are less than three.
__device__ __forceinline__ Three<float> inverse_squares(float a, float b, float c) {
    a = reciprocal(a);
    b = reciprocal(b);
    c = reciprocal(c);
    return {a * a, b * b, c * c};
}

__device__ __forceinline__ Three<double> inverse_squares(double a, double b, double c) {
    const double scale = reciprocal(a + b + c);
    a *= scale;
    b *= scale;
    c *= scale;
    return {b * c * (b * c), a * c * (a * c), a * b * (a * b)};
}

// Twelve times Phi of four second differences: WENO5's distance from the central difference.
// Jiang & Peng 2000, eq. 2.19. Smoothness comes as 13 (a - b)^2 + epsilon of neighbours and the other
// half of each term; for spacings from 0.02 mm its squared reciprocals stay in range. left and right
// are a - 2 b + c and b - 2 c + d.
template <typename T>
__device__ __forceinline__ T weno5_bend(T e0, T e1, T e2, T u0, T u1, T u2, T left, T right) {
    const Three<T> v =
        inverse_squares(e0 + T(3) * u0 * u0, e1 + T(3) * u1 * u1, e2 + T(3) * u2 * u2);
    const T total = T(0.25) * v.a + T(1.5) * v.b + T(0.75) * v.c;
    return (v.a * left + (T(1.5) * v.c - total) * right) * reciprocal(total);
}

// Minimum and maximum that keep a NaN, where fmin and fmax drop it; one instruction for float.
template <typename T>
__device__ __forceinline__ T lesser(T a, T b) {
    return a < b || a != a ? a : b;
}

template <typename T>
__device__ __forceinline__ T greater(T a, T b) {
    return a > b || a != a ? a : b;
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ float lesser(float a, float b) {
    float out;
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}

template <>
__device__ __forceinline__ float greater(float a, float b) {
    float out;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
    return out;
}
#endif

// The argument of smaller magnitude if both have one sign, else zero: a, kept between zero and b.
template <typename T>
__device__ __forceinline__ T minmod(T a, T b) {
    return greater(lesser(a, greater(b, T(0))), lesser(b, T(0)));
}

// First differences d and second differences s of seven samples: what all schemes are made of.
template <typename T>
struct Differences {
    T d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4;
};

template <typename T>
__device__ __forceinline__ Differences<T> differences(T m3, T m2, T m1, T c0, T p1, T p2, T p3) {
    const T d0 = m2 - m3, d1 = m1 - m2, d2 = c0 - m1, d3 = p1 - c0, d4 = p2 - p1, d5 = p3 - p2;
    return {d0, d1, d2, d3, d4, d5, d1 - d0, d2 - d1, d3 - d2, d4 - d3, d5 - d4};
}

// Left and right WENO5 derivatives, times 12 h. The formulas are the twin's; what the sides share is
// computed once, as differences of the second differences.
template <typename T>
__device__ __forceinline__ Pair<T> weno5_sides(const Differences<T> &f, T h) {
    const T t0 = f.s1 - f.s0, t1 = f.s2 - f.s1, t2 = f.s3 - f.s2, t3 = f.s4 - f.s3;
    const T epsilon = T(12 * 1.2e-5f) * (h * h);
    const T q0 = epsilon + T(13) * t0 * t0, q1 = epsilon + T(13) * t1 * t1;
    const T q2 = epsilon + T(13) * t2 * t2, q3 = epsilon + T(13) * t3 * t3;
    const T central = T(7) * (f.d2 + f.d3) - (f.d1 + f.d4), middle = t2 - t1;
    const T below = weno5_bend(q0, q1, q2, f.s0 - T(3) * f.s1, f.s1 + f.s2, T(3) * f.s2 - f.s3,
                               t1 - t0, middle);
    const T above = weno5_bend(q3, q2, q1, f.s4 - T(3) * f.s3, f.s3 + f.s2, T(3) * f.s2 - f.s1,
                               t3 - t2, middle);
    return {central - below, central + above};
}

// Left and right second-order ENO derivatives, times h.
template <typename T>
__device__ __forceinline__ Pair<T> eno2_sides(const Differences<T> &f) {
    return {f.d2 + T(0.5) * minmod(f.s1, f.s2), f.d3 - T(0.5) * minmod(f.s3, f.s2)};
}

// Left and right WENO5 derivatives of seven samples with spacing h.
template <typename T>
__device__ __forceinline__ Pair<T> weno5_pair(T m3, T m2, T m1, T c0, T p1, T p2, T p3, T h) {
    const Pair<T> d = weno5_sides(differences(m3, m2, m1, c0, p1, p2, p3), h);
    const T g = T(1) / (T(12) * h);
    return {d.left * g, d.right * g};
}

// Left and right second-order ENO derivatives of five samples with spacing h, in the twin's order of
// sums: a flow ends at creases, where the last digit decides which point is nearest.
template <typename T>
__device__ __forceinline__ Pair<T> eno2_pair(T m2, T m1, T c0, T p1, T p2, T h) {
    const T g = T(1) / h;
    const T middle = m1 + p1 - T(2) * c0;
    const T left = c0 - m1 + T(0.5) * minmod(m2 - T(2) * m1 + c0, middle);
    const T right = p1 - c0 - T(0.5) * minmod(p2 - T(2) * p1 + c0, middle);
    return {left * g, right * g};
}

// Godunov's squared derivative of |grad phi| for a front moving outward or inward.
template <typename T>
__device__ __forceinline__ T upwind_sq(T left, T right, bool outward) {
    const T most = outward ? greater(greater(left, -right), T(0))
                           : lesser(lesser(left, -right), T(0));
    return most * most;
}
