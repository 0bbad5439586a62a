// What tch has no words for: being told of a gradient while the backward pass goes on, and giving one up.

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>

namespace {

using Tell = void (*)(void*, uint32_t, at::Tensor*);

// Lives as long as the variable.
class Told : public torch::autograd::PostAccumulateGradHook {
 public:
  Told(Tell tell, std::shared_ptr<void> context, uint32_t number)
      : tell_(tell), context_(std::move(context)), number_(number) {}

  void operator()(const at::Tensor& variable) override {
    const at::Tensor& gradient = variable.grad();
    if (gradient.defined()) tell_(context_.get(), number_, new at::Tensor(gradient));
  }

 private:
  Tell tell_;
  std::shared_ptr<void> context_;
  uint32_t number_;
};

template <typename Body>
int guarded(char* text, size_t capacity, Body body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    if (capacity > 0) std::snprintf(text, capacity, "%s", error.what());
  } catch (...) {
    if (capacity > 0) std::snprintf(text, capacity, "an exception of an unknown type");
  }
  return 1;
}

}  // namespace

// No exception leaves these functions: unwinding into Rust would end the process. 0 if it is done; otherwise a text says
// why not.
extern "C" {

// From now on `tell(context, number, gradient)` is called on the thread of the backward pass whenever the gradient of the
// leaf `variable` is whole; the tensor is to be freed with tch's at_free. `release(context)` runs exactly once, with the
// variable or when this call fails.
int tfos_on_gradient(at::Tensor* variable, uint32_t number, Tell tell, void* context, void (*release)(void*),
                     char* text, size_t capacity) noexcept {
  return guarded(text, capacity, [&] {
    std::shared_ptr<void> owner(context, release);
    torch::autograd::impl::set_post_acc_grad_hooks(*variable, std::make_unique<Told>(tell, std::move(owner), number));
  });
}

// The variable has no gradient any more: the next backward pass leaves its own there, instead of adding to this one.
int tfos_forget_gradient(at::Tensor* variable, char* text, size_t capacity) noexcept {
  return guarded(text, capacity, [&] { variable->mutable_grad().reset(); });
}

}  // extern "C"
