// What tch cannot do with a TorchScript module: its buffers, and reading and writing it as bytes.

#include <torch/script.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <istream>
#include <sstream>
#include <stdexcept>
#include <streambuf>
#include <string>
#include <vector>

namespace {

using Module = torch::jit::Module;

// A script's error ends with what is wrong, behind a trace of the script; any other begins with it.
void report(char* text, size_t capacity, std::string what) {
  size_t error = what.rfind("Error: ");
  if (error != std::string::npos) {
    size_t line = what.rfind('\n', error);
    what = what.substr(line == std::string::npos ? 0 : line + 1);
  }
  if (text != nullptr && capacity > 0) std::snprintf(text, capacity, "%s", what.c_str());
}

// Bytes that somebody else owns, as a stream that can be sought in.
class Bytes : public std::streambuf {
 public:
  Bytes(const char* data, size_t size) {
    char* begin = const_cast<char*>(data);
    setg(begin, begin, begin + size);
  }

 protected:
  pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override {
    char* base = from == std::ios_base::beg ? eback() : from == std::ios_base::cur ? gptr() : egptr();
    if (offset < eback() - base || offset > egptr() - base) return pos_type(off_type(-1));
    setg(eback(), base + offset, egptr());
    return gptr() - eback();
  }

  pos_type seekpos(pos_type position, std::ios_base::openmode mode) override {
    return seekoff(off_type(position), std::ios_base::beg, mode);
  }
};

template <typename Body>
bool guarded(char* text, size_t capacity, Body body) noexcept {
  try {
    body();
    return true;
  } catch (const c10::Error& error) {
    report(text, capacity, error.what_without_backtrace());
  } catch (const std::exception& error) {
    report(text, capacity, error.what());
  } catch (...) {
    report(text, capacity, "an exception of an unknown type");
  }
  return false;
}

}  // namespace

// No exception leaves these functions: unwinding into Rust would end the process. Where one fails, `text` says why.
extern "C" {

// A module from the bytes of its file; `cuda` is the number of a GPU, or -1. Freed with tfos_module_free.
Module* tfos_module_load(const char* data, size_t size, int cuda, char* text, size_t capacity) noexcept {
  Module* module = nullptr;
  guarded(text, capacity, [&] {
    Bytes bytes(data, size);
    std::istream stream(&bytes);
    c10::Device device = cuda < 0 ? c10::Device(c10::kCPU) : c10::Device(c10::kCUDA, static_cast<int8_t>(cuda));
    module = new Module(torch::jit::load(stream, device));
  });
  return module;
}

void tfos_module_free(Module* module) noexcept {
  guarded(nullptr, 0, [&] { delete module; });
}

// Gives `take` each parameter and each buffer, by its full name; the tensors are to be freed with tch's at_free.
bool tfos_module_tensors(const Module* module, void* context,
                         void (*take)(void*, const char* name, bool parameter, at::Tensor*), char* text,
                         size_t capacity) noexcept {
  return guarded(text, capacity, [&] {
    for (const auto& p : module->named_parameters()) take(context, p.name.c_str(), true, new at::Tensor(p.value));
    for (const auto& b : module->named_buffers()) take(context, b.name.c_str(), false, new at::Tensor(b.value));
  });
}

// The tensor that `forward` gives; null if it fails or gives something else.
at::Tensor* tfos_module_forward(Module* module, at::Tensor* const* inputs, size_t count, char* text,
                                size_t capacity) noexcept {
  at::Tensor* output = nullptr;
  guarded(text, capacity, [&] {
    std::vector<c10::IValue> values;
    for (size_t i = 0; i < count; ++i) values.emplace_back(*inputs[i]);
    c10::IValue value = module->forward(std::move(values));
    if (!value.isTensor()) throw std::runtime_error("forward gives a " + value.tagKind() + " and not a tensor");
    output = new at::Tensor(value.toTensor());
  });
  return output;
}

// On: dropout and normalization as in training.
bool tfos_module_train(Module* module, bool on, char* text, size_t capacity) noexcept {
  return guarded(text, capacity, [&] { module->train(on); });
}

// Gives `take` the bytes of the module's file.
bool tfos_module_save(const Module* module, void* context, void (*take)(void*, const void* data, size_t size),
                      char* text, size_t capacity) noexcept {
  return guarded(text, capacity, [&] {
    std::ostringstream out;
    module->save(out);
    const std::string bytes = out.str();
    take(context, bytes.data(), bytes.size());
  });
}

}  // extern "C"
