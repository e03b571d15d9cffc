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
  int64_t count, chunk;
  std::atomic<int64_t> next{0};
};

template <class Body>
void work(void* shared) {
  auto& s = *static_cast<Shared<Body>*>(shared);
  for (;;) {
    int64_t first = s.next.fetch_add(s.chunk, std::memory_order_relaxed);
    if (first >= s.count) return;
    s.body(first, first + s.chunk < s.count ? first + s.chunk : s.count);
  }
}

// body(first, last) over [0, count), in chunks of a multiple of `grain`; `cost` is bytes touched, and little work is
// not worth a fork.
template <class Body>
void parallel(int64_t count, int64_t grain, int64_t cost, int threads, const Body& body) {
  if (threads < 2 || !fork_pool || cost < (64 << 10) || count <= grain) return body(0, count);
  int64_t pieces = (count + grain - 1) / grain, chunk = (pieces + 8 * threads - 1) / (8 * threads);
  Shared<Body> shared{body, count, chunk * grain};
  fork_pool(work<Body>, &shared, unsigned(threads), 0);
}

}  // namespace
