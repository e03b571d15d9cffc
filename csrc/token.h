// What lies between the products of a token, written once and compiled for every level: norms, rotations by position,
// attention of one query, the way up of a low-rank term. Bits are those of the same steps in torch, but for sums, which
// run in another order.
#pragma once
#include <cmath>

#include "linear.h"

namespace {

// The number that stays of v in this type.
template <Type T>
inline float kept_of(float v) {
  return T == F32 ? v : from_bf16(to_bf16(v));
}

// y = w · (x / √(mean x² + ε)), rows [first, last)
template <Type T>
void norm_rows(const Norm& a, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    float mean = dot_of<T, T>(a.x, r * a.k, a.x, r * a.k, a.k) / float(a.k), by = 1 / std::sqrt(mean + a.eps);
    for (int64_t i = 0; i < a.k; i++)
      store<T>(a.y, r * a.k + i, load<T>(a.w, i) * kept_of<T>(load<T>(a.x, r * a.k + i) * by));
  }
}

// y = x cos + rotated(x) sin, (-b, a) the rotated (a, b): heads [first, last) of one row
template <Type T>
void rotate_heads(const void* x, const void* cos, const void* sin, void* y, int64_t at, int64_t d, int64_t first,
                  int64_t last) {
  for (int64_t h = first * d, half = d / 2; h < last * d; h += d)
    for (int64_t i = 0; i < half; i++) {
      float a = load<T>(x, h + i), b = load<T>(x, h + half + i);
      store<T>(y, h + i, kept_of<T>(a * load<T>(cos, at + i)) + kept_of<T>(-b * load<T>(sin, at + i)));
      store<T>(y, h + half + i,
               kept_of<T>(b * load<T>(cos, at + half + i)) + kept_of<T>(a * load<T>(sin, at + half + i)));
    }
}

// eˣ for x <= 0, to 2 units in the last place; 0 for what is below the smallest normal number
inline float exp_of(float x) {
  float near = x * 1.44269504f + 12582912.0f, n = near - 12582912.0f;  // n = round(x / ln 2)
  float r = x - n * 0.693359375f + n * 2.12194440e-4f, p = 1.0f / 720;
  p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f, p = p * r + 1, p = p * r + 1;
  return x < -87.0f ? 0 : p * number((bits(near) + 127) << 23);
}

// y = softmax(s q Kᵀ) V for one query, heads [first, last); `room` holds t + d floats
template <Type T>
void attend_heads(const Attend& a, int64_t first, int64_t last, float* room) {
  for (int64_t h = first; h < last; h++) {
    int64_t b = h / a.heads, kv = (b * a.groups + h % a.heads * a.groups / a.heads) * a.t * a.d;
    const uint8_t* seen = a.seen ? a.seen + b * a.seen_stride : nullptr;
    float *sums = room + a.t, most = -INFINITY, total = 0;
    for (int64_t j = 0; j < a.t; j++) {
      room[j] = seen && !seen[j] ? -INFINITY : a.scale * dot_of<T, T>(a.q, h * a.d, a.k, kv + j * a.d, a.d);
      most = room[j] > most ? room[j] : most;
    }
    for (int64_t i = 0; i < a.d; i++) sums[i] = 0;
    for (int64_t j = 0; j < a.t; j++) room[j] = room[j] == -INFINITY ? 0 : exp_of(room[j] - most);
    for (int64_t j = 0; j < a.t; j++) {
      total += room[j];
      if (room[j] != 0)
        for (int64_t i = 0; i < a.d; i++) sums[i] += room[j] * load<T>(a.v, kv + j * a.d + i);
    }
    for (int64_t i = 0; i < a.d; i++) store<T>(a.y, h * a.d + i, total == 0 ? 0 : sums[i] / total);
  }
}

// y += h B, four rows of B at a time
template <Type T>
void expand_row(const float* h, const void* B, void* y, int64_t rank, int64_t n, float* sums) {
  for (int64_t i = 0; i < n; i++) sums[i] = 0;
  int64_t r = 0;
  for (; r + 4 <= rank; r += 4, h += 4)
    for (int64_t i = 0, b = r * n; i < n; i++, b++)
      sums[i] += (h[0] * load<T>(B, b) + h[1] * load<T>(B, b + n)) +
                 (h[2] * load<T>(B, b + 2 * n) + h[3] * load<T>(B, b + 3 * n));
  for (; r < rank; r++, h++)
    for (int64_t i = 0; i < n; i++) sums[i] += h[0] * load<T>(B, r * n + i);
  for (int64_t i = 0; i < n; i++) store<T>(y, i, load<T>(y, i) + sums[i]);
}

inline void norm(const Norm& a, int64_t first, int64_t last) {
  (a.type == F32 ? norm_rows<F32> : norm_rows<BF16>)(a, first, last);
}

inline void rotate(const void* x, const void* cos, const void* sin, void* y, Type type, int64_t at, int64_t d,
                   int64_t first, int64_t last) {
  (type == F32 ? rotate_heads<F32> : rotate_heads<BF16>)(x, cos, sin, y, at, d, first, last);
}

inline void attend(const Attend& a, int64_t first, int64_t last, float* room) {
  (a.type == F32 ? attend_heads<F32> : attend_heads<BF16>)(a, first, last, room);
}

inline void expand(const float* h, const void* B, void* y, Type type, int64_t rank, int64_t n, float* room) {
  (type == F32 ? expand_row<F32> : expand_row<BF16>)(h, B, y, rank, n, room);
}

}  // namespace
