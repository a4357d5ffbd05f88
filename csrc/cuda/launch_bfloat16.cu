// The kernels for bf16.
#include "cuda/launch.cuh"

namespace fastrnn::cuda {
FASTRNN_INSTANTIATE_LAUNCH(BFloat16)
}
