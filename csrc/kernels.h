// What every instruction level implements: work on a range, on one thread. Nothing here allocates, locks or throws.
//
// 4-bit codes lie as in the Python reference (src/featherweight/quant/ops.py): a flat row-major tensor, two codes to a
// byte, the first in the high nibble, blocks of `block` elements that may straddle rows; an odd tail is padded with the
// code of the value nearest to zero.
#pragma once
#include <cstddef>
#include <cstdint>

enum Type : int32_t { F32 = 0, BF16 = 1 };

// A table of 16 values by code, as encoding needs it.
struct Book {
  float middle[16];   // between neighbors of the sorted table; the last is unused
  int32_t order[16];  // place in the sorted table -> code
  int32_t zero;       // code of the value nearest to zero
};

// A weight (n, k). The layout of what a caller in another language fills in: pointers, then sizes.
struct Weight {
  const void* codes;        // uint8, two to a byte; int8; or the weight itself, in the type of x
  const float* scale;       // of each block; null for a weight itself, and where they are coded too
  const float* table;       // 16 values by code; null for int8
  const uint8_t* scales;    // codes of scales: scale = scale_table[code] · scale_absmax[i / scale_block] + scale_offset
  const float *scale_table, *scale_absmax, *scale_offset;
  int64_t n, k, block, scale_block;
};

// A (rank, k) and B (n, rank) of a low-rank term; rank 0 for none.
struct Factors {
  const void *A, *B;
  int64_t rank;
  int32_t A_type, B_type;
};

// y = x Ŵᵀ + bias + c x Aᵀ Bᵀ: x (rows, k) and y (rows, n) contiguous, bias (n,) or null.
struct Linear : Weight, Factors {
  const void *x, *bias;
  void* y;
  int64_t rows;
  Type type, bias_type;  // type: of x, y and of Ŵ, which is what decoding gives
  float c;
  const float* low;      // (rows, rank), c x Aᵀ, once it is there

  bool itself() const { return !scale && !scales; }
};

// RMSNorm of rows of k elements; w and y are of the type of x.
struct Norm {
  const void *x, *w;
  void* y;
  int64_t k;
  Type type;
  float eps;
};

// One query for each of (batch, heads): q and y (batch, heads, d), k and v (batch, groups, t, d); `seen` null or a byte
// for each key, rows of it `seen_stride` apart.
struct Attend {
  const void *q, *k, *v;
  const uint8_t* seen;
  void* y;
  int64_t heads, groups, t, d, seen_stride;
  Type type;
  float scale;
};

struct Kernels {
  const char* name;
  // blocks [first, last) of n elements; `first * block` is even
  void (*encode4)(const void* x, Type type, uint8_t* codes, float* absmax, const Book& book, int64_t n, int64_t block,
                  int64_t first, int64_t last);
  // elements [begin, end), `out` is where the first goes; `begin` is even
  void (*decode4)(const uint8_t* codes, const float* absmax, const float* table, void* out, Type type, int64_t block,
                  int64_t begin, int64_t end);
  // scales [begin, end) of a weight whose scales are coded, `out` is where the first goes
  void (*scales)(const Weight& w, float* out, int64_t begin, int64_t end);
  // elements [begin, end) of codes · scale[i / block]
  void (*decode8)(const int8_t* codes, const float* scale, void* out, Type type, int64_t block, int64_t begin,
                  int64_t end);
  // rows [first, last)
  void (*quantize_rows)(const void* x, Type type, const uint8_t* skip, int8_t* codes, float* scale, int64_t k,
                        int64_t first, int64_t last);
  void (*rescale)(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, Type type,
                  int64_t m, int64_t first, int64_t last);
  // once for a product: x as the level likes it, into room for rows * k elements, k rounded up to 128; null where it
  // likes it as it is
  void (*prepare)(const Linear& a, void* shared);
  // c x Aᵀ, columns [first, last) of it
  void (*project)(const Linear& a, float* low, int64_t first, int64_t last);
  // columns [first, last) of y; `scratch` holds GROUP * k elements of the type, one for each thread
  void (*linear)(const Linear& a, int64_t first, int64_t last, void* scratch, const void* shared);
  // rows [first, last)
  void (*norm)(const Norm& a, int64_t first, int64_t last);
  // heads [first, last) of d elements by the angles of one position, d of each at `at`
  void (*rotate)(const void* x, const void* cos, const void* sin, void* y, Type type, int64_t at, int64_t d,
                 int64_t first, int64_t last);
  // heads [first, last) of batch * heads; `room` holds t + d floats, one for each thread
  void (*attend)(const Attend& a, int64_t first, int64_t last, float* room);
  // y (n) += h B: h (rank), B (rank, n) of y's type; `room` holds n floats
  void (*expand)(const float* h, const void* B, void* y, Type type, int64_t rank, int64_t n, float* room);
};

constexpr int64_t GROUP = 8;  // rows of Ŵ that are decoded at a time

const Kernels* scalar_kernels();
const Kernels* avx2_kernels();    // null where the compiler had no such flags
const Kernels* avx512_kernels();  // AVX-512 F, BW, DQ, VL, BF16
