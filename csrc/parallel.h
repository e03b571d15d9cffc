// torch's own thread pool: GOMP_parallel of the OpenMP runtime that torch loaded, handed over by address, so that two
// pools never fight for the processor and no OpenMP is needed to build. Without one the work runs on the caller.
#pragma once
#include <atomic>
#include <cstdint>

namespace {

using Fork = void (*)(void (*)(void*), void*, unsigned, unsigned);
Fork fork_pool = nullptr;

template <class Body>
struct Shared {
  const Body& body;
  int64_t count, grain;
  unsigned threads;
  std::atomic<int64_t> next{0};
};

// A thread takes half of its share of what is left, again and again: memory is read in long runs, and nobody waits.
template <class Body>
void work(void* shared) {
  auto& s = *static_cast<Shared<Body>*>(shared);
  for (int64_t first = s.next.load(std::memory_order_relaxed); first < s.count;) {
    int64_t left = s.count - first, size = left / (2 * s.threads) / s.grain * s.grain;
    if (size < s.grain) size = left < s.grain ? left : s.grain;
    if (!s.next.compare_exchange_weak(first, first + size, std::memory_order_relaxed)) continue;
    s.body(first, first + size);
    first = s.next.load(std::memory_order_relaxed);
  }
}

// body(first, last) over [0, count), in pieces of a multiple of `grain`; `cost` is bytes touched, and little work is
// not worth a fork.
template <class Body>
void parallel(int64_t count, int64_t grain, int64_t cost, int threads, const Body& body) {
  if (threads < 2 || !fork_pool || cost < (64 << 10) || count <= grain) return body(0, count);
  int64_t least = (count + 8 * threads - 1) / (8 * threads);  // no more than so many pieces a thread
  Shared<Body> shared{body, count, (least + grain - 1) / grain * grain, unsigned(threads)};
  fork_pool(work<Body>, &shared, unsigned(threads), 0);
}

}  // namespace
