// Memory of libtorch's tensors that is not libtorch's own: what a thread computes while it is armed lies where its source says.

#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <cstddef>
#include <cstdint>

namespace {

// A place for so many bytes, and what to give back in the end; null if there is none.
using Take = void* (*)(void* source, size_t bytes, void** block);
using Give = void (*)(void* block);

struct Armed {
  void* source = nullptr;
  size_t least = 0;
  Take take = nullptr;
  Give give = nullptr;
};

thread_local Armed armed;

class Elsewhere final : public c10::Allocator {
 public:
  explicit Elsewhere(c10::Allocator* below) : below_(below) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (armed.source != nullptr && bytes >= armed.least) {
      void* block = nullptr;
      void* place = armed.take(armed.source, bytes, &block);
      if (place != nullptr) return {place, block, armed.give, c10::Device(c10::DeviceType::CPU)};
    }
    return below_->allocate(bytes);
  }

  // There is one deleter for what was allocated below, and another one here.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

  void copy_data(void* to, const void* from, size_t count) const override { below_->copy_data(to, from, count); }

 private:
  c10::Allocator* below_;
};

}  // namespace

extern "C" {

// Until it is called with null, tensors of at least `least` bytes that this thread makes lie where `take(source, …)` says;
// `give` is called once for each, on any thread. The source has to outlive the armed time, blocks outlive it as they like.
// 1 if it is done, 0 if libtorch refuses.
int tfos_arm(void* source, size_t least, Take take, Give give) noexcept {
  try {
    // For good: tensors remember who made them.
    static Elsewhere* installed = [] {
      auto* made = new Elsewhere(c10::GetCPUAllocator());
      c10::SetCPUAllocator(made, UINT8_MAX);
      return made;
    }();
    (void)installed;
    armed = Armed{source, least, take, give};
    return 1;
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
