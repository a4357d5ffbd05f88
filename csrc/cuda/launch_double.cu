// The kernels for float64.
#include "cuda/launch.cuh"

namespace fastrnn::cuda {
FASTRNN_INSTANTIATE_LAUNCH(double)
}
