// RTNeural's layers behind C functions.
#include <RTNeural/RTNeural.h>

#include <cstdint>
#include <memory>

namespace {

using Layer = RTNeural::Layer<float>;
using Weights = nlohmann::json;

template <class Made, class Load>
std::unique_ptr<Layer> made(int input_size, int hidden_size, Load&& load) {
  auto layer = std::make_unique<Made>(input_size, hidden_size);
  load(*layer);
  layer->reset();
  return layer;
}

}  // namespace

extern "C" {

// Makes a layer of torch.nn's state dict as JSON.
Layer* rtneural_make(bool is_lstm, int input_size, int hidden_size, const char* state_dict) {
  const Weights weights = Weights::parse(state_dict);
  if (is_lstm)
    return made<RTNeural::LSTMLayer<float>>(
               input_size, hidden_size,
               [&](auto& layer) { RTNeural::torch_helpers::loadLSTM<float>(weights, "", layer); })
        .release();
  return made<RTNeural::GRULayer<float>>(
             input_size, hidden_size, [&](auto& layer) { RTNeural::torch_helpers::loadGRU<float>(weights, "", layer); })
      .release();
}

// Runs input [steps, input size] to output [steps, hidden size], from the state that the last call left.
void rtneural_run(Layer* layer, const float* input, int64_t steps, float* output) {
  for (int64_t t = 0; t < steps; ++t, input += layer->in_size, output += layer->out_size) layer->forward(input, output);
}

void rtneural_free(Layer* layer) { delete layer; }
}
