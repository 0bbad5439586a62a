// Memory of libtorch's tensors that is not libtorch's own: what a thread computes while it is armed lies where its source says.

#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstddef>
#include <cstdint>

namespace {

// A place for so many bytes; null if there is none.
using Take = void* (*)(void* source, size_t bytes);
// Gives a place back; 0 if it is none.
using Give = int (*)(void* place);

struct Armed {
  void* source = nullptr;
  size_t least = 0;
  Take take = nullptr;
};

thread_local Armed armed;

// Set once, before the first place is taken.
c10::Allocator* below = nullptr;
Give give = nullptr;

// Of whatever was allocated: oneDNN frees by the address alone.
void release(void* place) {
  if (place != nullptr && give(place) == 0) below->raw_deallocate(place);
}

class Elsewhere final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (armed.source != nullptr && bytes >= armed.least) {
      void* place = armed.take(armed.source, bytes);
      if (place != nullptr) return {place, place, &release, c10::Device(c10::DeviceType::CPU)};
    }
    return below->allocate(bytes);
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, size_t count) const override { below->copy_data(to, from, count); }
};

}  // namespace

extern "C" {

// Until it is called with null, tensors of at least `least` bytes that this thread makes lie where `take(source, …)` says;
// `give`, the same in all calls, is called once for each, on any thread. The source has to outlive the armed time, places
// outlive it as they like. 1 if it is done, 0 if libtorch refuses.
int tfos_arm(void* source, size_t least, Take take, Give gives) noexcept {
  try {
    // For good: tensors remember who made them.
    static const bool installed = [gives] {
      below = c10::GetCPUAllocator();
      give = gives;
      if (below->raw_deleter() == nullptr) return false;
      c10::SetCPUAllocator(new Elsewhere(), UINT8_MAX);
      return true;
    }();
    armed = Armed{installed ? source : nullptr, least, take};
    return installed ? 1 : 0;
  } catch (...) {
    return 0;
  }
}

// How many hold the memory of a tensor.
size_t tfos_holders(const at::Tensor* tensor) noexcept {
  try {
    return tensor->storage().use_count();
  } catch (...) {
    return SIZE_MAX;
  }
}

}  // extern "C"
