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

// Twelve times Phi of four second differences: WENO5's distance from the central difference.
// Jiang & Peng 2000, eq. 2.19. Smoothness comes as 13 (a - b)^2 + epsilon of neighbours and the other
// half of each term; it is scaled, so that its powers stay in range. left and right are
// a - 2 b + c and b - 2 c + d.
template <typename T>
__device__ __forceinline__ T weno5_bend(T e0, T e1, T e2, T u0, T u1, T u2, T left, T right) {
    e0 += T(3) * u0 * u0;
    e1 += T(3) * u1 * u1;
    e2 += T(3) * u2 * u2;
    const T scale = reciprocal(e0 + e1 + e2);
    e0 *= scale;
    e1 *= scale;
    e2 *= scale;
    const T w0 = e1 * e2 * (e1 * e2);
    const T w1 = T(6) * (e0 * e2 * (e0 * e2));
    const T w2 = T(3) * (e0 * e1 * (e0 * e1));
    const T total = w0 + w1 + w2;
    return (T(4) * w0 * left + (T(2) * w2 - total) * right) * reciprocal(total);
}

// Left and right WENO5 derivatives of seven samples with spacing h. The formulas are the twin's; what
// the sides share is computed once, as differences of the second differences s.
template <typename T>
__device__ __forceinline__ Pair<T> weno5_pair(T m3, T m2, T m1, T c0, T p1, T p2, T p3, T h) {
    const T d0 = m2 - m3, d1 = m1 - m2, d2 = c0 - m1;
    const T d3 = p1 - c0, d4 = p2 - p1, d5 = p3 - p2;
    const T s0 = d1 - d0, s1 = d2 - d1, s2 = d3 - d2, s3 = d4 - d3, s4 = d5 - d4;
    const T t0 = s1 - s0, t1 = s2 - s1, t2 = s3 - s2, t3 = s4 - s3;
    const T epsilon = T(12 * 1.2e-5f) * (h * h);
    const T q0 = epsilon + T(13) * t0 * t0, q1 = epsilon + T(13) * t1 * t1;
    const T q2 = epsilon + T(13) * t2 * t2, q3 = epsilon + T(13) * t3 * t3;
    const T central = T(7) * (d2 + d3) - (d1 + d4), middle = t2 - t1;
    const T below = weno5_bend(q0, q1, q2, s0 - T(3) * s1, s1 + s2, T(3) * s2 - s3, t1 - t0, middle);
    const T above = weno5_bend(q3, q2, q1, s4 - T(3) * s3, s3 + s2, T(3) * s2 - s1, t3 - t2, middle);
    const T g = T(1) / (T(12) * h);
    return {(central - below) * g, (central + above) * g};
}

// The argument of smaller magnitude if both have one sign, else zero.
template <typename T>
__device__ __forceinline__ T minmod(T a, T b) {
    const T small = fabs(a) < fabs(b) ? a : b;
    return (a > T(0)) == (b > T(0)) ? small : T(0) * a;
}

// Left and right second-order ENO derivatives of five samples with spacing h.
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
    T a = outward ? left : -left;
    T b = outward ? right : -right;
    a = a > T(0) ? a : T(0) * a;
    b = b < T(0) ? b : T(0) * b;
    return a * a > b * b ? a * a : b * b;
}
