// Runs a package of AOTInductor without Python. The library of fastrnn's ops must be open before the package is: the
// package calls them by name, through torch's dispatcher.
//
//   aoti_main fastrnn/_C.abi3.so package.pt2 T N I
//
// Prints each result in a line: its shape, a colon, and its values.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

int main(int argc, char** argv) try {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s LIBRARY|none PACKAGE T N I\n", argv[0]);
    return 2;
  }
  if (std::string(argv[1]) != "none" && dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(argv[2]);

  const int64_t T = std::atoll(argv[3]), N = std::atoll(argv[4]), I = std::atoll(argv[5]);
  const at::Tensor x = at::arange(N * T * I, at::kDouble).sin().view({N, T, I});
  const at::Tensor lengths = (at::arange(N, at::kLong) * 3).remainder(T + 1);
  for (const at::Tensor& result : model.run({x, lengths})) {
    for (int64_t dim = 0; dim < result.dim(); ++dim) std::printf("%s%ld", dim ? " " : "", long(result.size(dim)));
    std::printf(":");
    const at::Tensor values = result.contiguous();
    for (int64_t i = 0; i < values.numel(); ++i) std::printf(" %.17g", values.const_data_ptr<double>()[i]);
    std::printf("\n");
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
