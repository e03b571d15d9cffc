// y = x Ŵᵀ + b on packed weights (or on W itself): a group of rows of Ŵ is decoded into a scratch that stays in cache and meets every
// row of x there, so that codes are read once and Ŵ is never written to memory. Ŵ is, to the bit, what decoding gives.
#pragma once
#include "common.h"

namespace {

inline float bias_of(const Linear& a, int64_t n) {
  return a.bias_type == F32 ? load<F32>(a.bias, n) : load<BF16>(a.bias, n);
}

template <Type T>
inline void finish(const Linear& a, int64_t m, int64_t first, int64_t count, const float* sums) {
  for (int64_t r = 0; r < count; r++)
    store<T>(a.y, m * a.n + first + r, a.bias ? sums[r] + bias_of(a, first + r) : sums[r]);
}

// Σ u v, eight sums at a time so that a compiler may keep them in a vector
template <Type U, Type V>
inline float dot_of(const void* u, int64_t iu, const void* v, int64_t iv, int64_t k) {
  float sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (int j = 0; j < 8; j++) sum[j] += load<U>(u, iu + i + j) * load<V>(v, iv + i + j);
  for (; i < k; i++) sum[i & 7] += load<U>(u, iu + i) * load<V>(v, iv + i);
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

template <Type X, Type A>
inline void project_typed(const Linear& a, float* low, int64_t first, int64_t last) {
  for (int64_t m = 0; m < a.rows; m++)
    for (int64_t r = first; r < last; r++) low[m * a.rank + r] = a.c * dot_of<X, A>(a.x, m * a.k, a.A, r * a.k, a.k);
}

inline void project_plain(const Linear& a, float* low, int64_t first, int64_t last) {
  if (a.A_type == F32)
    (a.type == F32 ? project_typed<F32, F32> : project_typed<BF16, F32>)(a, low, first, last);
  else
    (a.type == F32 ? project_typed<F32, BF16> : project_typed<BF16, BF16>)(a, low, first, last);
}

// Adds what the low-rank term has for `count` rows of B.
inline void add_low(const Linear& a, int64_t m, int64_t first, int64_t count, float* sums) {
  for (int64_t r = 0; r < count && a.rank; r++)
    sums[r] += (a.B_type == F32 ? dot_of<F32, F32> : dot_of<F32, BF16>)(a.low, m * a.rank, a.B, (first + r) * a.rank,
                                                                       a.rank);
}

// Level has decode(a, out, begin, end), low as add_low, TILE and dots<T>(w, count, x, m, rows, k, sums): the products of `count` rows of
// w with rows m .. m + rows of x, rows <= TILE, as sums[row * GROUP + r]; `ahead`: w goes on in memory behind them.
template <class Level, Type T>
void linear_typed(const Linear& a, int64_t first, int64_t last, void* scratch) {
  float sums[Level::TILE * GROUP];
  for (int64_t n = first; n < last; n += GROUP) {
    int64_t count = least(GROUP, last - n);
    const void* group = scratch;
    if (a.itself())
      group = static_cast<const char*>(a.codes) + n * a.k * (T == F32 ? 4 : 2);
    else
      Level::decode(a, scratch, n * a.k, (n + count) * a.k);
    for (int64_t m = 0; m < a.rows; m += Level::TILE) {
      int64_t rows = least(Level::TILE, a.rows - m);
      Level::template dots<T>(group, count, a.x, m, rows, a.k, a.itself(), sums);
      for (int64_t i = 0; i < rows; i++) {
        Level::low(a, m + i, n, count, sums + i * GROUP);
        finish<T>(a, m + i, n, count, sums + i * GROUP);
      }
    }
  }
}

template <class Level>
void linear_groups(const Linear& a, int64_t first, int64_t last, void* scratch) {
  (a.type == F32 ? linear_typed<Level, F32> : linear_typed<Level, BF16>)(a, first, last, scratch);
}

}  // namespace
