#include "card.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

namespace moestream::cuda {

// Freeing memory of a context that a fault has ended fails; the memory is gone with the context.
Memory::~Memory() {
  try {
    driver_.free(address_);
  } catch (const CudaError& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
}

Card::Card(Driver& driver, const std::string& folder) : driver_(driver) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".ptx") continue;
    std::ostringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    sources_[entry.path().filename().string()] = text.str();
  }
  if (sources_.empty()) throw CudaError("no .ptx files in " + folder);
  load();
}

void Card::load() {
  modules_.clear();
  refused_.clear();
  for (const auto& [file, text] : sources_) {
    try {
      modules_.push_back(driver_.load_module(text));
    } catch (const CudaError& error) {
      refused_.push_back(file + ": " + error.what());
    }
  }
}

void Card::restart() {
  driver_.close_context();
  driver_.open_context();
  load();
}

void* Card::function(const std::string& kernel) {
  for (void* const module : modules_) {
    void* const found = driver_.find_function(module, kernel);
    if (found != nullptr) return found;
  }
  throw CudaError("no PTX has " + kernel);
}

// Every buffer goes to the card and back; memory that is bound twice goes once.
void Card::run(const gpu::Dispatch& dispatch) {
  void* const kernel = function(dispatch.kernel);
  std::map<std::byte*, std::unique_ptr<Memory>> memory;
  Arguments arguments;
  for (const gpu::Bound& bound : dispatch.buffers) {
    std::unique_ptr<Memory>& on_card = memory[bound.bytes.data()];
    if (on_card == nullptr) {
      on_card = std::make_unique<Memory>(driver_, bound.bytes.size());
      driver_.upload(on_card->address(), bound.bytes.data(), bound.bytes.size());
    }
    arguments.buffers[bound.index] = on_card->address();
  }
  driver_.launch(kernel, dispatch.groups, dispatch.threads, &arguments);
  driver_.synchronise();
  for (const auto& [bytes, on_card] : memory) driver_.download(bytes, on_card->address(), on_card->bytes());
}

}  // namespace moestream::cuda
