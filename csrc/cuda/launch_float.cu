// The kernels for float32.
#include "cuda/launch.cuh"

namespace fastrnn::cuda {
FASTRNN_INSTANTIATE_LAUNCH(float)
}
