// Runs an autoencoder folder on given tensors, for the parity test: vae_probe FOLDER IN.safetensors OUT.safetensors.
#include <ATen/ATen.h>

#include <iostream>

#include "moh/base/error.h"
#include "moh/models/vae.h"

int main(int argc, char** argv) {
  try {
    MOH_CHECK(argc == 4, "vae_probe FOLDER IN.safetensors OUT.safetensors");
    const moh::models::Vae vae = moh::models::Vae::load(argv[1]);
    moh::io::NamedTensors results;
    for (const auto& [name, tensor] : moh::io::load_tensors(argv[2])) {
      if (name == "pictures") {
        const auto latents = vae.encode(tensor);
        results.emplace_back("mean", latents.mean);
        results.emplace_back("log_variance", latents.log_variance);
      } else {
        results.emplace_back("decoded", vae.decode(tensor));
      }
    }
    moh::io::save_tensors(argv[3], results);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
