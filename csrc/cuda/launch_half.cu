// The kernels for fp16.
#include "cuda/launch.cuh"

namespace fastrnn::cuda {
FASTRNN_INSTANTIATE_LAUNCH(Half)
}
