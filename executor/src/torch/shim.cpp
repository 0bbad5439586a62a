// What tch cannot do: a tensor over memory that somebody else owns, kept alive for exactly as long as the tensor is.

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>
#include <torch/version.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>

namespace {

void report(char* text, size_t capacity, const char* what) {
  if (text != nullptr && capacity > 0) std::snprintf(text, capacity, "%s", what);
}

}  // namespace

// No exception leaves these functions: unwinding into Rust would end the process.
extern "C" {

// A CPU tensor over `data`, to be freed with tch's at_free; null, with a text, if libtorch refuses.
// `deleter(context)` runs exactly once, also when this call fails.
at::Tensor* tfos_from_blob(void* data, const int64_t* sizes, size_t ndim, int8_t dtype, void (*deleter)(void*),
                           void* context, char* text, size_t capacity) noexcept {
  try {
    // libtorch copies and drops the closure as it likes, also on its way out of a failed call; the shared pointer
    // makes the last of these the release.
    std::shared_ptr<void> owner(context, deleter);
    at::Tensor tensor =
        at::from_blob(data, at::IntArrayRef(sizes, ndim), [owner](void*) mutable { owner.reset(); },
                      at::TensorOptions().device(at::kCPU).dtype(static_cast<at::ScalarType>(dtype)));
    return new at::Tensor(std::move(tensor));
  } catch (const c10::Error& error) {
    report(text, capacity, error.what_without_backtrace());
  } catch (const std::exception& error) {
    report(text, capacity, error.what());
  } catch (...) {
    report(text, capacity, "an exception of an unknown type");
  }
  return nullptr;
}

// Where the elements of a CPU tensor start; null for a tensor without elements or without memory.
const void* tfos_data(const at::Tensor* tensor) noexcept {
  try {
    return tensor->const_data_ptr();
  } catch (...) {
    return nullptr;
  }
}

// Loads libtorch's CUDA half. 0 if it is there now; otherwise a text says why not.
int tfos_load_cuda(char* text, size_t capacity) noexcept {
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr) return 0;
  const char* what = dlerror();
  report(text, capacity, what != nullptr ? what : "unknown");
  return 1;
}

// Operations that have no order of their own become errors. 0 if it is done; otherwise a text says why not.
int tfos_set_deterministic(char* text, size_t capacity) noexcept {
  try {
    at::globalContext().setDeterministicAlgorithms(true, false);
    return 0;
  } catch (const std::exception& error) {
    report(text, capacity, error.what());
  } catch (...) {
    report(text, capacity, "an exception of an unknown type");
  }
  return 1;
}

// Products and convolutions of this thread in bf16, or as they are. 1 or 0 for what it was; otherwise a text says why not.
int tfos_autocast(bool cuda, bool on, char* text, size_t capacity) noexcept {
  try {
    const at::DeviceType device = cuda ? at::kCUDA : at::kCPU;
    const bool was = at::autocast::is_autocast_enabled(device);
    // Variables change between passes, so nothing of them is to be remembered.
    at::autocast::set_autocast_cache_enabled(false);
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::set_autocast_enabled(device, on);
    return was ? 1 : 0;
  } catch (const std::exception& error) {
    report(text, capacity, error.what());
  } catch (...) {
    report(text, capacity, "an exception of an unknown type");
  }
  return -1;
}

// Version of the libtorch that this program was compiled for.
const char* tfos_torch_version() { return TORCH_VERSION; }

}  // extern "C"
