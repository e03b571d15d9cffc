// The C ABI that ctypes calls: picks a level once, cuts work into ranges, runs them on torch's threads.
#include <cstdlib>

#include "common.h"
#include "parallel.h"

#define API extern "C" __attribute__((visibility("default")))

namespace {

const Kernels* level = nullptr;

bool runs(const Kernels* k) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (k == avx512_kernels())
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
  if (k == avx2_kernels()) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return k == scalar_kernels();
}

Book book(const float* table) {
  Book b;
  int order[16];
  for (int i = 0; i < 16; i++) {  // stable, like the reference's sort
    int j = i;
    for (; j && table[order[j - 1]] > table[i]; j--) order[j] = order[j - 1];
    order[j] = i;
  }
  b.zero = 0;
  for (int i = 0; i < 16; i++) {
    b.order[i] = order[i];
    b.middle[i] = i < 15 ? (table[order[i + 1]] + table[order[i]]) / 2 : 0;
    if (number(bits(table[i]) & 0x7fffffffu) < number(bits(table[b.zero]) & 0x7fffffffu)) b.zero = i;
  }
  return b;
}

// One buffer per thread, kept.
struct Scratch {
  void* data = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(data); }
  void* at_least(size_t bytes) {
    if (bytes > size) {
      std::free(data);
      size = (bytes + 4095) / 4096 * 4096;
      data = std::aligned_alloc(64, size);
      if (!data) std::abort();
    }
    return data;
  }
};
thread_local Scratch scratch, scales, shared;

int64_t width(int32_t type) { return type == F32 ? 4 : 2; }

// columns [first, last) of y; coded scales are decoded a few rows at a time, into a buffer that stays in cache
void columns(Linear a, int64_t first, int64_t last, const void* ready) {
  void* room = scratch.at_least(size_t(GROUP * a.k * 4));
  if (!a.scales) return level->linear(a, first, last, room, ready);
  int64_t step = (4096 * a.block / a.k / GROUP + 1) * GROUP;
  for (int64_t n = first; n < last; n += step) {
    int64_t stop = least(n + step, last), begin = n * a.k / a.block, end = (stop * a.k + a.block - 1) / a.block;
    float* out = static_cast<float*>(scales.at_least(size_t(end - begin) * 4));
    level->scales(a, out, begin, end);
    a.scale = out - begin;
    level->linear(a, n, stop, room, ready);
  }
}

}  // namespace

// Changes with every signature here; src/featherweight/kernels/native.py refuses a library of another number.
API int32_t fw_abi() { return 5; }

// Levels that this library has and this processor runs: bit 0 scalar, 1 AVX2, 2 AVX-512 with BF16.
API int32_t fw_levels() {
  const Kernels* all[] = {scalar_kernels(), avx2_kernels(), avx512_kernels()};
  int32_t found = 0;
  for (int i = 0; i < 3; i++)
    if (all[i] && runs(all[i])) found |= 1 << i;
  return found;
}

API void fw_start(int32_t chosen, void* pool) {
  const Kernels* all[] = {scalar_kernels(), avx2_kernels(), avx512_kernels()};
  level = all[chosen];
  fork_pool = reinterpret_cast<Fork>(pool);
}

API void fw_encode4(const void* x, int32_t type, uint8_t* codes, float* absmax, const float* table, int64_t n,
                    int64_t block, int32_t threads) {
  Book b = book(table);
  parallel((n + block - 1) / block, 2, n * width(type), threads, [&](int64_t first, int64_t last) {
    level->encode4(x, Type(type), codes, absmax, b, n, block, first, last);
  });
}

API void fw_decode4(const uint8_t* codes, const float* absmax, const float* table, void* out, int32_t type, int64_t n,
                    int64_t block, int32_t threads) {
  parallel(n, 4096, n * width(type), threads, [&](int64_t begin, int64_t end) {
    void* at = static_cast<char*>(out) + begin * width(type);
    level->decode4(codes, absmax, table, at, Type(type), block, begin, end);
  });
}

API void fw_decode8(const int8_t* codes, const float* scale, void* out, int32_t type, int64_t n, int64_t block,
                    int32_t threads) {
  parallel(n, 4096, n * width(type), threads, [&](int64_t begin, int64_t end) {
    void* at = static_cast<char*>(out) + begin * width(type);
    level->decode8(codes, scale, at, Type(type), block, begin, end);
  });
}

// map[code] · absmax[i / block] + offset: the scales of doubly quantized blocks.
API void fw_decode_scales(const uint8_t* codes, const float* map, const float* absmax, const float* offset, float* out,
                          int64_t n, int64_t block, int32_t threads) {
  Weight w{};
  w.scales = codes, w.scale_table = map, w.scale_absmax = absmax, w.scale_offset = offset, w.scale_block = block;
  parallel(n, 4096, n * 8, threads, [&](int64_t begin, int64_t end) { level->scales(w, out + begin, begin, end); });
}

API void fw_quantize_rows(const void* x, int32_t type, const uint8_t* skip, int8_t* codes, float* scale, int64_t n,
                          int64_t k, int32_t threads) {
  parallel(n, 1, n * k * width(type), threads, [&](int64_t first, int64_t last) {
    level->quantize_rows(x, Type(type), skip, codes, scale, k, first, last);
  });
}

API void fw_rescale(const int32_t* acc, const float* row, const float* col, const float* bias, void* out, int32_t type,
                    int64_t n, int64_t m, int32_t threads) {
  parallel(n, 1, n * m * 4, threads, [&](int64_t first, int64_t last) {
    level->rescale(acc, row, col, bias, out, Type(type), m, first, last);
  });
}

// y = x Ŵᵀ + bias + c x Aᵀ Bᵀ
API void fw_linear(const Weight* w, const Factors* f, float c, const void* x, int32_t type, const void* bias,
                   int32_t bias_type, void* y, int64_t rows, int32_t threads) {
  Linear a{};
  static_cast<Weight&>(a) = *w;
  if (f) static_cast<Factors&>(a) = *f;
  a.x = x, a.bias = bias, a.y = y, a.rows = rows, a.type = Type(type), a.bias_type = Type(bias_type), a.c = c;
  size_t laid_out = level->prepare ? size_t(rows * ((a.k + 127) / 128) * 128 * width(type)) : 0;
  char* ready = static_cast<char*>(shared.at_least(laid_out + size_t(rows * a.rank * 4)));
  float* low = reinterpret_cast<float*>(ready + laid_out);
  a.low = low;
  if (level->prepare) level->prepare(a, ready);
  parallel(a.rank, 1, a.rank * a.k * width(a.A_type), threads,
           [&](int64_t first, int64_t last) { level->project(a, low, first, last); });
  parallel(a.n, GROUP, a.n * a.k / 2 * rows, threads,
           [&](int64_t first, int64_t last) { columns(a, first, last, ready); });
}

// w · x / √(mean x² + ε) of n rows of k
API void fw_norm(const void* x, int32_t type, const void* w, void* y, float eps, int64_t n, int64_t k) {
  level->norm({x, w, y, k, Type(type), eps}, 0, n);
}

// q (n, heads, d) and k (n, groups, d) turned by angles cos, sin (n or 1, d): `step` is d or 0
API void fw_rotate(const void* q, const void* k, int32_t type, const void* cos, const void* sin, void* to_q, void* to_k,
                   int64_t n, int64_t heads, int64_t groups, int64_t d, int64_t step) {
  for (int64_t i = 0; i < n; i++) {
    level->rotate(q, cos, sin, to_q, Type(type), i * step, d, i * heads, (i + 1) * heads);
    level->rotate(k, cos, sin, to_k, Type(type), i * step, d, i * groups, (i + 1) * groups);
  }
}

// softmax(scale q kᵀ) v, one query of each of n · heads
API void fw_attend(const void* q, const void* k, const void* v, int32_t type, const uint8_t* seen, int64_t step, void* y,
                   float scale, int64_t n, int64_t heads, int64_t groups, int64_t t, int64_t d, int32_t threads) {
  Attend a{q, k, v, seen, y, heads, groups, t, d, step, Type(type), scale};
  parallel(n * heads, heads / groups, n * groups * t * d * width(type), threads, [&](int64_t first, int64_t last) {
    level->attend(a, first, last, static_cast<float*>(scratch.at_least(size_t(t + d) * 4)));
  });
}

// y_i += (A_j x_i) B_j for the `tokens` rows i of each place: x (·, k), y (·, n), A (·, rank, k), B (·, rank, n);
// place `at[e]` takes adapter j = of[e]
API void fw_bank(const void* x, int32_t type, const void* A, const void* B, void* y, const int64_t* at,
                 const int64_t* of, int64_t count, int64_t tokens, int64_t rank, int64_t k, int64_t n,
                 int32_t threads) {
  int64_t wide = width(type);
  auto part = [wide](const void* p, int64_t i) { return const_cast<char*>(static_cast<const char*>(p)) + i * wide; };
  parallel(count, 1, count * rank * (k + n) * wide, threads, [&](int64_t first, int64_t last) {
    float* h = static_cast<float*>(scratch.at_least(size_t(tokens * rank + n) * 4));
    for (int64_t e = first; e < last; e++) {
      Linear a{};
      a.x = part(x, at[e] * tokens * k), a.A = part(A, of[e] * rank * k), a.c = 1;
      a.rows = tokens, a.rank = rank, a.k = k, a.type = Type(type), a.A_type = type;
      level->project(a, h, 0, rank);
      for (int64_t t = 0; t < tokens; t++)
        level->expand(h + t * rank, part(B, of[e] * rank * n), part(y, (at[e] * tokens + t) * n), Type(type), rank, n,
                      h + tokens * rank);
    }
  });
}
