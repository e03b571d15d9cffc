// y = x Ŵᵀ + b on packed weights: a group of rows of Ŵ is decoded into a scratch that stays in cache and meets every
// row of x there, so that codes are read once and Ŵ is never written to memory. Ŵ is, to the bit, what decoding gives.
#pragma once
#include "common.h"

namespace {

template <Type T>
inline void finish(const Linear& a, int64_t m, int64_t first, int64_t count, const float* sums) {
  for (int64_t r = 0; r < count; r++)
    store<T>(a.y, m * a.n + first + r, a.bias ? sums[r] + a.bias[first + r] : sums[r]);
}

// Level has decode(a, out, begin, end), TILE and dots<T>(w, count, x, m, rows, k, sums): the products of `count` rows of
// w with rows m .. m + rows of x, rows <= TILE, as sums[row * GROUP + r].
template <class Level, Type T>
void linear_typed(const Linear& a, int64_t first, int64_t last, void* scratch) {
  float sums[Level::TILE * GROUP];
  for (int64_t n = first; n < last; n += GROUP) {
    int64_t count = least(GROUP, last - n);
    Level::decode(a, scratch, n * a.k, (n + count) * a.k);
    for (int64_t m = 0; m < a.rows; m += Level::TILE) {
      int64_t rows = least(Level::TILE, a.rows - m);
      Level::template dots<T>(scratch, count, a.x, m, rows, a.k, sums);
      for (int64_t i = 0; i < rows; i++) finish<T>(a, m + i, n, count, sums + i * GROUP);
    }
  }
}

template <class Level>
void linear_groups(const Linear& a, int64_t first, int64_t last, void* scratch) {
  (a.type == F32 ? linear_typed<Level, F32> : linear_typed<Level, BF16>)(a, first, last, scratch);
}

}  // namespace
