// The level every processor has: the reference's arithmetic, element by element.
#include "common.h"
#include "linear.h"
#include "token.h"

namespace {

void encode4(const void* x, Type type, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block,
             int64_t first, int64_t last) {
  (type == F32 ? encode4_plain<F32> : encode4_plain<BF16>)(x, codes, absmax, book, n, block, first, last);
}

void decode4(const uint8_t* codes, const float* absmax, const float* table, void* out, Type type, int64_t block,
             int64_t begin, int64_t end) {
  (type == F32 ? decode4_plain<F32> : decode4_plain<BF16>)(codes, absmax, table, out, block, begin, end);
}

void decode8(const int8_t* codes, const float* scale, void* out, Type type, int64_t block, int64_t begin, int64_t end) {
  (type == F32 ? decode8_plain<F32> : decode8_plain<BF16>)(codes, scale, out, block, begin, end);
}

// To the nearest integer, half to even, for |v| < 2²².
inline float nearest(float v) { return (v + 12582912.0f) - 12582912.0f; }

template <Type T>
void rows(const void* x, const uint8_t* skip, int8_t* codes, float* scale, int64_t k, int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++) {
    uint32_t most = 0;
    for (int64_t i = 0; i < k; i++) {
      uint32_t u = skip && skip[i] ? 0 : bits(load<T>(x, r * k + i)) & 0x7fffffffu;
      most = u > most ? u : most;
    }
    scale[r] = number(most) / 127.0f;
    float inverse = row_inverse(most);
    for (int64_t i = 0; i < k; i++) {
      bool none = inverse == 0 || (skip && skip[i]);
      codes[r * k + i] = none ? 0 : int8_t(nearest(load<T>(x, r * k + i) * inverse));
    }
  }
}

void quantize_rows(const void* x, Type type, const uint8_t* skip, int8_t* codes, float* scale, int64_t k, int64_t first,
                   int64_t last) {
  (type == F32 ? rows<F32> : rows<BF16>)(x, skip, codes, scale, k, first, last);
}

template <Type T>
void floats(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, int64_t m,
            int64_t first, int64_t last) {
  for (int64_t r = first; r < last; r++)
    for (int64_t i = 0; i < m; i++) {
      float v = float(acc[r * m + i]) * row[r] * col[i];
      store<T>(out, r * m + i, bias ? v + bias[i] : v);
    }
}

void rescale(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, Type type, int64_t m,
             int64_t first, int64_t last) {
  (type == F32 ? floats<F32> : floats<BF16>)(acc, row, col, bias, out, m, first, last);
}

struct Level {
  static constexpr auto low = add_low;
  static void decode(const Linear& a, void* out, int64_t begin, int64_t end) {
    if (a.table)
      decode4(static_cast<const uint8_t*>(a.codes), a.scale, a.table, out, a.type, a.block, begin, end);
    else
      decode8(static_cast<const int8_t*>(a.codes), a.scale, out, a.type, a.block, begin, end);
  }

  template <Type T>
  static void dots(const void* w, int64_t count, const void* x, int64_t m, int64_t, int64_t k, bool, float* sums) {
    for (int64_t r = 0; r < count; r++) sums[r] = dot_of<T, T>(w, r * k, x, m * k, k);
  }

  static constexpr int TILE = 1;
};

void linear(const Linear& a, int64_t first, int64_t last, void* scratch, const void*) {
  linear_groups<Level>(a, first, last, scratch);
}

const Kernels KERNELS = {"scalar",  encode4, decode4,       scales_plain, decode8, quantize_rows,
                         rescale, nullptr, project_plain, linear,       norm,    rotate,
                         attend, expand};

}  // namespace

const Kernels* scalar_kernels() { return &KERNELS; }
